// Command targets prints what Prometheus would scrape: it reads a configuration with Prometheus' own parser, asks the cluster with its own
// Kubernetes discovery, and applies its own relabelling. All of Prometheus would bring a database and every cloud's client along.
//
//	targets CONFIG KUBECONFIG SECONDS
//
// One line a target: job, address, labels.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/kubernetes"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "targets:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 4 {
		return fmt.Errorf("usage: targets CONFIG KUBECONFIG SECONDS")
	}
	seconds, err := strconv.Atoi(os.Args[3])
	if err != nil {
		return err
	}
	quiet := slog.New(slog.DiscardHandler)
	cfg, err := config.LoadFile(os.Args[1], false, quiet)
	if err != nil {
		return err
	}
	scrapes, err := cfg.GetScrapeConfigs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	for _, scrape := range scrapes {
		for _, sd := range scrape.ServiceDiscoveryConfigs {
			pods, ok := sd.(*kubernetes.SDConfig)
			if !ok {
				return fmt.Errorf("%s: a discovery that is not Kubernetes'", scrape.JobName)
			}
			// In a pod it would use its account.
			pods.KubeConfig = os.Args[2]
			registry := prometheus.NewRegistry()
			refresh := discovery.NewRefreshMetrics(registry)
			metrics := pods.NewDiscovererMetrics(registry, refresh)
			if err := metrics.Register(); err != nil {
				return err
			}
			options := discovery.DiscovererOptions{Logger: quiet, Metrics: metrics}
			found, err := pods.NewDiscoverer(options)
			if err != nil {
				return err
			}
			show(ctx, found, scrape)
		}
	}
	return nil
}

// show collects groups until the time is over, and prints what relabelling leaves.
func show(ctx context.Context, found discovery.Discoverer, scrape *config.ScrapeConfig) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	groups := map[string]*targetgroup.Group{}
	updates := make(chan []*targetgroup.Group)
	go found.Run(ctx, updates)
	for open := true; open; {
		select {
		case update := <-updates:
			for _, group := range update {
				groups[group.Source] = group
			}
		case <-ctx.Done():
			open = false
		}
	}
	var lines []string
	for _, group := range groups {
		for _, target := range group.Targets {
			all := labels.NewBuilder(labels.EmptyLabels())
			for _, set := range []model.LabelSet{group.Labels, target} {
				for name, value := range set {
					all.Set(string(name), string(value))
				}
			}
			if !relabel.ProcessBuilder(all, scrape.RelabelConfigs...) {
				continue
			}
			line := scrape.JobName + " " + all.Get(model.AddressLabel)
			all.Range(func(label labels.Label) {
				if len(label.Name) < 2 || label.Name[:2] != "__" {
					line += " " + label.Name + "=" + label.Value
				}
			})
			lines = append(lines, line)
		}
	}
	sort.Strings(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
}
