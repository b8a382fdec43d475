//! What becomes of a change that does not fit the rest: its file is held back, all others go on. Pure.
//!
//! Called by `source::dir` when something changed. It must never let a new file take away what an old one holds: between
//! one that changed and one that did not, the change gives way; between two changes, the later in order of path.

use std::collections::BTreeMap;

use countersign_identity::TrustDomain;

use crate::index::{BuildError, Conflict, Index};
use crate::model::{Object, Problem};

/// Held back one at a time at first, since one culprit may explain many conflicts; then all that are to blame at once.
const SINGLE_STEPS: usize = 32;

/// One file's part.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Its path.
    pub file: &'a str,
    /// In force until now.
    pub good: Option<&'a [Object]>,
    /// Read since, not in force yet.
    pub candidate: Option<&'a [Object]>,
}

/// What can be put in force.
#[derive(Debug)]
pub struct Merged {
    /// Of all candidates but those held back, and of what was good elsewhere.
    pub index: Index,
    /// Why a file's candidate is not in force.
    pub held: BTreeMap<String, Problem>,
}

/// Nothing can be put in force: all stays as it was.
#[derive(Debug)]
pub struct Stuck {
    /// Why, beside what is held back.
    pub why: Problem,
    /// Why a file's candidate would not be in force either way.
    pub held: BTreeMap<String, Problem>,
}

/// Finds the largest change that fits.
pub fn merge(parts: &[Part<'_>], trust_domain: &TrustDomain) -> Result<Merged, Stuck> {
    let mut held: BTreeMap<String, Problem> = BTreeMap::new();
    let mut step = 0;
    loop {
        let mut objects: Vec<&Object> = Vec::new();
        for part in parts {
            let in_force = match part.candidate {
                Some(candidate) if !held.contains_key(part.file) => Some(candidate),
                _ => part.good,
            };
            objects.extend(in_force.into_iter().flatten());
        }
        match Index::build(&objects, trust_domain) {
            Ok(index) => return Ok(Merged { index, held }),
            Err(BuildError::NoMesh) => {
                let why = Problem::of_file(".", "holds no good Mesh object: nobody knows where the mesh begins");
                return Err(Stuck { why, held });
            }
            Err(BuildError::Conflicts(conflicts)) => {
                let before = held.len();
                for conflict in &conflicts {
                    if let Some(side) = culprit(conflict, parts, &held) {
                        held.insert(side.file.clone(), side.clone());
                    }
                    if step < SINGLE_STEPS && held.len() > before {
                        break;
                    }
                }
                if held.len() == before {
                    let why = conflicts.into_iter().flat_map(|conflict| conflict.sides).next_back();
                    let why = why.unwrap_or_else(|| Problem::of_file(".", "cannot be put in force"));
                    return Err(Stuck { why, held });
                }
                step += 1;
            }
        }
    }
}

/// The side that gives way: the last one whose file changed and is not held back yet.
fn culprit<'a>(conflict: &'a Conflict, parts: &[Part<'_>], held: &BTreeMap<String, Problem>) -> Option<&'a Problem> {
    let changed = |side: &&Problem| {
        let part = parts.iter().find(|part| part.file == side.file);
        part.is_some_and(|part| part.candidate.is_some()) && !held.contains_key(&side.file)
    };
    conflict.sides.iter().rev().find(changed)
}
