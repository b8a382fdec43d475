//! The inbound journey: somebody outside the pod reaches one of the app's ports. Reads top to bottom; each step
//! demands the proof of the last.
//!
//! original destination -> which road (the port's rules, the source) -> first bytes -> TLS accept -> `Peer`; then for
//! each `OPEN`: decide -> `Permit` -> dial the app -> `STATUS` -> relay -> one account.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use countersign_policy::{Mtls, PolicySet};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::account::Account;
use crate::denials::Ground;
use crate::discovery::{Identity, Who};
use crate::first_bytes::{self, First, Replay, What};
use crate::intercept::guard::InboundDestination;
use crate::listen::{Place, original_destination, reset};
use crate::on_wake::on_wake;
use crate::outcome::{Blame, Direction};
use crate::permit::Asking;
use crate::proof;
use crate::proxy::{Proxy, Refusal};
use crate::reauth;
use crate::relay::{self, End, Flow, Held, PlainEnd, Side};
use crate::tls::{self, Accepted, Peer};
use crate::wire::frame::{self, Event, ProtocolError, Status, Took};
use crate::wire::link::{Link, LinkError, Step};

/// Serves one accepted connection to its end. `_place` is its share of the connection bound.
pub async fn serve(proxy: Arc<Proxy>, mut io: TcpStream, source: SocketAddr, _place: Place) {
    let named = original_destination(&io, source);
    if named.as_ref().is_ok_and(|named| proxy.own.is_self_proof(*named)) {
        drop(_place); // it has a bound of its own
        return Box::pin(proof::inbound::answer(&proxy.proof, &proxy.health, io, source.ip())).await;
    }
    let mut account = Account::open(&proxy, Direction::Inbound, source);
    let destination = match own_destination(&proxy, named, &mut account) {
        Ok(destination) => destination,
        Err(refusal) => return refuse(io, account, refusal),
    };
    let rules = proxy.rules();
    let road = road(&proxy, rules.as_deref(), source, destination.port()).await;
    if road == Road::Plain {
        return Box::pin(plain(&proxy, io, Vec::new(), destination, source, account)).await;
    }
    let Ok(slot) = proxy.slots.take(source.ip()) else {
        proxy.metrics.shed("handshake_slots");
        return refuse(io, account, Refusal::us("overloaded", "no handshake slot is free"));
    };
    let first = first_bytes::read(&mut io, Instant::now() + road.patience(&proxy)).await;
    match proceed(road, &first) {
        Proceed::Mutual => {}
        Proceed::Plain => {
            drop(slot);
            return Box::pin(plain(&proxy, io, first.bytes, destination, source, account)).await;
        }
        Proceed::Over(refusal) => return refuse(io, account, refusal),
        Proceed::Refuse(refusal, ground) => {
            reset(io);
            return explained(&rules, account, (destination, source), refusal, ground);
        }
    }
    // What ends before the relay begins is boxed here and below: its state must not live in the future that relays afterwards.
    match Box::pin(accept(&proxy, io, first)).await {
        Ok(Accepted::Link(link, peer)) => {
            drop((slot, rules));
            carry(&proxy, link, peer, destination, source, account).await;
        }
        // It keeps its slot: as many at once as there may be handshakes.
        Ok(Accepted::Again(asked)) => match Box::pin(reauth::serve(&proxy, *asked)).await {
            Ok(()) => account.close("reauthenticated", Blame::Nobody, ""),
            Err(why) => account.close("reauth_refused", Blame::Peer, why.to_string()),
        },
        Err((refusal, ground)) => explained(&rules, account, (destination, source), refusal, ground),
    }
}

/// Refused before a rule could be asked: remembered as a denial is, under an id, beside the rules that led to it.
fn explained(
    rules: &Option<Arc<PolicySet>>,
    account: Box<Account>,
    (destination, source): (InboundDestination, SocketAddr),
    refusal: Refusal,
    ground: Ground,
) {
    // It has shown no identity, whatever it may have.
    let asking = Asking::In { who: None, source_ip: source.ip(), port: destination.port() };
    account.refused(&asking, ground, refusal, rules);
}

/// Where it was going, if that is an address and port of this pod that a neighbour may name.
fn own_destination(
    proxy: &Proxy,
    named: io::Result<SocketAddr>,
    account: &mut Account,
) -> Result<InboundDestination, Refusal> {
    let bad = |detail: String| Refusal { result: "bad_destination", blame: Blame::Peer, detail };
    let named = named.map_err(|e| bad(format!("no original destination: {e}")))?;
    account.destination(named);
    let destination = proxy.own.inbound(named).map_err(|why| bad(why.to_string()))?;
    proxy.proof.seen(); // no port of ours: only the redirect brings it here
    Ok(destination)
}

/// What the port's rules and the source's address leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Road {
    /// Our mutual TLS, or nothing; and why.
    Mutual(Ground),
    /// Our mutual TLS if it comes at once; else untouched, with no identity.
    Either,
    /// Untouched, with no identity, without waiting for a byte.
    Plain,
}

impl Road {
    fn patience(self, proxy: &Proxy) -> std::time::Duration {
        match self {
            Self::Either => proxy.config.limits.permissive_hello,
            Self::Mutual(_) | Self::Plain => proxy.config.limits.first_bytes,
        }
    }
}

/// Strict asks nobody. Permissive, and a Strict port that an Allow opens to `unauthenticated`, ask who the source is.
async fn road(proxy: &Proxy, rules: Option<&PolicySet>, source: SocketAddr, port: u16) -> Road {
    let Some(rules) = rules else {
        return Road::Mutual(Ground::NoRules); // no rules known: denied, but after the handshake, by STATUS
    };
    let permissive = rules.modes().mtls == Mtls::Permissive;
    if !permissive && !rules.opens_unauthenticated(port) {
        return Road::Mutual(Ground::Strict);
    }
    match proxy.discovery.who(SocketAddr::new(source.ip(), 0)).await {
        Ok(Who::Outside | Who::NotMeshed) => Road::Plain,
        Ok(Who::Endpoint(endpoint)) => match endpoint.identity {
            Identity::Meshed(_) => Road::Mutual(Ground::MeshedSource),
            Identity::NotMeshed => Road::Plain,
        },
        Ok(Who::Unknown | Who::Service(_)) | Err(_) => {
            if permissive {
                Road::Either
            } else {
                Road::Mutual(Ground::UnknownSource)
            }
        }
    }
}

enum Proceed {
    Mutual,
    Plain,
    /// It ended by itself.
    Over(Refusal),
    Refuse(Refusal, Ground),
}

fn proceed(road: Road, first: &First) -> Proceed {
    let refusal = |result, detail: &str| Refusal { result, blame: Blame::Peer, detail: detail.into() };
    let refuse = |result, detail, ground| Proceed::Refuse(refusal(result, detail), ground);
    match (first.what, road) {
        (What::Ours, _) => Proceed::Mutual,
        (What::Reset, _) | (What::Ended, Road::Mutual(_)) => {
            Proceed::Over(refusal("closed_early", "the peer ended before its first bytes told what it wants"))
        }
        // One that says nothing and waits for an answer, too.
        (_, Road::Either | Road::Plain) => Proceed::Plain,
        (What::NotTls, Road::Mutual(ground)) => {
            refuse("plaintext_refused", "plaintext where only mutual TLS is accepted", ground)
        }
        (What::OtherTls, Road::Mutual(ground)) => {
            refuse("foreign_tls_refused", "TLS that is not the mesh's mutual TLS", ground)
        }
        (What::Silent, Road::Mutual(ground)) => refuse("silent", "no first bytes in time", ground),
    }
}

async fn accept(proxy: &Proxy, io: TcpStream, first: First) -> Result<Accepted, (Refusal, Ground)> {
    let credentials = proxy.credentials().map_err(|refusal| (refusal, Ground::OwnSvid))?;
    let began = Instant::now();
    let accepted = tls::accept(Replay::new(first.bytes, io), &credentials, proxy.config.limits.handshake).await;
    let (result, group) = match &accepted {
        Ok(Accepted::Link(_, peer)) => ("ok", Some(peer.group)),
        Ok(Accepted::Again(_)) => ("ok", None),
        Err(e) => (e.label(), None),
    };
    proxy.metrics.handshake(Direction::Inbound, result, group, began.elapsed());
    accepted.map_err(|e| {
        let refusal = Refusal { result: "handshake_failed", blame: Blame::Peer, detail: e.to_string() };
        (refusal, Ground::Handshake)
    })
}

/// One application connection after another over one link, until it ends.
async fn carry(
    proxy: &Arc<Proxy>,
    mut link: Box<Link>,
    peer: Arc<Peer>,
    destination: InboundDestination,
    source: SocketAddr,
    account: Box<Account>,
) {
    let asking = Asking::of(&peer, source, destination);
    let _proven_anew = proxy.reauth.accepted(&peer, asking);
    let mut timer = pin!(sleep_until(peer.ends()));
    let mut first = Some(account);
    loop {
        match next_open(proxy, &mut link, &peer, timer.as_mut()).await {
            Ok(()) => {}
            Err(over) => {
                if let Some(account) = first {
                    account.close(over.result, over.blame, over.detail);
                }
                if over.polite {
                    Box::pin(link.close()).await;
                }
                return;
            }
        }
        let reused = first.is_none();
        let mut account = first.take().unwrap_or_else(|| Account::open(proxy, Direction::Inbound, source));
        account.outcome.destination = Some(destination.address());
        account.peer(&peer, reused);
        timer.as_mut().reset(peer.ends());
        link = match application(proxy, link, &peer, destination, source, account, timer.as_mut()).await {
            Some(link) => link,
            None => return,
        };
    }
}

/// Why a link carries no further `OPEN`.
struct Over {
    result: &'static str,
    blame: Blame,
    detail: String,
    /// Whether the peer may still read what we said last.
    polite: bool,
}

/// Waits for the next `OPEN`, while idle: here, and only here, `CLOSING` may be said.
async fn next_open(proxy: &Proxy, link: &mut Link, peer: &Peer, mut timer: Pin<&mut Sleep>) -> Result<(), Over> {
    timer.as_mut().reset(peer.ends().min(Instant::now() + proxy.config.limits.link_idle));
    let over = |result, blame, detail: String, polite| Err(Over { result, blame, detail, polite });
    tokio::select! {
        biased;
        // Before any byte is read, as in `Proxy::cut`: an `OPEN` that comes with the end of a certificate is too late.
        () = timer => {}
        () = proxy.drain.started() => {}
        () = proxy.distrusts(peer) => {}
        opened = opened(link) => match opened {
            Ok(true) if peer.expired() => {}
            Ok(true) => return Ok(()),
            Ok(false) => return over("closed_idle", Blame::Nobody, String::new(), true),
            Err(e) => return over(e.label(), Blame::Peer, e.to_string(), false),
        },
    }
    let _ = link.seal(&[&frame::CLOSING]);
    over("closed_idle", Blame::Nobody, String::new(), true)
}

/// True: `OPEN`. False: the peer ended the link well, or at least between two frames.
async fn opened(link: &mut Link) -> Result<bool, LinkError> {
    poll_fn(|cx| {
        loop {
            // Answers that TLS itself owes, as to a KeyUpdate.
            if let Poll::Ready(Err(e)) = link.poll_flush(cx) {
                return Poll::Ready(Err(e));
            }
            let mut opened = false;
            let step = ready!(link.poll_events(cx, &mut |event| match event {
                Event::Open => {
                    opened = true;
                    Ok(Took::Stop)
                }
                other => Err(ProtocolError::OutOfTurn(other.name())),
            }))?;
            if opened || step == Step::Ended {
                return Poll::Ready(Ok(opened));
            }
        }
    })
    .await
}

/// One `OPEN`: decide, dial, relay. Gives the link back if it may carry another.
async fn application(
    proxy: &Arc<Proxy>,
    mut link: Box<Link>,
    peer: &Peer,
    destination: InboundDestination,
    source: SocketAddr,
    mut account: Box<Account>,
    ends: Pin<&mut Sleep>,
) -> Option<Box<Link>> {
    let permit = match proxy.permits.admit(Asking::of(peer, source, destination)) {
        Ok(permit) => permit,
        Err(denial) => {
            account.denied(&denial);
            answer(link, Status::Denied(denial.id)).await;
            return None;
        }
    };
    account.permit(&permit);
    if proxy.drain.draining() {
        account.close("draining", Blame::Us, "this proxy is going away");
        answer(link, Status::Draining).await;
        return None;
    }
    let mut app = match proxy.dial_app(destination).await {
        Ok(app) => app,
        Err(refusal) => {
            let status = if refusal.blame == Blame::Us { Status::Overloaded } else { Status::Unreachable };
            account.close(refusal.result, refusal.blame, refusal.detail);
            answer(link, status).await;
            return None;
        }
    };
    account.outcome.upstream = Some(destination.address());
    let (mut flow, mut held) = (Flow::default(), Held::default());
    let end = {
        let cut = pin!(proxy.cut(&permit, peer, ends));
        let cut = on_wake(cut);
        tokio::select! {
            biased;
            cut = cut => Err(cut),
            end = relay::relay(&permit, Side::Server, &mut app, &mut link, &mut held, &mut flow) => Ok(end),
        }
    };
    (account.outcome.sent, account.outcome.received) = (flow.sent, flow.received);
    match end {
        Ok(End::Done) => {
            account.close("ok", Blame::Nobody, "");
            return Some(link);
        }
        Ok(End::PeerGone(error)) => {
            reset(app);
            let (result, detail) = error.map_or(("peer_gone", String::new()), |e| (e.label(), e.to_string()));
            account.close(result, Blame::Peer, detail);
            return None;
        }
        Ok(End::PeerReset) => {
            reset(app);
            account.close("peer_reset", Blame::Peer, "");
        }
        Ok(End::AppReset | End::Refused(_) | End::Closing) => {
            account.close("app_reset", Blame::App, "");
            let _ = link.seal(&[&held.reset()]);
        }
        Err(cut) => {
            reset(app);
            cut.close(account);
            let _ = link.seal(&[&held.reset()]);
        }
    }
    Box::pin(link.close()).await;
    None
}

/// Says no, and sees to it that it arrives.
async fn answer(mut link: Box<Link>, status: Status) {
    if link.seal(&[&frame::status(status)]).is_ok() {
        Box::pin(link.close()).await;
    }
}

/// No identity: decided as such, and relayed untouched.
async fn plain(
    proxy: &Arc<Proxy>,
    mut io: TcpStream,
    first: Vec<u8>,
    destination: InboundDestination,
    source: SocketAddr,
    mut account: Box<Account>,
) {
    account.outcome.destination_id = proxy.own_id();
    let asking = Asking::In { who: None, source_ip: source.ip(), port: destination.port() };
    let permit = match proxy.permits.admit(asking) {
        Ok(permit) => permit,
        Err(denial) => {
            reset(io);
            return account.denied(&denial);
        }
    };
    account.permit(&permit);
    let mut app = match proxy.dial_app(destination).await {
        Ok(app) => app,
        Err(refusal) => return refuse(io, account, refusal),
    };
    account.outcome.upstream = Some(destination.address());
    let mut flow = Flow::default();
    let end = {
        let cut = pin!(proxy.cut_plain(&permit));
        let cut = on_wake(cut);
        tokio::select! {
            biased;
            cut = cut => Err(cut),
            end = relay::splice(&permit, &mut io, first, &mut app, &mut flow) => Ok(end),
        }
    };
    (account.outcome.sent, account.outcome.received) = (flow.sent, flow.received);
    if !matches!(end, Ok(PlainEnd::Done)) {
        reset(io);
        reset(app);
    }
    match end {
        Ok(PlainEnd::Done) => account.close("ok", Blame::Nobody, ""),
        Ok(PlainEnd::ClientReset) => account.close("peer_reset", Blame::Peer, ""),
        Ok(PlainEnd::ServerReset) => account.close("app_reset", Blame::App, ""),
        Err(cut) => cut.close(account),
    }
}

fn refuse(io: TcpStream, account: Box<Account>, refusal: Refusal) {
    reset(io);
    account.close(refusal.result, refusal.blame, refusal.detail);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proceeds(road: Road, what: What) -> Option<bool> {
        match proceed(road, &First { bytes: Vec::new(), what }) {
            Proceed::Mutual => Some(true),
            Proceed::Plain => Some(false),
            Proceed::Over(_) | Proceed::Refuse(..) => None,
        }
    }

    #[test]
    fn only_our_tls_takes_the_road_of_mutual_tls() {
        for what in [What::OtherTls, What::NotTls, What::Silent, What::Ended, What::Reset] {
            assert_eq!(proceeds(Road::Mutual(Ground::Strict), what), None, "{what:?}");
        }
        assert_eq!(proceeds(Road::Mutual(Ground::Strict), What::Ours), Some(true));
    }

    #[test]
    fn a_refusal_has_its_word_and_the_ground_of_its_road() {
        let words =
            [(What::NotTls, "plaintext_refused"), (What::OtherTls, "foreign_tls_refused"), (What::Silent, "silent")];
        for ground in [Ground::NoRules, Ground::Strict, Ground::MeshedSource, Ground::UnknownSource] {
            for (what, word) in words {
                let refused = match proceed(Road::Mutual(ground), &First { bytes: Vec::new(), what }) {
                    Proceed::Refuse(refusal, ground) => Some((refusal.result, refusal.blame, ground)),
                    Proceed::Mutual | Proceed::Plain | Proceed::Over(_) => None,
                };
                assert_eq!(refused, Some((word, Blame::Peer, ground)), "{what:?}");
            }
        }
    }

    #[test]
    fn where_both_are_taken_whatever_is_not_our_tls_is_relayed_untouched() {
        for what in [What::OtherTls, What::NotTls, What::Silent, What::Ended] {
            assert_eq!(proceeds(Road::Either, what), Some(false), "{what:?}");
        }
        assert_eq!(proceeds(Road::Either, What::Ours), Some(true));
        assert_eq!(proceeds(Road::Either, What::Reset), None);
    }
}
