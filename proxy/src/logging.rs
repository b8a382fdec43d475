//! The process's own log: JSON lines on stderr, whose level can be changed while it runs.
//!
//! `main` starts it first; `admin` reads and changes the filter. It must never log a key, a token or payload: nothing here
//! knows any, and nobody may put one into an event.

use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Longest filter accepted, in bytes.
pub const MAX_FILTER: usize = 1024;
/// The filter where none was given.
pub const DEFAULT_FILTER: &str = "info";

/// Why a filter was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It is longer than any honest one.
    #[error("a filter has at most {MAX_FILTER} bytes")]
    TooLong,
    /// It is no filter.
    #[error("not a filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process's log was started elsewhere, or is gone.
    #[error("the log cannot be changed: {0}")]
    Reload(#[from] reload::Error),
    /// Started twice.
    #[error("the log was started before: {0}")]
    Init(#[from] tracing_subscriber::util::TryInitError),
}

/// A handle on the log's filter; clones share it.
#[derive(Clone, Debug)]
pub struct Log(Arc<reload::Handle<EnvFilter, Registry>>);

impl Log {
    /// Starts the process's log with a filter in the syntax of `RUST_LOG`.
    ///
    /// # Errors
    /// When the filter is none, or a log was started before.
    pub fn start(filter: &str) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
        tracing_subscriber::registry().with(filter).with(lines).try_init()?;
        Ok(Self(Arc::new(handle)))
    }

    /// A handle that moves a filter which no subscriber uses: for tests of those who hold one, which cannot each start the
    /// process's log.
    #[cfg(test)]
    pub(crate) fn detached(filter: &str) -> Result<Self, LogError> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        // The handle works as long as the layer lives.
        std::mem::forget(layer);
        Ok(Self(Arc::new(handle)))
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another filter in force at once; on an error the old one stays.
    ///
    /// # Errors
    /// When the filter is none.
    pub fn change(&self, filter: &str) -> Result<(), LogError> {
        Ok(self.0.reload(parse(filter)?)?)
    }
}

/// Reads a filter. Field values are compared as they are, never as regular expressions.
///
/// # Errors
/// When it is none.
pub fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    if filter.len() > MAX_FILTER {
        return Err(LogError::TooLong);
    }
    Ok(EnvFilter::builder().with_regex(false).parse(filter)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_and_the_old_one_stays() {
        let log = Log::detached("info").unwrap();
        assert!(log.change("countersign_proxy=notalevel").is_err());
        assert_eq!(log.filter(), "info");
        log.change("warn,countersign_proxy=debug").unwrap();
        assert!(log.filter().contains("countersign_proxy=debug"));
    }

    #[test]
    fn an_endless_filter_is_refused() {
        assert!(matches!(parse(&"a,".repeat(MAX_FILTER)), Err(LogError::TooLong)));
    }
}
