//! Who can prove an open connection anew, and who cannot.

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::first_bytes::Replay;
use crate::testing::{TestCa, links_between, tcp_pair};
use crate::tls::{Accepted, accept};

const LIMIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(100);
const LONG: Duration = Duration::from_secs(3600);

/// Two ends of one open connection between `frontend` and `backend`, and who makes further certificates.
struct Open {
    ca: TestCa,
    client: Peer,
    server: Peer,
}

impl Open {
    async fn new() -> Self {
        Self::of(TestCa::new("cluster.local")).await
    }

    async fn of(ca: TestCa) -> Self {
        let (frontend, backend) = (ca.credentials("frontend", SHORT), ca.credentials("backend", SHORT));
        let ((_, client), (_, server)) = links_between(tcp_pair().await, &frontend, &backend, LIMIT).await;
        assert_eq!(client.bond.name, server.bond.name, "both ends know its name");
        Self { ca, client, server }
    }

    /// A second connection by `account`, who speaks for `old`; the accepting end has heard it, and the dialling end waits.
    async fn claimed(
        &self,
        account: &str,
        life: Duration,
        old: &Peer,
    ) -> (Claim, impl Future<Output = Result<(), ReauthError>>) {
        let (frontend, backend) = (self.ca.credentials(account, life), self.ca.credentials("backend", life));
        let (dialled, accepted) = tcp_pair().await;
        let mut asking = Box::pin(async move { ask(dialled, &frontend, old, LIMIT).await });
        let accepting = async {
            match accept(Replay::new(Vec::new(), accepted), &backend, LIMIT).await.unwrap() {
                Accepted::Again(asked) => asked.claim().await.unwrap(),
                Accepted::Link(..) => panic!("another protocol was agreed"),
            }
        };
        let claim = tokio::select! {
            early = &mut asking => panic!("{early:?}"),
            claim = accepting => claim,
        };
        (claim, asking)
    }

    fn left(&self) -> [u64; 2] {
        let now = rustls::pki_types::UnixTime::now().as_secs();
        [&self.client, &self.server].map(|peer| peer.not_after().as_secs() - now)
    }

    fn is_as_it_was(&self) -> bool {
        self.left().iter().all(|left| *left <= SHORT.as_secs())
    }
}

#[tokio::test]
async fn both_ends_stand_on_the_new_leaves_afterwards() {
    let open = Open::new().await;
    let (claim, asking) = open.claimed("frontend", LONG, &open.client).await;
    assert_eq!(claim.name(), open.server.bond().name());
    let (settled, asked) = tokio::join!(claim.settle(&open.server, || Ok(())), asking);
    settled.unwrap();
    asked.unwrap();
    let [client, server] = open.left();
    assert!(client > LONG.as_secs() - 60 && client == server, "{client} {server}");
    assert!(open.client.ends() > tokio::time::Instant::now() + LONG / 2);
    assert!(open.server.ends() > tokio::time::Instant::now() + LONG / 2);
}

#[tokio::test]
async fn the_deadline_is_never_earlier_than_it_was() {
    let open = Open::new().await;
    let before = (open.client.not_after(), open.server.not_after());
    let (claim, asking) = open.claimed("frontend", SHORT / 2, &open.client).await;
    let (settled, asked) = tokio::join!(claim.settle(&open.server, || Ok(())), asking);
    settled.unwrap();
    asked.unwrap();
    assert_eq!((open.client.not_after(), open.server.not_after()), before);
}

#[tokio::test]
async fn who_stole_a_name_proves_nothing_with_it() {
    let open = Open::new().await;
    // Of the same identity, at an end of another connection: all but the key.
    let mut other = Open::new().await.client;
    other.id = open.client.id.clone();
    other.bond.name = open.client.bond.name;
    let (claim, asking) = open.claimed("frontend", LONG, &other).await;
    assert_eq!(claim.name(), open.server.bond().name());
    let (settled, asked) = tokio::join!(claim.settle(&open.server, || Ok(())), asking);
    assert!(matches!(settled, Err(ReauthError::Unproven)), "{settled:?}");
    assert!(matches!(asked, Err(ReauthError::Ended(_))), "{asked:?}");
    assert!(open.is_as_it_was());
}

#[tokio::test]
async fn what_was_said_on_one_connection_is_worth_nothing_on_another() {
    let open = Open::new().await;
    let (overheard, _asking) = open.claimed("frontend", LONG, &open.client).await;
    let (mut claim, _asking) = open.claimed("frontend", LONG, &open.client).await;
    claim.words = overheard.words;
    let settled = claim.settle(&open.server, || Ok(())).await;
    assert!(matches!(settled, Err(ReauthError::Unproven)), "{settled:?}");
    assert!(open.is_as_it_was());
}

#[tokio::test]
async fn neither_ends_words_can_be_said_by_the_other() {
    let open = Open::new().await;
    // As a client that says what only the server's end may say.
    let (mut claim, asking) = open.claimed("frontend", LONG, &open.client).await;
    claim.words = open.client.bond.say(SERVER, &claim.asked.new);
    let (settled, _) = tokio::join!(claim.settle(&open.server, || Ok(())), asking);
    assert!(matches!(settled, Err(ReauthError::Unproven)), "{settled:?}");
    // As a server that sends back what it heard.
    let (mut claim, asking) = open.claimed("frontend", LONG, &open.client).await;
    let echo = async {
        claim.asked.talk.say(&claim.words).await.unwrap();
    };
    let (asked, ()) = tokio::join!(asking, echo);
    assert!(matches!(asked, Err(ReauthError::Unproven)), "{asked:?}");
    assert!(open.is_as_it_was());
}

#[tokio::test]
async fn another_identity_is_refused_even_with_the_right_words() {
    let open = Open::new().await;
    let (mut claim, _asking) = open.claimed("intruder", LONG, &open.client).await;
    claim.words = open.server.bond.say(CLIENT, &claim.asked.new);
    let settled = claim.settle(&open.server, || Ok(())).await;
    assert!(matches!(settled, Err(ReauthError::OtherIdentity(_))), "{settled:?}");
    // The other way round: somebody else answers at the endpoint.
    let intruder = open.ca.credentials("intruder", LONG);
    let (dialled, accepted) = tcp_pair().await;
    let frontend = open.ca.credentials("frontend", LONG);
    let (asked, accepted) = tokio::join!(
        ask(dialled, &frontend, &open.client, LIMIT),
        accept(Replay::new(Vec::new(), accepted), &intruder, LIMIT)
    );
    assert!(matches!(asked, Err(ReauthError::Handshake(_))), "{asked:?}");
    assert!(accepted.is_err());
    assert!(open.is_as_it_was());
}

#[tokio::test]
async fn what_the_rules_deny_now_is_not_proven_anew() {
    let open = Open::new().await;
    let (claim, asking) = open.claimed("frontend", LONG, &open.client).await;
    let deny = || Err(ReauthError::Denied("no_rule_matched"));
    let (settled, asked) = tokio::join!(claim.settle(&open.server, deny), asking);
    assert!(matches!(settled, Err(ReauthError::Denied("no_rule_matched"))), "{settled:?}");
    assert!(matches!(asked, Err(ReauthError::Ended(_))), "{asked:?}");
    assert!(open.is_as_it_was());
}

#[tokio::test]
async fn one_that_says_too_little_is_cut() {
    let open = Open::new().await;
    let (frontend, backend) = (open.ca.credentials("frontend", LONG), open.ca.credentials("backend", LONG));
    let (dialled, accepted) = tcp_pair().await;
    let limit = Duration::from_millis(300);
    let dialling = countersign_credentials::connect(dialled, &frontend, &[ALPN_REAUTH], backend.id(), LIMIT);
    let (client, server) = tokio::join!(dialling, accept(Replay::new(Vec::new(), accepted), &backend, limit));
    let (mut client, _) = client.unwrap();
    client.write_all(&[0; 63]).await.unwrap();
    client.flush().await.unwrap();
    let Accepted::Again(asked) = server.unwrap() else { panic!("another protocol was agreed") };
    let claimed = asked.claim().await;
    assert!(matches!(claimed, Err(ReauthError::Late(_))), "{claimed:?}");
}

#[tokio::test]
async fn a_connection_is_behind_while_its_ends_stand_on_another_root_than_ours() {
    let open = Open::new().await;
    let frontend = open.ca.credentials("frontend", LONG);
    assert!(!open.client.behind(&frontend));
    let renewed = TestCa::new("cluster.local").credentials("frontend", LONG);
    assert!(open.client.behind(&renewed), "our own leaf is of a new root");
}

#[test]
fn connections_with_the_same_peer_share_its_chain_and_others_do_not() {
    let chain = |byte: u8| [CertificateDer::from(vec![byte; 400])];
    let (one, same, other) = (owned(Some(&chain(201))), owned(Some(&chain(201))), owned(Some(&chain(202))));
    assert!(Arc::ptr_eq(&one, &same));
    assert_eq!((&one[..], &other[..]), (&chain(201)[..], &chain(202)[..]));
    let all: Vec<_> = (0..200).map(|byte| owned(Some(&chain(byte)))).collect();
    assert!(SHARED.lock().unwrap().len() <= MOST_SHARED);
    assert!(all.iter().enumerate().all(|(n, chain)| chain[0][0] == u8::try_from(n).unwrap()));
}
