//! Is the caller the pod that it says it is? Pure.
//!
//! Called by `server::session` with the first message and again at each change of the picture. It must never tell a caller
//! whose UID or address it named: what it may know is only that they are not its own.

use std::net::IpAddr;

use countersign_identity::SpiffeId;

use crate::index::{Index, Member};

/// What a caller proved, and what it says.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The pod UID of its `Hello`: only said.
    pub pod_uid: String,
    /// The identity of its SVID: proven by the handshake.
    pub id: SpiffeId,
    /// Where the connection comes from, canonical.
    pub from: IpAddr,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No workload has this UID (yet).
    #[error("no workload has the pod UID of your Hello")]
    UnknownPod,
    /// The pod of this UID runs under another service account: a sibling, or a stranger, speaks for it.
    #[error("the pod UID of your Hello does not run under the service account of your certificate")]
    OtherAccount,
    /// The pod of this UID does not have this address: another pod of the same account speaks for it.
    #[error("the pod UID of your Hello does not have the address that this connection comes from")]
    OtherAddress,
}

impl Refusal {
    /// A bounded word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::UnknownPod => "unknown_pod",
            Refusal::OtherAccount => "other_account",
            Refusal::OtherAddress => "other_address",
        }
    }
}

/// The workload that the caller is.
pub fn admit<'a>(index: &'a Index, claim: &Claim) -> Result<&'a Member, Refusal> {
    let member = index.by_uid(&claim.pod_uid).ok_or(Refusal::UnknownPod)?;
    if member.id != claim.id {
        return Err(Refusal::OtherAccount);
    }
    if !member.workload.addresses.iter().any(|own| own.value == claim.from) {
        return Err(Refusal::OtherAddress);
    }
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small_mesh;

    fn admitted(uid: &str, account: &str, from: &str) -> Result<String, Refusal> {
        let index = small_mesh(&[]);
        let id = SpiffeId::parse(&format!("spiffe://{account}")).unwrap();
        let claim = Claim { pod_uid: uid.into(), id, from: from.parse().unwrap() };
        admit(&index, &claim).map(|member| member.name.to_string())
    }

    #[test]
    fn a_pod_is_let_in_from_each_of_its_addresses() {
        let backend = "cluster.local/ns/shop/sa/backend";
        assert_eq!(admitted("uid-backend-1", backend, "10.77.0.11").unwrap(), "shop/backend-1");
        assert_eq!(admitted("uid-backend-1", backend, "fd77::11").unwrap(), "shop/backend-1");
    }

    #[test]
    fn a_sibling_of_the_same_account_is_refused_by_its_address() {
        let backend = "cluster.local/ns/shop/sa/backend";
        assert_eq!(admitted("uid-backend-1", backend, "10.77.0.12"), Err(Refusal::OtherAddress));
    }

    #[test]
    fn another_account_is_refused_even_from_the_right_address() {
        for account in [
            "cluster.local/ns/shop/sa/frontend",
            "cluster.local/ns/other/sa/backend",
            "example.org/ns/shop/sa/backend",
            "cluster.local/ns/shop/sa/backend/x",
        ] {
            assert_eq!(admitted("uid-backend-1", account, "10.77.0.11"), Err(Refusal::OtherAccount), "{account}");
        }
    }

    #[test]
    fn an_unknown_uid_is_refused() {
        assert_eq!(admitted("", "cluster.local/ns/shop/sa/backend", "10.77.0.11"), Err(Refusal::UnknownPod));
        assert_eq!(admitted("uid-x", "cluster.local/ns/shop/sa/backend", "10.77.0.11"), Err(Refusal::UnknownPod));
    }
}
