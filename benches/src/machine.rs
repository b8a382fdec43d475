//! The machine on which it was measured.

use std::fmt::{self, Display, Formatter};
use std::fs;

use serde::Serialize;

/// What a reader must know to judge the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// Bytes.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// It is a virtual one, by what the kernel says of the processor.
    pub virtual_machine: bool,
    /// Commit of this repository, if it is one.
    pub commit: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kilobytes = field(&memory, "MemTotal").split(' ').next().and_then(|n| n.parse::<u64>().ok());
        Self {
            processor: field(&cpu, "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kilobytes.unwrap_or_default() * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            virtual_machine: field(&cpu, "flags").split(' ').any(|flag| flag == "hypervisor"),
            commit: commit(),
        }
    }
}

impl Display for Machine {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.virtual_machine { ", a virtual machine" } else { "" };
        let gib = self.memory as f64 / f64::from(1 << 30);
        write!(to, "{} x {}{kind}, {gib:.1} GiB, Linux {}", self.processors, self.processor, self.kernel)?;
        if self.commit.is_empty() { Ok(()) } else { write!(to, ", commit {}", self.commit) }
    }
}

/// As `cargo xtask bench` found it.
fn commit() -> String {
    std::env::var("COUNTERSIGN_BENCH_COMMIT").unwrap_or_default()
}
