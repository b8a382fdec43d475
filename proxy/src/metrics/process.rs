//! `process_*`: what the kernel says of this process, read anew at each scrape.
//!
//! Called by `metrics` only. It must never fail a scrape: what cannot be read is left out.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks of `/proc/PID/stat` a second: `USER_HZ`, 100 on every architecture that this proxy is built for.
const USER_HZ: f64 = 100.0;

/// Reads `/proc/self`.
#[derive(Debug)]
pub struct Process {
    started: f64,
}

impl Process {
    pub fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: started.as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        gauge(&mut encoder, "process_start_time_seconds", "Unix time at which the process started", self.started)?;
        if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_seconds) {
            let counter = ConstCounter::new(seconds);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "CPU time used, user and system",
                None,
                counter.metric_type(),
            )?;
            counter.encode(metric)?;
        }
        if let Some(bytes) = std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes) {
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory held in RAM", bytes)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            let open = open.count().saturating_sub(1);
            #[allow(clippy::cast_precision_loss)]
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open as f64)?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if let Some(limit) = limit.current {
            #[allow(clippy::cast_precision_loss)]
            gauge(&mut encoder, "process_max_fds", "Limit of open file descriptors", limit as f64)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

/// Fields 14 and 15 of `/proc/PID/stat`, counted after the command's closing parenthesis (proc(5)).
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

/// `VmRSS:` of `/proc/PID/status`, in KiB there (proc(5)).
fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 4 0 9 10 11";
        assert_eq!(cpu_seconds(stat), Some(3.0));
    }

    #[test]
    fn resident_memory_is_given_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }
}
