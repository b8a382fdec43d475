//! `cargo xtask image`: our programs as container images, without a container engine: one static program on nothing else.
//!
//! Called by people, with the profile that ships; `cluster` makes the same images of what the tests are built with. It must never put anything into an
//! image but the program.

mod elf;
pub mod oci;
pub mod tar;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::oci::Image;
use self::tar::Archive;
use crate::{cargo, statics};

const USAGE: &str = "cargo xtask image [--registry NAME] [--tag TAG] [--out FOLDER] [--quick]";

/// Our programs that run in a cluster, each with the user that its image names: a number, as there is no /etc/passwd in it. The
/// sidecar's is the one that the redirect rules let pass.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("countersign-proxy", "1337:1337"),
    ("countersign-ca", "65532:65532"),
    ("countersign-controller", "65532:65532"),
    ("countersign-injector", "65532:65532"),
];

/// The profile that ships.
const PROFILE: &str = "dist";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    registry: String,
    tag: String,
    out: Option<PathBuf>,
    quick: bool,
}

impl Wanted {
    fn read(args: &[String]) -> Result<Self> {
        let (registry, tag) = ("localhost".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let mut wanted = Self { registry, tag, out: None, quick: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().with_context(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--registry" => wanted.registry = value()?,
                "--tag" => wanted.tag = value()?,
                "--out" => wanted.out = Some(PathBuf::from(value()?)),
                "--quick" => wanted.quick = true,
                other => bail!("no such option: {other}\n{USAGE}"),
            }
        }
        Ok(wanted)
    }
}

/// Runs the command.
pub fn run(args: &[String]) -> Result<u8> {
    let Wanted { registry, tag, out, quick } = Wanted::read(args)?;
    let out = match out {
        Some(out) => out,
        None => cargo::target_dir()?.join("image"),
    };
    println!("Building static programs (the first time takes some minutes) ...");
    let programs = if quick {
        cargo::build_all()?;
        statics::of_the_build()?
    } else {
        static_programs(PROGRAMS.iter().map(|(package, _)| *package))?
    };
    for file in ours(&programs, &registry, &tag, &out)? {
        let size = std::fs::metadata(&file).map(|meta| meta.len()).unwrap_or(0);
        println!("{}  {:.1} MiB", file.display(), size as f64 / f64::from(1 << 20));
    }
    println!("To load one: `ctr --namespace k8s.io images import FILE`, or `docker load --input FILE`.");
    Ok(0)
}

/// Builds the programs of these packages as they ship, statically linked; returns the folder they are in.
pub fn static_programs<'p>(packages: impl IntoIterator<Item = &'p str>) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo::cargo();
    command.args(["build", "--bins", "--profile", PROFILE, "--target", &triple]).args(cargo::features());
    let flags = static_flags(libc_version());
    command.args(["--config", &format!("target.{triple}.rustflags={flags:?}")]);
    for package in packages {
        command.args(["--package", package]);
    }
    // They would take the place of the flags above.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !command.status().context("running cargo build")?.success() {
        bail!("cargo build of static programs failed; the errors are above");
    }
    Ok(cargo::target_dir()?.join(triple).join(PROFILE))
}

/// What rustc is told for a static program. Where this C library can read them, the places that a program corrects as it starts (it lies at an address that
/// nobody foresees) are told by a bit each and not by 24 bytes: half a megabyte less, all of which is read. Functions that are said to be cold lie together,
/// so that they are not read beside others (a linker that cannot do that says so, and goes on).
fn static_flags(libc: Option<(u32, u32)>) -> Vec<&'static str> {
    let mut flags = vec!["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,keep-text-section-prefix"];
    flags.extend((libc >= Some(PACKED_RELOCATIONS)).then_some("-Clink-arg=-Wl,-z,pack-relative-relocs"));
    flags
}

/// The first version of the GNU C library with DT_RELR.
const PACKED_RELOCATIONS: (u32, u32) = (2, 36);

/// Which GNU C library programs are linked with here; none if it is another one, or does not say.
fn libc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether jemalloc, where a program has it, serves C as well: nothing of glibc's heap is in it then. By what each says of a heap that was spoiled; another C
/// library has other words.
fn one_heap(program: &[u8]) -> bool {
    let says = |words: &[u8]| program.windows(words.len()).any(|at| at == words);
    !says(b"<jemalloc>: ") || !says(b"malloc(): ")
}

/// Writes the image of each of our programs; returns the files.
///
/// # Errors
/// A program is not there, or needs something beside itself, or has two heaps.
pub fn ours(programs: &Path, registry: &str, tag: &str, out: &Path) -> Result<Vec<PathBuf>> {
    PROGRAMS
        .iter()
        .map(|(name, user)| {
            let program = programs.join(name);
            let content = std::fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
            elf::alone(&content).with_context(|| program.display().to_string())?;
            if !one_heap(&content) {
                bail!("{}: C has another heap than Rust in it (docs/decisions/0008)", program.display());
            }
            let mut layer = Archive::default();
            layer.file(name, 0o755, &content)?;
            let image = Image {
                name: format!("{registry}/{name}:{tag}"),
                entrypoint: vec![format!("/{name}")],
                user: (*user).to_owned(),
                labels: vec![
                    ("org.opencontainers.image.title".to_owned(), (*name).to_owned()),
                    ("org.opencontainers.image.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                    ("org.opencontainers.image.licenses".to_owned(), "Apache-2.0".to_owned()),
                ],
            };
            let file = out.join(format!("{name}.tar"));
            oci::write(&image, layer, &file)?;
            Ok(file)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_program_with_the_heaps_of_both_jemalloc_and_glibc_is_told_apart() {
        let (jemalloc, glibc) = ("<jemalloc>: Error in munmap(): \0", "malloc(): corrupted top size\0");
        for (program, one) in [
            ("", true),
            (jemalloc, true),
            (glibc, true),
            (&format!("{glibc}.{jemalloc}"), false),
            (&format!("{jemalloc}{glibc}"), false),
        ] {
            assert_eq!(one_heap(program.as_bytes()), one, "{program}");
        }
    }

    #[test]
    fn relocations_are_packed_only_where_the_c_library_reads_them() {
        let always = ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,keep-text-section-prefix"];
        let packed = [&always[..], &["-Clink-arg=-Wl,-z,pack-relative-relocs"]].concat();
        assert_eq!(static_flags(Some((2, 36))), packed);
        assert_eq!(static_flags(Some((3, 0))), packed);
        assert_eq!(static_flags(Some((2, 35))), always);
        assert_eq!(static_flags(None), always);
        assert!(libc_version().is_some_and(|version| version >= (2, 0)), "{:?}", libc_version());
    }

    /// What `tar` prints.
    fn tar(args: &[&str], file: &Path) -> Vec<u8> {
        let output = Command::new("tar").arg(args[0]).arg(file).args(&args[1..]).output().unwrap();
        assert!(output.status.success(), "{args:?} {}", file.display());
        output.stdout
    }

    fn blob(image: &Path, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
        tar(&["-xOf", &format!("blobs/{digest}")], image)
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_read_and_what_is_unknown_is_named() {
        let read = |text: &str| Wanted::read(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let usual = read("").unwrap();
        assert_eq!((usual.registry.as_str(), usual.tag.as_str()), ("localhost", env!("CARGO_PKG_VERSION")));
        assert!(usual.out.is_none() && !usual.quick);
        let all = read("--registry registry.example/a --tag 7 --out /tmp/images --quick").unwrap();
        let (registry, tag) = ("registry.example/a".to_owned(), "7".to_owned());
        assert_eq!(all, Wanted { registry, tag, out: Some("/tmp/images".into()), quick: true });
        for (bad, named) in [("--tag", "--tag needs a value"), ("--tags 7", "no such option: --tags")] {
            assert!(read(bad).unwrap_err().to_string().contains(named), "{bad}");
        }
    }

    #[test]
    fn an_image_holds_one_program_and_nothing_else_and_runs_it_as_no_root() {
        let dir = crate::programs::scratch("countersign-image-test").unwrap();
        for (name, _) in PROGRAMS {
            std::fs::write(dir.join(name), elf::tests::smallest()).unwrap();
        }
        let files = ours(&dir, "registry.example/a", "1", &dir.join("out")).unwrap();
        assert_eq!(files.len(), 4);
        for (file, (name, _)) in files.iter().zip(PROGRAMS) {
            let index = json(&tar(&["-xOf", "index.json"], file));
            let manifest = json(&blob(file, &index["manifests"][0]));
            assert_eq!(manifest["layers"].as_array().unwrap().len(), 1, "{name}");
            let layer = dir.join("layer.tar");
            std::fs::write(&layer, blob(file, &manifest["layers"][0])).unwrap();
            // No shell, no loader, no library, no folder in which something could lie: one line.
            let listing = String::from_utf8(tar(&["-tvf"], &layer)).unwrap();
            assert_eq!(listing.lines().count(), 1, "{listing}");
            assert!(
                listing.starts_with("-rwxr-xr-x") && listing.trim_end().ends_with(&format!(" {name}")),
                "{listing}"
            );
            assert_eq!(tar(&["-xOf", name], &layer), elf::tests::smallest());
            let config = json(&blob(file, &manifest["config"]))["config"].clone();
            assert_eq!(config["Entrypoint"], serde_json::json!([format!("/{name}")]));
            // As numbers, which the kubelet's runAsNonRoot can judge.
            let (user, group) = config["User"].as_str().unwrap().split_once(':').unwrap();
            assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0, "{config}");
            for more in ["Cmd", "Shell", "Volumes", "ExposedPorts"] {
                assert!(config.get(more).is_none(), "{config}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn no_image_is_made_of_a_program_that_needs_another() {
        let dir = crate::programs::scratch("countersign-image-dynamic-test").unwrap();
        for (name, _) in PROGRAMS {
            std::fs::copy("/bin/ls", dir.join(name)).unwrap();
        }
        let error = ours(&dir, "registry.example/a", "1", &dir.join("out")).unwrap_err();
        let left = dir.join("out").exists();
        std::fs::remove_dir_all(&dir).unwrap();
        let error = format!("{error:#}");
        assert!(error.contains("countersign-proxy: is linked dynamically"), "{error}");
        assert!(!left, "something was written");
    }

    /// The sidecar's user is the one that the redirect rules let pass.
    #[test]
    fn the_sidecars_image_names_the_user_that_the_rules_know() {
        let (_, user) = PROGRAMS.iter().find(|(name, _)| *name == "countersign-proxy").unwrap();
        let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/src/ports.rs")).unwrap();
        let number = user.split(':').next().unwrap();
        assert!(source.contains(&format!("PROXY_UID: u32 = {number};")), "{user}");
    }
}
