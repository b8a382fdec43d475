//! Logs: JSON lines on stderr, their filter changeable while we run. Set up by `main`; `admin` changes the filter.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, reload};

const DEFAULT: &str = "info";

/// Reads and changes the filter of a running process.
#[derive(Clone)]
pub struct LogControl {
    show: Arc<dyn Fn() -> String + Send + Sync>,
    change: Arc<Change>,
}

type Change = dyn Fn(&str) -> Result<(), String> + Send + Sync;

impl LogControl {
    /// The filter in force.
    pub fn filter(&self) -> String {
        (self.show)()
    }

    /// Puts another filter in force, in the syntax of `RUST_LOG`; a bad one changes nothing.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        (self.change)(filter)
    }

    /// For a process whose logs somebody else has set up (tests, a program that embeds the controller).
    pub fn none() -> Self {
        Self { show: Arc::new(|| "not ours".to_owned()), change: Arc::new(|_| Err("the logs are not ours".to_owned())) }
    }
}

/// Starts logging for the whole process. `filter`: `None` = info.
pub fn init(filter: Option<&str>) -> Result<LogControl, String> {
    let filter = parse(filter.unwrap_or(DEFAULT))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_writer(std::io::stderr))
        .try_init()
        .map_err(|error| error.to_string())?;
    let shown = handle.clone();
    Ok(LogControl {
        show: Arc::new(move || shown.with_current(ToString::to_string).unwrap_or_default()),
        change: Arc::new(move |text| handle.reload(parse(text)?).map_err(|error| error.to_string())),
    })
}

fn parse(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(text).map_err(|error| format!("log filter {text:?}: {error}"))
}
