//! Images of what else runs in the test cluster: its own pods, and the test apps, made of programs of this machine.
//!
//! Called by `cluster`. A program brings the libraries it is linked with. It must never fetch anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::oci::{self, Image};
use crate::image::tar::Archive;
use crate::programs;

/// For programs that look up who they are, or how names are resolved.
const ACCOUNTS: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
];

/// Pods that hold nothing, and cluster DNS: all that `kit/up` needs.
pub fn of_the_cluster(built: &Path) -> Result<()> {
    for name in ["pause", "coredns"] {
        let mut layer = Archive::default();
        put(&mut layer, &built.join("bin").join(name), name)?;
        save(layer, name, &format!("/{name}"), &built.join("images"))?;
    }
    Ok(())
}

/// One image for all: the tests' own server and client, a shell, curl, socat, nft.
pub fn of_the_tests(statics: &Path, out: &Path) -> Result<()> {
    let mut layer = accounts()?;
    put(&mut layer, &statics.join("countersign-cluster-app"), "app")?;
    for name in ["busybox", "curl", "socat", "nft"] {
        let program = programs::find(name).with_context(|| format!("no program {name}"))?;
        put(&mut layer, &program, &format!("bin/{name}"))?;
        libraries(&mut layer, &program)?;
    }
    for command in output("busybox", &["--list"])?.split_whitespace() {
        layer.symlink(&format!("bin/{command}"), "/bin/busybox")?;
    }
    save(layer, "app", "/app", out)
}

/// The demo app's image (manifests/demo): nginx and curl of this machine, under the name that its kustomization gives.
pub fn of_the_demo(out: &Path) -> Result<()> {
    let mut layer = accounts()?;
    for name in ["nginx", "curl"] {
        let program = programs::find(name).with_context(|| format!("no program {name}"))?;
        put(&mut layer, &program, &format!("bin/{name}"))?;
        libraries(&mut layer, &program)?;
    }
    let image = Image {
        name: "docker.io/library/nginx:1.28".to_owned(),
        entrypoint: vec!["/bin/nginx".to_owned()],
        ..Image::default()
    };
    oci::write(&image, layer, &out.join("demo.tar"))
}

fn accounts() -> Result<Archive> {
    let mut layer = Archive::default();
    layer.folder("tmp", 0o1777)?;
    for (path, text) in ACCOUNTS {
        layer.file(path, 0o644, text.as_bytes())?;
    }
    Ok(layer)
}

fn put(layer: &mut Archive, file: &Path, at: &str) -> Result<()> {
    let content = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    layer.file(at, 0o755, &content)
}

/// The shared objects, the loader included, that a dynamic program needs; a static one needs none.
fn libraries(layer: &mut Archive, program: &Path) -> Result<()> {
    let listing = Command::new("ldd").arg(program).output().context("running ldd")?;
    if !listing.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&listing.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from) {
        put(layer, &library, &library.to_string_lossy())?;
    }
    Ok(())
}

fn save(layer: Archive, name: &str, entrypoint: &str, out: &Path) -> Result<()> {
    let image =
        Image { name: format!("localhost/{name}:1"), entrypoint: vec![entrypoint.to_owned()], ..Image::default() };
    oci::write(&image, layer, &out.join(format!("{name}.tar")))
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} {} failed", args.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
