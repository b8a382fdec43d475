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
pub use modes::{
    Egress, LABEL_EGRESS, LABEL_MTLS, LABEL_POSTURE, LabelProblem, Modes, Mtls, Posture,
};
pub use parse::{Document, ParseError, documents, parse, parse_document};
pub use principal::{Principal, PrincipalError};
pub use set::{PolicySet, Received};
pub use trace::{Attempted, Trace, Try, trace};
