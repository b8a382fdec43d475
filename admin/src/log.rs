//! The process's own log: JSON lines on stderr, whose level can be changed while it runs.
//!
//! `main` starts it first; `routes` reads and changes the filter. It must never log a key, a token or payload: nothing here
//! knows any, and nobody may put one into an event.

use std::sync::Arc;

use serde_json::json;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::http::{self, Answer};

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
    /// It speaks of spans or fields, which would be taken for the name of a target.
    #[error("not a filter: spans and fields are not known here")]
    Spans,
    /// The process's log is gone.
    #[error("the log cannot be changed: {0}")]
    Reload(#[from] reload::Error),
    /// Started twice.
    #[error("the log was started before: {0}")]
    Init(#[from] tracing_subscriber::util::TryInitError),
    /// See [`Log::none`].
    #[error("the log is not ours to change")]
    NotOurs,
}

/// A handle on the log's filter; clones share it.
#[derive(Clone, Debug)]
pub struct Log(Option<Arc<reload::Handle<Targets, Registry>>>);

impl Log {
    /// Starts the process's log with a filter: a level, or several `TARGET=LEVEL` separated by commas, or both, as in `RUST_LOG`.
    ///
    /// # Errors
    /// When the filter is none, or a log was started before.
    pub fn start(filter: &str) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let lines = lines.with_current_span(false).with_span_list(false).with_writer(std::io::stderr);
        tracing_subscriber::registry().with(filter).with(lines).try_init()?;
        Ok(Self(Some(Arc::new(handle))))
    }

    /// For a process whose log somebody else has set up: a program that runs the CA or the controller inside itself.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether it can be changed here.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.0.is_some()
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        match &self.0 {
            Some(handle) => handle.with_current(ToString::to_string).unwrap_or_default(),
            None => "not ours".to_owned(),
        }
    }

    /// Puts another filter in force at once; on an error the old one stays.
    ///
    /// # Errors
    /// When the filter is none, or the log not ours.
    pub fn change(&self, filter: &str) -> Result<(), LogError> {
        let handle = self.0.as_ref().ok_or(LogError::NotOurs)?;
        Ok(handle.reload(parse(filter)?)?)
    }
}

/// Reads a filter. We have no spans, so it knows none: what does would bring regular expressions into each process.
///
/// # Errors
/// When it is none.
pub fn parse(filter: &str) -> Result<Targets, LogError> {
    if filter.len() > MAX_FILTER {
        return Err(LogError::TooLong);
    }
    if filter.contains(['[', ']', '{', '}']) {
        return Err(LogError::Spans);
    }
    Ok(filter.parse::<Targets>()?)
}

/// `/log` as `{"filter": ...}`.
pub(crate) fn as_json(filter: &str) -> Answer {
    http::json(&json!({ "filter": filter }))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A filter that no subscriber uses: tests cannot each start the process's log.
    pub fn detached(filter: &str) -> Log {
        let (layer, handle) = reload::Layer::new(parse(filter).unwrap());
        // The handle works as long as the layer lives.
        std::mem::forget(layer);
        Log(Some(Arc::new(handle)))
    }

    #[test]
    fn a_filter_that_is_none_is_refused_and_the_old_one_stays() {
        let log = detached("info");
        assert!(matches!(log.change("countersign_proxy=notalevel"), Err(LogError::Filter(_))));
        for none in ["[span]=debug", "countersign_proxy[{field}]=debug", "countersign_proxy[{field=word}]=debug"] {
            assert!(matches!(log.change(none), Err(LogError::Spans)), "{none}");
        }
        assert_eq!(log.filter(), "info");
        log.change("warn,countersign_proxy=debug").unwrap();
        assert!(log.filter().contains("countersign_proxy=debug"));
    }

    #[test]
    fn an_endless_filter_is_refused() {
        assert!(matches!(parse(&"a,".repeat(MAX_FILTER)), Err(LogError::TooLong)));
    }

    #[test]
    fn a_log_of_somebody_else_is_not_changed() {
        assert!(matches!(Log::none().change("debug"), Err(LogError::NotOurs)));
    }
}
