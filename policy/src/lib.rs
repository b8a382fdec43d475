//! May: authorization rules, from text to decision. Pure.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decide;
mod model;
mod modes;
mod parse;
mod principal;
mod set;
mod trace;

pub use decide::{Attempt, Audited, Decision, Reason, RuleRef, Source, decide};
pub use model::{API_VERSION, Action, FEATURE_LEVEL, KIND, Mode, Policy};
pub use modes::{Egress, LABEL_EGRESS, LABEL_MTLS, LABEL_POSTURE, LabelProblem, Modes, Mtls, Posture};
pub use parse::{
    Document, MAX_DOCUMENTS, MAX_ENTRIES, MAX_RULES, MAX_TEXT_BYTES, ParseError, documents, parse, parse_document,
};
pub use principal::{Principal, PrincipalError};
pub use set::{Condition, PolicySet, Received};
pub use trace::{Attempted, Failed, Trace, Try, trace};
