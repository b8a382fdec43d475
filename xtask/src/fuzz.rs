//! `cargo xtask fuzz`: builds the targets of fuzz/ with the toolchain that is there, and lets libFuzzer make up inputs for each.
//!
//! Called by people. What an input reached is told by rustc's own passes, so that it takes no nightly, no cargo-fuzz and no sanitizer (we
//! write no unsafe code). It must never say that a target is well which did not run, and never leave the input of a crash unnamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cargo, programs};

/// Each is a file of fuzz/targets.
const TARGETS: &[&str] = &["records", "frames", "hello", "certificates", "policy", "csr"];
const SECONDS: u64 = 60;
const USAGE: &str = "cargo xtask fuzz [TARGET] [--seconds N]";

/// A counter for each branch, and each comparison told: what libFuzzer follows.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// An input that takes so many seconds is a finding, and so is one that takes so much memory. Inputs grow sooner than libFuzzer lets them.
const LIMITS: &[&str] = &["-timeout=25", "-rss_limit_mb=2048", "-len_control=20"];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    targets: Vec<&'static str>,
    seconds: u64,
}

fn read(args: &[String]) -> Result<Asked> {
    let (mut targets, mut seconds, mut args) = (Vec::new(), SECONDS, args.iter());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let number = args.next().map(String::as_str).unwrap_or_default();
                let whole = number.parse::<u64>().ok().filter(|seconds| *seconds > 0);
                seconds = whole.with_context(|| format!("--seconds takes a whole number from 1 on, not {number:?}"))?;
            }
            option if option.starts_with('-') => bail!("no such option: {option}\n{USAGE}"),
            second if !targets.is_empty() => bail!("one target at a time, not {second} too\n{USAGE}"),
            name => match TARGETS.iter().find(|target| **target == name) {
                Some(target) => targets.push(*target),
                None => bail!("no such target: {name}; there are {}", TARGETS.join(", ")),
            },
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    Ok(Asked { targets, seconds })
}

/// Builds, runs one target after the other; exit code 1 if any did not end well.
pub fn run(args: &[String]) -> Result<u8> {
    let asked = read(args)?;
    if std::env::var_os("CXX").is_none() && programs::find("c++").is_none() {
        bail!(
            "libFuzzer is written in C++, and there is no compiler for it (c++); type: {}",
            programs::to_type(&["g++"])
        );
    }
    let folder = cargo::target_dir()?.join("fuzz");
    let built = build(&asked.targets, &folder)?;
    let mut ill = 0;
    for target in asked.targets {
        let ran = fuzz(target, &built.join(target), &folder, asked.seconds)?;
        println!("{}", ran.line(target));
        ill += u8::from(!ran.well);
    }
    Ok(ill.min(1))
}

/// Builds these targets; returns the folder that they are in.
fn build(targets: &[&str], folder: &Path) -> Result<PathBuf> {
    println!("Building {} ...", targets.join(", "));
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo::cargo();
    // With a target named, build scripts and macros are built without the flags.
    build.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host, "--target-dir"]);
    build.arg(folder.join("build")).env("RUSTFLAGS", FLAGS.join(" ")).env_remove("CARGO_ENCODED_RUSTFLAGS");
    for target in targets {
        build.args(["--bin", target]);
    }
    if targets.contains(&"csr") {
        build.args(["--features", "csr"]);
    }
    if !build.status().context("running cargo build")?.success() {
        bail!("cargo build failed; the errors are above");
    }
    Ok(folder.join("build").join(host).join("release"))
}

/// Runs one target for so long, on what earlier runs found.
fn fuzz(target: &str, program: &Path, folder: &Path, seconds: u64) -> Result<Ran> {
    let [corpus, artifacts, logs] = ["corpus", "artifacts", "log"].map(|name| folder.join(name));
    let corpus = corpus.join(target);
    for dir in [&corpus, &artifacts, &logs] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let path = logs.join(format!("{target}.log"));
    let log = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg(&corpus).args(LIMITS).arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    command.stdin(Stdio::null()).stdout(log.try_clone().context("the log twice")?).stderr(log);
    let status = command.status().with_context(|| format!("starting {}", program.display()))?;
    let said = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Ran::read(&String::from_utf8_lossy(&said), status.success(), program, &path))
}

/// How one target did.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    runs: String,
    coverage: String,
    well: bool,
    /// What to do about it, where it is not well.
    hint: String,
}

impl Ran {
    /// From what libFuzzer printed. Without a count of runs nothing ran.
    fn read(said: &str, success: bool, program: &Path, log: &Path) -> Self {
        let last = |mark: &str| {
            let (_, rest) = said.rsplit_once(mark)?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        let runs = last("stat::number_of_executed_units:");
        let mut hint = String::new();
        let well = success && runs.is_some();
        if !well {
            // Ours as Rust tells it, two lines; else libFuzzer's own word.
            let from = said.find("panicked at ").or_else(|| said.rfind("SUMMARY: "));
            let why: Vec<&str> = from.map_or(Vec::new(), |from| said[from..].lines().take(2).collect());
            let again = last("Test unit written to ").map_or_else(
                || format!("see {}", log.display()),
                |input| format!("again: {} {input}", program.display()),
            );
            hint = format!("\n    {}\n    {again}", why.join("\n    "));
        }
        let coverage = last(" cov: ").unwrap_or_else(|| "?".to_owned());
        Self { runs: runs.unwrap_or_else(|| "no".to_owned()), coverage, well, hint }
    }

    fn line(&self, target: &str) -> String {
        let how = if self.well { "ok" } else { "FAILED" };
        format!("{target:12} {:>10} runs, {:>6} branches reached: {how}{}", self.runs, self.coverage, self.hint)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn asked(args: &[&str]) -> Result<Asked> {
        read(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_word_every_target_is_run_for_a_minute() {
        assert_eq!(asked(&[]).unwrap(), Asked { targets: TARGETS.to_vec(), seconds: 60 });
    }

    #[test]
    fn one_target_and_how_long_may_be_named_in_any_order() {
        let wanted = Asked { targets: vec!["frames"], seconds: 5 };
        assert_eq!(asked(&["frames", "--seconds", "5"]).unwrap(), wanted);
        assert_eq!(asked(&["--seconds", "5", "frames"]).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let told = |args: &[&str]| asked(args).unwrap_err().to_string();
        let there = "no such target: record; there are records, frames, hello, certificates, policy, csr";
        assert_eq!(told(&["record"]), there);
        assert_eq!(told(&["records", "frames"]), format!("one target at a time, not frames too\n{USAGE}"));
        assert_eq!(told(&["--second", "5"]), format!("no such option: --second\n{USAGE}"));
        for number in [&["--seconds"][..], &["--seconds", "0"], &["--seconds", "1m"], &["--seconds", "-1"]] {
            assert!(told(number).starts_with("--seconds takes a whole number from 1 on, not "));
        }
    }

    #[test]
    fn every_file_of_targets_is_run() {
        let files = fs::read_dir(cargo::root().join("fuzz/targets")).unwrap().flatten();
        let mut files: Vec<_> =
            files.map(|file| file.path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        let mut targets = TARGETS.to_vec();
        files.sort();
        targets.sort_unstable();
        assert_eq!(files, targets);
    }

    #[test]
    fn a_crash_is_told_with_its_input_and_a_run_of_nothing_is_not_well() {
        let read = |said: &str, success| Ran::read(said, success, Path::new("/b/frames"), Path::new("/l/frames.log"));
        let good = "#2\tINITED cov: 3 ft: 3\n#9\tNEW    cov: 41 ft: 50 corp: 2/2b\nDone 9 runs in 1 second(s)\n\
                    stat::number_of_executed_units: 9\n";
        assert_eq!(read(good, true).line("frames"), "frames                9 runs,     41 branches reached: ok");
        let bad = "#2\tINITED cov: 3 ft: 3\n\nthread '<unnamed>' panicked at targets/frames.rs:9:5:\nit is odd\nnote: x\n\
                   ==1== ERROR: libFuzzer: deadly signal\nSUMMARY: libFuzzer: deadly signal\n\
                   artifact_prefix='/a/frames-'; Test unit written to /a/frames-crash-1\nstat::number_of_executed_units: 7\n";
        let told = "frames                7 runs,      3 branches reached: FAILED\n    panicked at targets/frames.rs:9:5:\n    \
                    it is odd\n    again: /b/frames /a/frames-crash-1";
        assert_eq!(read(bad, false).line("frames"), told);
        let nothing = read("", true);
        assert!(!nothing.well && nothing.line("frames").ends_with("see /l/frames.log"));
    }
}
