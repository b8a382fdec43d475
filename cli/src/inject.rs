//! `countersign inject` and `uninject`: what the injector does at admission, done to files.
//!
//! Called by `main`. It must never print half of a result: what goes to standard output is meant for `kubectl apply -f -`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use countersign_injector::mesh::{Mesh, MeshArgs};
use countersign_injector::offline::{self, Task};
use countersign_injector::probes::Token;
use serde_json::json;

use crate::input;
use crate::output::{self, Format, Verdict};

/// Larger than any file of manifests should be.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Documents without a pod pass byte by byte. Of the others the meaning is kept, comments and layout are not. A pod \
without the label countersign.dev/inject gets it, so that the mesh's roots come into its namespace. A pod with HTTP lifecycle hooks gets a random token, \
which is kept when what this printed is injected again: inject such a file once, not on every apply."
)]
pub struct InjectArgs {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub mesh: MeshArgs,
}

#[derive(Debug, clap::Args)]
pub struct UninjectArgs {
    #[command(flatten)]
    pub files: Files,
}

#[derive(Debug, clap::Args)]
pub struct Files {
    /// YAML or JSON of Kubernetes objects, several documents in a file; - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub filenames: Vec<PathBuf>,
}

/// Puts sidecars in.
pub fn inject(args: &InjectArgs, format: Format) -> Result<Verdict> {
    let mesh = Mesh::check(&args.mesh)?;
    let token = Token::random().context("the token of hooks")?;
    run(Task::Inject(&mesh, &token), &args.files, format)
}

/// Takes them out.
pub fn uninject(args: &UninjectArgs, format: Format) -> Result<Verdict> {
    run(Task::Uninject, &args.files, format)
}

fn run(task: Task<'_>, files: &Files, format: Format) -> Result<Verdict> {
    let (mut text, mut notes, mut changed) = (String::new(), Vec::new(), 0);
    for file in &files.filenames {
        let name = file.display().to_string();
        let done = match offline::run(task, &name, &input::text(file, MAX_BYTES).with_context(|| name.clone())?) {
            Ok(done) => done,
            Err(error) => {
                eprintln!("countersign: {error}");
                return Ok(Verdict::No);
            }
        };
        if !text.is_empty() && !done.text.starts_with("---") {
            text.push_str(if text.ends_with('\n') { "---\n" } else { "\n---\n" });
        }
        text.push_str(&done.text);
        notes.extend(done.notes);
        changed += done.changed;
    }
    if format == Format::Table {
        notes.iter().for_each(|note| eprintln!("countersign: {note}"));
    }
    output::either(format, &json!({ "changed": changed, "notes": notes, "text": text }), || text.clone())?;
    Ok(Verdict::Yes)
}
