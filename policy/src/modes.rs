//! What a namespace's labels say: how strict its workloads are. Read by the controller (labels) and by the
//! proxy (words from the stream). A word that nobody knows is never more open than the strictest.

use std::collections::BTreeMap;

use serde::Serialize;

/// Namespace label: `Strict` (default) or `Permissive`.
pub const LABEL_MTLS: &str = "countersign.dev/mtls";
/// Namespace label: `Enforce` (default), `Audit` or `Off`.
pub const LABEL_POSTURE: &str = "countersign.dev/posture";
/// Namespace label: `Any` (default) or `MeshOnly`.
pub const LABEL_EGRESS: &str = "countersign.dev/egress";

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, strictest $strictest:ident, $($(#[$word_doc:meta])* $word:ident),+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        pub enum $name {
            $($(#[$word_doc])* $word),+
        }

        impl $name {
            /// Every value, for whoever lists the words.
            pub const ALL: &'static [Self] = &[$(Self::$word),+];

            /// The word as spelled in labels and on the stream.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word)),+ }
            }

            /// Reads a word, in exactly this spelling.
            pub fn known(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }

            /// Reads a word; one that is not known is the strictest.
            pub fn from_word(word: &str) -> Self {
                Self::known(word).unwrap_or(Self::$strictest)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What comes in without our mTLS.
    Mtls, strictest Strict,
    /// Refused, but where an Allow says `unauthenticated`. The default.
    Strict,
    /// Relayed without an identity when the source has no sidecar; rules decide it like any other source.
    Permissive
}

words! {
    /// What becomes of what the rules deny. Concerns rules only, never certificates.
    Posture, strictest Enforce,
    /// It is refused. The default.
    Enforce,
    /// It is admitted, and reported.
    Audit,
    /// Rules are not asked.
    Off
}

words! {
    /// Where the workload may connect to.
    Egress, strictest MeshOnly,
    /// Anywhere. The default.
    Any,
    /// Only to those who prove an identity of the mesh.
    MeshOnly
}

/// The three words that bind a workload, from its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Modes {
    /// Plaintext from outside.
    pub mtls: Mtls,
    /// Would-be denials.
    pub posture: Posture,
    /// Destinations.
    pub egress: Egress,
}

impl Default for Modes {
    /// What no label at all means: Strict, Enforce, Any.
    fn default() -> Self {
        Self { mtls: Mtls::Strict, posture: Posture::Enforce, egress: Egress::Any }
    }
}

/// A label whose value is not one of its words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {label}: {value:?} is not one of {expected}; taken as {taken_as}")]
pub struct LabelProblem {
    /// The label's key.
    pub label: &'static str,
    /// What it says, at most 63 characters of it.
    pub value: String,
    /// The words it may say.
    pub expected: &'static str,
    /// The strictest word, which holds instead.
    pub taken_as: &'static str,
}

impl Modes {
    /// Reads a namespace's labels: an absent one has its default, a bad one its strictest value and a problem to report.
    /// Other labels are not looked at.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> (Self, Vec<LabelProblem>) {
        let mut modes = Self::default();
        let mut problems = Vec::new();
        let mut problem = |label, value: &str, expected, taken_as| {
            let value = value.chars().take(63).collect();
            problems.push(LabelProblem { label, value, expected, taken_as });
        };
        if let Some(word) = labels.get(LABEL_MTLS) {
            modes.mtls = Mtls::from_word(word);
            if Mtls::known(word).is_none() {
                problem(LABEL_MTLS, word, "Strict, Permissive", modes.mtls.as_str());
            }
        }
        if let Some(word) = labels.get(LABEL_POSTURE) {
            modes.posture = Posture::from_word(word);
            if Posture::known(word).is_none() {
                problem(LABEL_POSTURE, word, "Enforce, Audit, Off", modes.posture.as_str());
            }
        }
        if let Some(word) = labels.get(LABEL_EGRESS) {
            modes.egress = Egress::from_word(word);
            if Egress::known(word).is_none() {
                problem(LABEL_EGRESS, word, "Any, MeshOnly", modes.egress.as_str());
            }
        }
        (modes, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn absent_labels_are_strict_enforce_any() {
        let (modes, problems) = Modes::from_labels(&labels(&[("team", "shop")]));
        assert_eq!(modes, Modes::default());
        assert_eq!((modes.mtls, modes.posture, modes.egress), (Mtls::Strict, Posture::Enforce, Egress::Any));
        assert!(problems.is_empty());
    }

    #[test]
    fn bad_words_are_the_strictest_and_reported() {
        for bad in ["", "permissive", "off", "any", "Off ", "Permissive,Strict"] {
            let (modes, problems) =
                Modes::from_labels(&labels(&[(LABEL_MTLS, bad), (LABEL_POSTURE, bad), (LABEL_EGRESS, bad)]));
            assert_eq!((modes.mtls, modes.posture, modes.egress), (Mtls::Strict, Posture::Enforce, Egress::MeshOnly));
            assert_eq!(problems.len(), 3, "{bad:?}");
        }
        let (_, problems) = Modes::from_labels(&labels(&[(LABEL_POSTURE, "audit")]));
        assert_eq!(
            problems[0].to_string(),
            "label countersign.dev/posture: \"audit\" is not one of Enforce, Audit, Off; taken as Enforce"
        );
    }

    #[test]
    fn one_bad_label_leaves_the_others_as_spelled() {
        let (modes, problems) = Modes::from_labels(&labels(&[(LABEL_MTLS, "Permissive"), (LABEL_POSTURE, "nonsense")]));
        assert_eq!((modes.mtls, modes.posture, modes.egress), (Mtls::Permissive, Posture::Enforce, Egress::Any));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn words_survive_the_stream() {
        for m in Mtls::ALL {
            assert_eq!(Mtls::from_word(m.as_str()), *m);
        }
        for p in Posture::ALL {
            assert_eq!(Posture::from_word(p.as_str()), *p);
        }
        for e in Egress::ALL {
            assert_eq!(Egress::from_word(e.as_str()), *e);
        }
    }
}
