//! What the kernel says of processes: processor time, context switches, memory; and of the machine as a whole.
//!
//! Called around every run. It must never count a process twice, and never guess: what cannot be read is an error.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// What processes used since they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Seconds in user space.
    pub user: f64,
    /// Seconds in the kernel on their behalf.
    pub system: f64,
    /// Times that a thread gave the processor up by itself: it waited.
    pub switches: u64,
}

impl Usage {
    /// What was used since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            user: (self.user - before.user).max(0.0),
            system: (self.system - before.system).max(0.0),
            switches: self.switches.saturating_sub(before.switches),
        }
    }

    /// User and system.
    #[must_use]
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Proportional: what is shared is divided among those who share it.
    pub pss: u64,
}

/// These processes and all that they started.
///
/// # Errors
/// If /proc cannot be read.
pub fn tree(roots: &[u32]) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in everybody()? {
        if let Ok(stat) = Stat::read(process) {
            children.entry(stat.parent).or_default().push(process);
        }
    }
    let (mut found, mut next) = (Vec::new(), roots.to_vec());
    while let Some(process) = next.pop() {
        next.extend(children.get(&process).into_iter().flatten());
        found.push(process);
    }
    Ok(found)
}

/// Everything visible here: inside the kit's namespaces, nobody else's processes.
fn everybody() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Sums over processes. Their threads' nanoseconds where the kernel counts them, split as the coarser clock ticks are.
///
/// # Errors
/// If one of them is gone.
pub fn usage(processes: &[u32]) -> Result<Usage> {
    let mut sum = Usage::default();
    for process in processes {
        let stat = Stat::read(*process)?;
        let ticks = (stat.user + stat.system).max(f64::MIN_POSITIVE);
        let (exact, switches) = threads(*process)?;
        // Threads that have ended are in the ticks only.
        let whole = exact.filter(|exact| ticks - exact < 0.05).unwrap_or(ticks);
        sum.user += whole * stat.user / ticks;
        sum.system += whole * stat.system / ticks;
        sum.switches += switches;
    }
    Ok(sum)
}

/// Seconds by the scheduler's own count, if it keeps one, and voluntary switches.
fn threads(process: u32) -> Result<(Option<f64>, u64)> {
    let (mut nanos, mut counted, mut switches) = (0_u64, true, 0);
    let folder = format!("/proc/{process}/task");
    for thread in fs::read_dir(&folder).with_context(|| folder.clone())?.flatten() {
        let schedstat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        match schedstat.split(' ').next().and_then(|text| text.parse::<u64>().ok()) {
            Some(ran) => nanos += ran,
            None => counted = false,
        }
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(((counted && nanos > 0).then_some(nanos as f64 / 1e9), switches))
}

/// Memory of processes together.
///
/// # Errors
/// If one is gone, or belongs to somebody else.
pub fn memory(processes: &[u32]) -> Result<Memory> {
    let mut sum = Memory::default();
    for process in processes {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        sum.rss += 1024 * field(&text, "Rss:").with_context(|| path.clone())?;
        sum.pss += 1024 * field(&text, "Pss:").with_context(|| path.clone())?;
    }
    Ok(sum)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Processor seconds of the machine, and of ours.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    busy: f64,
    stolen: f64,
    ours: f64,
}

impl Noise {
    /// Now. Interrupts are left out: the kernel does not say whose they are.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat")?;
        let ticks: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0.0) / ticks_per_second();
        let ours = everybody()?.into_iter().filter_map(|process| Stat::read(process).ok());
        Ok(Self { busy: at(0) + at(1) + at(2), stolen: at(7), ours: ours.map(|stat| stat.user + stat.system).sum() })
    }

    /// Processors that others kept busy since `before`, on average, with those that the host took away.
    #[must_use]
    pub fn foreign_since(self, before: Self, seconds: f64) -> f64 {
        let others = (self.busy - before.busy) - (self.ours - before.ours);
        (others.max(0.0) + self.stolen - before.stolen) / seconds.max(1e-3)
    }
}

/// The fields of /proc/PID/stat that we use (proc(5)).
struct Stat {
    parent: u32,
    user: f64,
    system: f64,
}

impl Stat {
    fn read(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/stat");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name, in brackets, may hold anything.
        let (_, rest) = text.rsplit_once(") ").with_context(|| path.clone())?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number =
            |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).with_context(|| path.clone());
        Ok(Self {
            parent: u32::try_from(number(1)?)?,
            user: number(11)? as f64 / ticks_per_second(),
            system: number(12)? as f64 / ticks_per_second(),
        })
    }
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn own_work_is_counted_and_is_no_noise() {
        let own = [std::process::id()];
        let before = usage(&own).unwrap();
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed().as_millis() < 200 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let used = usage(&own).unwrap().since(before);
        assert!(used.total() > 0.02 && used.total() < 10.0, "{used:?}");
    }

    #[test]
    fn children_are_in_the_tree_and_have_memory() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = tree(&[std::process::id()]).unwrap();
        let memory = memory(&[child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()) && found.contains(&std::process::id()));
        assert!(memory.unwrap().rss > 0);
        assert!(usage(&[child.id()]).is_err());
    }
}
