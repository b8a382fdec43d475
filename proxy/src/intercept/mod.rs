//! Interception: the rules that send a pod's connections through the proxy, and the guards on what they let in.
//!
//! `install`, `remove` and `check` are the proxy's sub-command `intercept` (`command`), run by an init container that holds
//! NET_ADMIN; the serving proxy holds no capability and calls only `guard`. Own netlink encoding: the image holds no `nft`.
//! It must never touch rules that are not in our own table.

mod batch;
pub mod command;
mod dump;
mod expression;
pub mod guard;
mod netlink;
mod ruleset;
mod socket;

use rustix::io::Errno;

use batch::{Batch, Step};
use socket::{Socket, SocketError};

pub use dump::Difference;
pub use ruleset::{BadRules, Family, MAX_SKIPPED, Rules};

/// Why rules could not be set or read. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// Ours to say before the kernel was asked.
    #[error(transparent)]
    BadRules(#[from] BadRules),
    /// No capability.
    #[error(
        "not permitted to change the rules of this network namespace: it needs the capability NET_ADMIN (in a pod: \
         securityContext.capabilities.add: [NET_ADMIN] of the init container; on a machine: run as root)"
    )]
    NotPermitted,
    /// No nf_tables at all.
    #[error(
        "this kernel has no nf_tables ({0}): it needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET; on the node, as root: \
         modprobe nf_tables"
    )]
    NoNfTables(std::io::Error),
    /// nf_tables, but not all we use of it.
    #[error("this kernel cannot do `{what}`: it lacks a module; on the node, as root: modprobe {module}")]
    NoModule {
        /// The chain or rule.
        what: String,
        /// The likely module.
        module: String,
    },
    /// Anything else that the kernel did not want.
    #[error("the kernel refused `{what}`: {errno}")]
    Refused {
        /// The chain or rule.
        what: String,
        /// Why.
        errno: std::io::Error,
    },
    /// The conversation itself failed.
    #[error("netlink: {0}")]
    Broken(std::io::Error),
}

/// Puts the rules in force in this network namespace, at once, in place of any that an earlier call or version set.
///
/// # Errors
/// See [`InterceptError`]; what was in force stays in force.
pub fn install(rules: &Rules) -> Result<(), InterceptError> {
    rules.judge()?;
    transact(&batch::install(rules.family, &rules.chains()), rules.family)
}

/// Takes our rules away; no error where there are none.
///
/// # Errors
/// See [`InterceptError`].
pub fn remove() -> Result<(), InterceptError> {
    let family = Family::of_this_kernel();
    transact(&batch::remove(family), family)
}

/// Reads our rules back and tells every way in which they are not these; none = they are in force as asked. Rules of
/// others, in their own tables, are not looked at. Needs NET_ADMIN as well.
///
/// # Errors
/// If they cannot be read.
pub fn check(rules: &Rules) -> Result<Vec<Difference>, InterceptError> {
    rules.judge()?;
    let family = rules.family;
    let found = Socket::open().and_then(|socket| socket.read(family)).map_err(|error| explain(error, &[], family))?;
    Ok(found.compare(&rules.chains()))
}

fn transact(batch: &Batch, family: Family) -> Result<(), InterceptError> {
    Socket::open().and_then(|socket| socket.transact(batch)).map_err(|error| explain(error, &batch.steps, family))
}

/// What it means, and what to do.
fn explain(error: SocketError, steps: &[Step], family: Family) -> InterceptError {
    let (number, errno) = match error {
        SocketError::Broken(error) => return explain_broken(error),
        SocketError::Refused(number, errno) => (number, errno),
    };
    let step = steps.get(number).unwrap_or(&Step::Table);
    let what = match step {
        Step::Table => format!("table {} {}", family.word(), ruleset::TABLE),
        Step::Chain(name) => format!("chain {name}"),
        Step::Rule(rule) => rule.to_string(),
    };
    match (errno, step) {
        (Errno::PERM | Errno::ACCESS, _) => InterceptError::NotPermitted,
        // The subsystem is not there (batch), or knows no such message (listing), or not this family.
        (Errno::OPNOTSUPP | Errno::INVAL | Errno::AFNOSUPPORT, Step::Table) => InterceptError::NoNfTables(errno.into()),
        (Errno::NOENT | Errno::OPNOTSUPP, Step::Chain(_)) => {
            InterceptError::NoModule { what, module: "nft_chain_nat".into() }
        }
        (Errno::NOENT | Errno::OPNOTSUPP, Step::Rule(rule)) => {
            let module = match rule.expressions.iter().rev().map(|last| last.name()).find(|name| MODULES.contains(name))
            {
                Some("fib") if family == Family::V4 => "nft_fib_ipv4".into(),
                Some("fib") => "nft_fib_inet".into(),
                Some("reject") if family == Family::V4 => "nft_reject_ipv4".into(),
                Some("reject") => "nft_reject_inet".into(),
                Some(name) => format!("nft_{name}"),
                None => "nf_tables".into(),
            };
            InterceptError::NoModule { what, module }
        }
        _ => InterceptError::Refused { what, errno: errno.into() },
    }
}

/// Expressions that may be modules of their own.
const MODULES: [&str; 4] = ["fib", "redir", "ct", "reject"];

fn explain_broken(error: std::io::Error) -> InterceptError {
    match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => InterceptError::NotPermitted,
        Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => InterceptError::NoNfTables(error),
        _ => InterceptError::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use super::ruleset::tests::rules;
    use super::*;

    #[test]
    fn errors_name_what_to_do() {
        let steps = batch::install(Family::Both, &rules().chains()).steps;
        let say = |number, errno| explain(SocketError::Refused(number, errno), &steps, Family::Both).to_string();
        assert!(say(0, Errno::PERM).contains("NET_ADMIN"));
        assert!(say(0, Errno::OPNOTSUPP).contains("modprobe nf_tables"));
        assert!(say(4, Errno::NOENT).contains("`chain prerouting`") && say(4, Errno::NOENT).contains("nft_chain_nat"));
        let step = |text: &str| {
            steps.iter().position(|step| matches!(step, Step::Rule(rule) if rule.text.contains(text))).unwrap()
        };
        assert!(say(step("fib"), Errno::NOENT).contains("modprobe nft_fib_inet"));
        assert!(say(step("redirect"), Errno::NOENT).contains("modprobe nft_redir"));
        assert!(say(step("invalid"), Errno::NOENT).contains("modprobe nft_ct"));
        assert!(say(step("reject"), Errno::NOENT).contains("modprobe nft_reject_inet"));
        assert!(say(step("skuid"), Errno::NOMEM).contains("`meta skuid 1337 return`"));
        let broken = explain(SocketError::Broken(Errno::PROTONOSUPPORT.into()), &steps, Family::Both).to_string();
        assert!(broken.contains("modprobe nf_tables"), "{broken}");
    }
}
