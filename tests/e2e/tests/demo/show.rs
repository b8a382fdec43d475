//! One run of the demo to its end, and what it said.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use countersign_kit::mesh::binary;
use serde_json::Value;

/// The demo measures latency: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Held while a demo runs.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `countersign demo`.
pub fn demo() -> Command {
    let mut command = Command::new(binary("countersign").unwrap());
    command.arg("demo");
    command
}

/// What it said, and its exit code.
#[derive(Debug)]
pub struct Shown {
    pub code: Option<i32>,
    claims: Vec<Value>,
}

impl Shown {
    pub fn read(code: Option<i32>, json: &str) -> Self {
        let value: Value = serde_json::from_str(json).unwrap_or_else(|why| panic!("{why}: {json}"));
        Self { code, claims: value["claims"].as_array().unwrap().clone() }
    }

    pub fn verdicts(&self) -> Vec<&str> {
        self.claims.iter().map(|claim| claim["verdict"].as_str().unwrap()).collect()
    }

    pub fn reason(&self, claim: usize) -> &str {
        self.claims[claim]["reason"].as_str().unwrap_or_default()
    }
}

/// Runs it; `None`, with the reason printed, where no namespaces are to be had.
pub fn ended(command: &mut Command) -> Option<Shown> {
    let done = command.output().unwrap();
    let shown = Shown::read(done.status.code(), &String::from_utf8_lossy(&done.stdout));
    if shown.claims.len() == 1 && shown.reason(0).contains("namespaces are not allowed") {
        println!("NOT RUN: {}", shown.reason(0));
        return None;
    }
    Some(shown)
}
