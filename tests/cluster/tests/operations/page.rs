//! Blocks of commands out of a Markdown page, and running them.
//!
//! Called by `roads`. A block is fenced with `sh` and, after it, words: `fails` (it must), `eventually` (it may be tried again for a while),
//! `helm` (another road, not run with the rest). A block of `text` right after it says what must be in its output. It must never pass over a
//! block: a word that it does not know is an error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use countersign_cluster_tests::{Cluster, until};

/// For a block that is tried again.
const EVENTUALLY: Duration = Duration::from_secs(30);
/// No block takes longer.
const LONGEST: Duration = Duration::from_secs(600);

/// One block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub commands: String,
    /// What must be in its output, line by line.
    pub prints: Vec<String>,
    pub fails: bool,
    pub eventually: bool,
    pub helm: bool,
    /// Where it begins, for people.
    pub line: usize,
}

/// All blocks of a page, in order.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let inside: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let mut words = info.split_whitespace();
        match words.next() {
            Some("sh") => {
                let mut block = Block { commands: inside.join("\n"), line: at + 1, ..Block::default() };
                for word in words {
                    match word {
                        "fails" => block.fails = true,
                        "eventually" => block.eventually = true,
                        "helm" => block.helm = true,
                        other => bail!("line {}: a block that is {other:?}", at + 1),
                    }
                }
                blocks.push(block);
            }
            Some("text") => {
                let block = blocks.last_mut().with_context(|| format!("line {}: text of no commands", at + 1))?;
                block.prints = inside.into_iter().map(str::to_owned).collect();
            }
            other => bail!("line {}: a block of {other:?}", at + 1),
        }
    }
    for block in blocks.iter().filter(|block| block.fails) {
        ensure!(!block.prints.is_empty(), "line {}: a block that fails, and does not say how", block.line);
    }
    Ok(blocks)
}

/// Where commands are run: the repository, with the cluster's tools on the path.
pub struct Shell {
    tools: tempfile::TempDir,
    /// Where `mktemp` makes what a block keeps: the CA's key is among it.
    kept: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Shell {
    /// With kubectl and countersign as the cluster has them, and Helm if it is built.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let tools = tempfile::tempdir()?;
        for (name, program, first) in
            [("kubectl", "kube", "kubectl "), ("countersign", "countersign", ""), ("targets", "targets", "")]
        {
            let program = cluster.tool(program);
            write(&tools.path().join(name), &format!("exec '{}' {first}\"$@\"", program.display()))?;
        }
        if let Some(helm) = helm() {
            write(&tools.path().join("helm"), &format!("exec '{}' \"$@\"", helm.display()))?;
        }
        Ok(Self { tools, kept: tempfile::tempdir()?, kubeconfig: cluster.kubeconfig().to_owned() })
    }

    /// Runs one block; its output, if it did as it should.
    pub fn run(&self, block: &Block) -> Result<String> {
        let attempt = || {
            let (ended_well, output) = self.bash(&block.commands)?;
            ensure!(ended_well != block.fails, "it {}:\n{output}", if ended_well { "did not fail" } else { "failed" });
            for line in &block.prints {
                ensure!(output.contains(line), "{line:?} is not in what it printed:\n{output}");
            }
            Ok(output)
        };
        println!("line {}: {}", block.line, block.commands.replace('\n', " ; "));
        let began = Instant::now();
        let limit = if block.eventually { EVENTUALLY } else { Duration::ZERO };
        let what = format!("docs/operations.md, line {}: {}", block.line, block.commands);
        let done = until(limit, &what, attempt);
        println!("    after {:.1} s", began.elapsed().as_secs_f64());
        done
    }

    /// Whether commands ended well, and all they printed.
    pub fn bash(&self, commands: &str) -> Result<(bool, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("timeout");
        command.arg(LONGEST.as_secs().to_string()).args([
            "bash",
            "-euo",
            "pipefail",
            "-c",
            &format!("exec 2>&1\n{commands}"),
        ]);
        command.env("PATH", format!("{}:{path}", self.tools.path().display())).env("KUBECONFIG", &self.kubeconfig);
        command.env("TMPDIR", self.kept.path());
        command.env("NO_COLOR", "1").stdin(std::process::Stdio::null()).current_dir(root());
        let output = command.output().context("bash")?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The real Helm, which is built with the cluster.
pub fn helm() -> Option<PathBuf> {
    let built = std::env::var_os("CLUSTER_BUILT").map_or_else(|| root().join("target/cluster"), PathBuf::from);
    Some(built.join("bin/helm")).filter(|helm| helm.is_file())
}

fn write(file: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(file, format!("#!/bin/sh\n{script}\n")).with_context(|| file.display().to_string())?;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?)
}
