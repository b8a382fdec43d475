//! The two roads of an operator: the page's, and Helm's.

use anyhow::{Context, Result, ensure};
use countersign_cluster_tests::{Beside, Cluster, Promise};

use super::page::{self, Shell, blocks};

/// In this order; each alone.
pub const PROMISES: &[Promise] = &[
    ("blocks_of_a_page_are_read_with_their_words", Beside::Nobody, blocks_are_read),
    ("docs_operations_md_is_right_command_by_command", Beside::Nobody, the_page),
    ("helm_installs_upgrades_and_removes_and_keeps_the_ca_bundle_and_the_cas_state", Beside::Nobody, helms_road),
];

fn blocks_are_read(_: &Cluster) -> Result<()> {
    let page = "a\n```sh\none\ntwo\n```\nb\n```text\nsaid\n```\n```sh fails eventually\nthree\n```\n```text\nno\n```\n";
    let found = blocks(page)?;
    ensure!(found.len() == 2 && found[0].commands == "one\ntwo" && found[0].prints == ["said"], "{found:?}");
    ensure!(blocks("```sh fails\n```\n").is_err(), "one that fails in whatever way passed");
    ensure!(found[1].fails && found[1].eventually && !found[0].fails, "{found:?}");
    ensure!(blocks("```sh fals\n```\n").is_err() && blocks("```yaml\n```\n").is_err(), "an unknown word passed");
    Ok(())
}

/// Whatever other tests have left.
const CLEAN: &str = "countersign uninstall --yes --force --ca-state remove\n\
                     kubectl delete namespace shop --ignore-not-found --timeout=2m\n\
                     kubectl delete namespace --selector=countersign.dev/inject=enabled --ignore-not-found --timeout=3m\n\
                     kubectl delete namespace --field-selector=status.phase=Terminating --ignore-not-found --timeout=3m";

fn clean(shell: &Shell) -> Result<()> {
    let (well, said) = shell.bash(CLEAN)?;
    ensure!(well, "{said}");
    Ok(())
}

fn the_page(cluster: &Cluster) -> Result<()> {
    let shell = Shell::new(cluster)?;
    clean(&shell)?;
    let file = page::root().join("docs/operations.md");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let run = || {
        for block in blocks(&text)?.iter().filter(|block| !block.helm) {
            if let Err(error) = shell.run(block) {
                let (_, said) = shell.bash(SAID)?;
                return Err(error.context(said));
            }
            if block.commands.contains(SCRAPED) {
                targets(&shell)?;
            }
        }
        Ok(())
    };
    let done = run();
    if done.is_err() {
        clean(&shell)?;
    }
    done
}

/// The page's own look at what there is to scrape: then everything is there.
const SCRAPED: &str = "/proxy/metrics";

/// Prometheus' own discovery and relabelling find each of our pods and each sidecar once, and each target answers with metrics.
fn targets(shell: &Shell) -> Result<()> {
    let (well, found) = shell.bash("targets manifests/prometheus.yaml \"$KUBECONFIG\" 10")?;
    ensure!(well, "{found}");
    let of =
        |job: &str, label: &str| found.lines().filter(|line| line.starts_with(job) && line.contains(label)).count();
    ensure!(of("countersign ", "process=") == 6 && of("countersign-sidecars ", " namespace=shop") == 5, "{found}");
    for address in found.lines().filter_map(|line| line.split_whitespace().nth(1)) {
        let (well, said) = shell.bash(&format!("curl -sS --max-time 5 http://{address}/metrics"))?;
        ensure!(well && said.contains("# TYPE"), "{address}: {said}");
    }
    Ok(())
}

/// What helps whoever looks for the reason.
const SAID: &str = "kubectl get pods -A -o wide; countersign check; \
                    kubectl -n countersign-system logs -l app.kubernetes.io/part-of=countersign --prefix --tail=10 || true";

fn helms_road(cluster: &Cluster) -> Result<()> {
    page::helm().context("no Helm: cargo xtask cluster up builds it")?;
    let shell = Shell::new(cluster)?;
    clean(&shell)?;
    let text = std::fs::read_to_string(page::root().join("docs/operations.md"))?;
    let run = |commands: &str| -> Result<String> {
        let (well, said) = shell.bash(commands)?;
        ensure!(well, "{commands}:\n{said}");
        Ok(said)
    };
    for block in blocks(&text)?.iter().filter(|block| block.helm) {
        shell.run(block)?;
    }
    const BUNDLE: &str = "kubectl get mutatingwebhookconfiguration countersign-injector -o jsonpath='{.webhooks[*].clientConfig.caBundle}'";
    const ROOTS: &str = "kubectl -n countersign-system get configmap countersign-bundle -o jsonpath='{.data}'";
    let (bundle, roots) = (run(BUNDLE)?, run(ROOTS)?);
    ensure!(bundle.len() > 200, "the injector has written no caBundle: {bundle:?}");
    let upgrade = "helm upgrade countersign manifests/countersign --namespace countersign-system --wait --timeout 3m \
                   --set webhooks.timeoutSeconds=7 --set log=debug 2>&1";
    run(upgrade)?;
    let timeout = run(
        "kubectl get mutatingwebhookconfiguration countersign-injector -o jsonpath='{.webhooks[0].timeoutSeconds}'",
    )?;
    ensure!(timeout == "7", "the upgrade changed nothing: {timeout:?}");
    ensure!(run(BUNDLE)? == bundle, "the upgrade took the caBundle away");
    ensure!(run(ROOTS)? == roots, "the CA has another root after the upgrade");
    run("countersign check")?;
    run("helm uninstall countersign --namespace countersign-system --wait")?;
    // The kind stays with Helm, so that no rule is lost by a slip; our own command takes the rest.
    run("kubectl get crd authorizationpolicies.policy.countersign.dev")?;
    run("countersign uninstall --yes --ca-state keep")?;
    run("kubectl -n countersign-system get secret countersign-ca-state countersign-ca-key")?;
    // With the state kept, the next install goes on with the same root.
    run(
        "countersign install | kubectl apply -f - && kubectl -n countersign-system rollout status deployment/countersign-ca --timeout=3m",
    )?;
    let same = || -> Result<()> {
        ensure!(run(ROOTS)? == roots, "an install with the state kept made another root");
        Ok(())
    };
    countersign_cluster_tests::until(std::time::Duration::from_secs(30), "the roots are there", same)?;
    run("countersign uninstall --yes --ca-state remove")?;
    let left = run(
        "kubectl get clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,crds,namespaces -o name",
    )?;
    ensure!(!left.contains("countersign"), "left behind: {left}");
    Ok(())
}
