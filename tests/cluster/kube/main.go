// Command kube is every Kubernetes component that a test cluster needs, in one
// program: the stock upstream commands, chosen by the first argument.
//
// Kubernetes is published as ordinary Go modules, so this builds from the Go
// module proxy alone, on machines that can reach neither a container registry
// nor a download site.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics on /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // build-info metric
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const usage = "usage: kube etcd|apiserver|controller-manager|scheduler|kubelet|proxy|kubectl [FLAG...]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	name := os.Args[1]
	os.Args = append([]string{name}, os.Args[2:]...)

	var component *cobra.Command
	switch name {
	case "etcd":
		etcdmain.Main(os.Args) // exits the process itself
		return
	case "apiserver":
		component = apiserver.NewAPIServerCommand()
	case "controller-manager":
		component = controllermanager.NewControllerManagerCommand()
	case "scheduler":
		component = scheduler.NewSchedulerCommand()
	case "kubelet":
		component = kubelet.NewKubeletCommand(context.Background())
	case "proxy":
		component = proxy.NewProxyCommand()
	case "kubectl":
		component = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "kube: no component %q\n%s\n", name, usage)
		os.Exit(2)
	}
	if name == "kubectl" {
		if err := cli.RunNoErrOutput(component); err != nil {
			util.CheckErr(err) // prints it as kubectl does, and exits
		}
		return
	}
	os.Exit(cli.Run(component))
}
