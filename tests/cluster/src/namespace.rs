//! A namespace of one test: what is applied in it, and commands in its pods.
//!
//! Called by every test. It must never leave its namespace; all of it is removed when the tests are over.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{Cluster, until};

/// For pods that start: images are there, the machine may be busy.
const START: Duration = Duration::from_secs(120);
/// The most seconds for a load that is told when to end.
pub const LONGEST: u64 = 600;
/// Lines of what did not go well that an error carries.
const ACCOUNTS: usize = 60;

/// One namespace.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// The cluster it is in.
    pub cluster: &'a Cluster,
    /// Its name.
    pub name: &'static str,
}

impl<'a> Namespace<'a> {
    /// Makes it anew, with labels (`key=value`).
    ///
    /// # Errors
    /// kubectl's.
    pub fn new(cluster: &'a Cluster, name: &'static str, labels: &[&str]) -> Result<Self> {
        cluster.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"])?;
        cluster.kubectl(&["create", "namespace", name])?;
        cluster.remember(name);
        if !labels.is_empty() {
            let args: Vec<_> = ["label", "namespace", name].iter().chain(labels).copied().collect();
            cluster.kubectl(&args)?;
        }
        let this = Self { cluster, name };
        until(START, "its default service account", || this.kubectl(&["get", "serviceaccount", "default"]))?;
        Ok(this)
    }

    /// kubectl in it.
    ///
    /// # Errors
    /// kubectl's.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&self.args(args))
    }

    /// An object in it, as JSON.
    ///
    /// # Errors
    /// kubectl's.
    pub fn object(&self, args: &[&str]) -> Result<Value> {
        self.cluster.object(&self.args(args))
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// kubectl's.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.cluster.kubectl_with(&self.args(&["apply", "-f", "-"]), yaml)
    }

    /// Waits until a Deployment, StatefulSet or DaemonSet (`deployment/NAME`) is as it should be.
    ///
    /// # Errors
    /// It is not in time; what its pods say.
    pub fn rolled_out(&self, what: &str) -> Result<()> {
        let args = self.args(&["rollout", "status", what, "--timeout=120s"]);
        self.cluster.kubectl(&args).map(drop).map_err(|error| self.explained(error))
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// It is not in time; what the pods say.
    pub fn ready(&self, pod: &str) -> Result<()> {
        let args = self.args(&["wait", "--for=condition=Ready", "--timeout=120s", pod]);
        self.cluster.kubectl(&args).map(drop).map_err(|error| self.explained(error))
    }

    /// Adds to an error what the namespace's pods and events say.
    #[must_use]
    pub fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let say = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
        let pods = say(&["get", "pods", "-o", "wide"]);
        let events = say(&["get", "events", "--field-selector=type=Warning"]);
        let logs = say(&["logs", "--all-pods=true", "--selector=app", "--all-containers", "--prefix", "--tail=15"]);
        error.context(format!("{}:\n{pods}\n{events}\n{logs}\n", self.name))
    }

    /// The error with the first that the sidecars here said of anything that did not go well, and with what the cluster says of nodes and endpoints.
    #[must_use]
    pub fn accounted(&self, error: anyhow::Error) -> anyhow::Error {
        let say = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
        let logs = say(&[
            "logs",
            "--all-pods=true",
            "--selector=app",
            "--container=countersign-proxy",
            "--prefix",
            "--tail=-1",
        ]);
        let lines: Vec<_> = logs.lines().filter(|line| !line.contains(r#""result":"ok""#)).take(ACCOUNTS).collect();
        let (nodes, slices) = (say(&["get", "nodes"]), say(&["get", "endpointslices", "-o", "yaml"]));
        error.context(format!("{}:\n{}\n{nodes}\n{slices}\n", self.name, lines.join("\n")))
    }

    /// Runs a command in a pod (`pod/NAME`, `deployment/NAME`), in its container `app`.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.exec_in(pod, "app", command)
    }

    /// Runs a command in one of a pod's containers.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn exec_in(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let args: Vec<_> = ["exec", pod, "-c", container, "--"].iter().chain(command).copied().collect();
        self.kubectl(&args)
    }

    /// One HTTP request by curl, from a pod; the answer's body.
    ///
    /// # Errors
    /// No answer within 8 s, or a bad status.
    pub fn curl(&self, pod: &str, url: &str) -> Result<String> {
        self.exec(pod, &["curl", "--silent", "--show-error", "--fail", "--max-time", "8", url])
    }

    /// One HTTP request by curl, from a pod, that must be refused: a connection that ends without an answer, and nothing else that may go wrong.
    ///
    /// # Errors
    /// It was answered, or failed in another way.
    pub fn refused(&self, pod: &str, url: &str) -> Result<()> {
        let args = ["exec", pod, "-c", "app", "--", "curl", "--silent", "--show-error", "--max-time", "8", url];
        let output = self.cluster.kubectl_command(&self.args(&args)).output().context("kubectl")?;
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(!output.status.success(), "{url} was answered: {said}");
        // 52: an empty answer; 56: reset while it waited for one. Not a name that is unknown (6), nobody there (7), or no answer in time (28).
        let ended = ["curl: (52)", "curl: (56)"].iter().any(|code| why.contains(code));
        anyhow::ensure!(ended && said.is_empty(), "{url} failed, but was not refused: {why}{said}");
        Ok(())
    }

    /// Starts a steady load of 20 requests a second for so many seconds at the most, as a pod of its own: it does not end where the API server does.
    ///
    /// # Errors
    /// kubectl's, or the load does not start.
    pub fn load(&self, name: &'static str, url: &str, seconds: u64, kept: bool) -> Result<Load<'a>> {
        let keep = if kept { "keep" } else { "new" };
        self.apply(
            &LOAD
                .replace("NAME", name)
                .replace("URL", url)
                .replace("SECONDS", &seconds.to_string())
                .replace("KEEP", keep),
        )?;
        self.load_of(name, seconds)
    }

    /// The load of a pod that was applied in another way, once it runs.
    ///
    /// # Errors
    /// kubectl's, or the load does not start.
    pub fn load_of(&self, name: &'static str, seconds: u64) -> Result<Load<'a>> {
        until(START, "the load runs", || {
            let status = self.object(&["get", "pod", name])?["status"].clone();
            anyhow::ensure!(status["containerStatuses"][0]["started"] == true, "{status}");
            Ok(())
        })
        .map_err(|error| self.explained(error))?;
        Ok(Load { namespace: *self, name, seconds })
    }

    /// The address of the first pod with `app=NAME`.
    ///
    /// # Errors
    /// There is none.
    pub fn address(&self, app: &str) -> Result<String> {
        let address =
            self.kubectl(&["get", "pod", "-l", &format!("app={app}"), "-o", "jsonpath={.items[0].status.podIP}"])?;
        anyhow::ensure!(!address.is_empty(), "{app} has no address yet");
        Ok(address)
    }

    fn args<'b>(&self, args: &[&'b str]) -> Vec<&'b str> {
        ["--namespace", self.name].into_iter().chain(args.iter().copied()).collect()
    }
}

const LOAD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: NAME}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  containers: [{name: app, image: 'localhost/app:1', command: [/app, load, 'URL', 'SECONDS', KEEP]}]
";

/// A load that runs.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    namespace: Namespace<'a>,
    name: &'static str,
    seconds: u64,
}

impl Load<'_> {
    /// What was to happen under it has happened: it goes on for 10 s more, then ends. It must not have ended yet.
    ///
    /// # Errors
    /// It has, or kubectl's.
    pub fn end(&self) -> Result<()> {
        let phase = self.namespace.kubectl(&["get", "pod", self.name, "-o", "jsonpath={.status.phase}"])?;
        let said = self.namespace.kubectl(&["logs", self.name, "-c", "app"])?;
        anyhow::ensure!(
            phase == "Running" && said.is_empty(),
            "the load {} was over before: {phase} {said}",
            self.name
        );
        self.namespace.exec(self.name, &["kill", "-TERM", "1"]).map(drop)
    }

    /// Waits for its end: the client's report.
    ///
    /// # Errors
    /// It did not end well.
    pub fn report(&self) -> Result<Value> {
        let limit = Duration::from_secs(self.seconds) + START;
        let text = until(limit, "the load ends", || {
            let text = self.namespace.kubectl(&["logs", self.name, "-c", "app"])?;
            anyhow::ensure!(text.trim().ends_with('}'), "{text}");
            Ok(text)
        })
        .map_err(|error| self.namespace.explained(error))?;
        serde_json::from_str(text.trim()).with_context(|| format!("the load's report: {text}"))
    }

    /// Waits for its end: none of its requests may have failed. None is ever asked twice.
    ///
    /// # Errors
    /// One failed, or fewer were made than half of what was asked for.
    pub fn nothing_failed(&self) -> Result<Value> {
        let report = self.report()?;
        if report["failed"] != 0 {
            return Err(self.namespace.accounted(anyhow::anyhow!("requests failed: {report}")));
        }
        anyhow::ensure!(
            report["lasted_s"].as_u64().is_some_and(|lasted| report["good"].as_u64() > Some(lasted * 10)),
            "too few requests to show anything: {report}"
        );
        Ok(report)
    }
}
