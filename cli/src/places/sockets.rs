//! Admin sockets on this machine: those named, and those in folders. Called by `places`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Place;
use crate::args::PlaceArgs;

/// Where sockets are looked for when nothing is said.
const DEFAULT_DIR: &str = "/run/countersign";
/// How deep below `--dir` sockets are looked for.
const DEPTH: usize = 4;

/// The sockets named, and those in the folders named.
pub fn find(args: &PlaceArgs) -> Result<Vec<Place>> {
    let mut all = args.sockets.clone();
    let default = [PathBuf::from(DEFAULT_DIR)];
    let dirs = if args.sockets.is_empty() && args.dirs.is_empty() { &default[..] } else { &args.dirs[..] };
    for dir in dirs {
        let before = all.len();
        walk(dir, DEPTH, &mut all).with_context(|| {
            let hint = if args.dirs.is_empty() {
                "; say --socket PATH or --dir FOLDER, or --kubectl in a cluster"
            } else {
                ""
            };
            format!("looking for sockets in {}{hint}", dir.display())
        })?;
        all[before..].sort();
    }
    if all.is_empty() {
        bail!("no admin socket found; say --socket PATH or --dir FOLDER, or --kubectl in a cluster");
    }
    Ok(all.into_iter().map(Place::Socket).collect())
}

fn walk(dir: &Path, depth: usize, sockets: &mut Vec<PathBuf>) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 1 {
            walk(&entry.path(), depth - 1, sockets)?;
        } else if kind.is_socket() && entry.path().extension().is_some_and(|extension| extension == "sock") {
            sockets.push(entry.path());
        }
    }
    Ok(())
}
