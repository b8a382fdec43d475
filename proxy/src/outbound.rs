//! The outbound journey: the pod's own app goes out. Reads top to bottom; each step demands the proof of the last.
//!
//! original destination -> who is there, pick an endpoint (`route`) -> egress -> a kept link, or dial and TLS connect,
//! expecting that endpoint's identity -> `OPEN` -> relay -> one account. A failed or refused TLS attempt never becomes
//! plaintext: the app's connection is reset.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use countersign_credentials::{HandshakeError, PeerError};
use countersign_identity::SpiffeId;
use countersign_policy::Principal;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::account::Account;
use crate::denials::Ground;
use crate::listen::{Place, original_destination, reset};
use crate::on_wake::on_wake;
use crate::outcome::{Blame, Direction, Security};
use crate::permit::{Asking, Denial, DenialId, Permit};
use crate::pool::Key;
use crate::proxy::{Cut, Proxy, Refusal};
use crate::relay::{self, End, Flow, Held, PlainEnd, Side};
use crate::route::{Hop, Route};
use crate::tls::{self, Generation, Peer};
use crate::turns::Turn;
use crate::wire::frame::{self, Status};
use crate::wire::link::Link;

/// Why the journey ends other than well. The app's connection is reset.
enum Stop {
    Refused(Refusal),
    Denied(Denial),
    Cut(Cut),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Denial> for Stop {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// Serves one connection of the app to its end. `_place` is its share of the connection bound.
pub async fn serve(proxy: Arc<Proxy>, mut app: TcpStream, source: SocketAddr, _place: Place) {
    let named = original_destination(&app, source);
    if named.as_ref().is_ok_and(|named| proxy.own.is_self_proof(*named)) && proxy.proof.heard(&mut app).await {
        return reset(app); // we dialled it ourselves: the redirect is proven
    }
    let mut account = Account::open(&proxy, Direction::Outbound, source);
    let stop = match travel(&proxy, &mut app, named, &mut account).await {
        Ok(()) => return account.close("ok", Blame::Nobody, ""),
        Err(stop) => stop,
    };
    reset(app);
    match stop {
        Stop::Refused(refusal) => refused(&proxy, account, refusal),
        Stop::Denied(denial) => account.denied(&denial),
        Stop::Cut(cut) => cut.close(account),
    }
}

/// A refusal is remembered as a denial is, under an id; a failure is told, and no more.
fn refused(proxy: &Proxy, account: Box<Account>, refusal: Refusal) {
    let (Some(ground), Some(address)) = (ground(refusal.result), account.outcome.destination) else {
        return account.close(refusal.result, refusal.blame, refusal.detail);
    };
    let asking = Asking::Out { meshed: false, address };
    account.refused(&asking, ground, refusal, &proxy.rules());
}

/// Why we did not let the app out. None: something failed on the way, the other side said no, or it is a guard or a bound, the same for
/// everybody.
fn ground(result: &str) -> Option<Ground> {
    Some(match result {
        "unknown_destination" => Ground::UnknownDestination,
        "no_ready_endpoint" => Ground::NobodyReady,
        "no_answer" => Ground::NoAnswer,
        "lookups_exceeded" => Ground::TooManyAddresses,
        "identity_mismatch" => Ground::SomebodyElse,
        "handshake_failed" => Ground::HandshakeOut,
        "no_svid" | "svid_expired" => Ground::OwnSvid,
        _ => return None,
    })
}

async fn travel(
    proxy: &Arc<Proxy>,
    app: &mut TcpStream,
    named: io::Result<SocketAddr>,
    account: &mut Account,
) -> Result<(), Stop> {
    let mut route = Route::new(outside_destination(proxy, named, account)?);
    let mut held = Held::default();
    loop {
        match route.next_hop(proxy).await? {
            Hop::Own(address) => return own(proxy, app, address, held, account).await,
            Hop::Plain { address, inside } => {
                account.endpoint(address, None);
                if plain(proxy, app, address, inside, &mut route, account).await? {
                    return Ok(());
                }
            }
            Hop::Meshed { address, id } => {
                account.endpoint(address, Some(&id));
                let Some(ready) = link_to(proxy, address, &id, &mut route).await? else {
                    continue;
                };
                route.worked();
                match converse(proxy, app, ready, &mut held, account).await? {
                    Spoken::Well => return Ok(()),
                    Spoken::Unheard(why) => route.retry(address, why, held.is_whole())?,
                }
            }
        }
    }
}

fn outside_destination(
    proxy: &Proxy,
    named: io::Result<SocketAddr>,
    account: &mut Account,
) -> Result<SocketAddr, Refusal> {
    let bad = |detail: String| Refusal { result: "bad_destination", blame: Blame::App, detail };
    let named = named.map_err(|e| bad(format!("no original destination: {e}")))?;
    account.destination(named);
    proxy.own.outbound(named).map_err(|why| bad(why.to_string()))
}

/// A link on which `OPEN` may be said.
struct Ready {
    permit: Permit,
    link: Box<Link>,
    peer: Arc<Peer>,
    key: Key,
    reused: bool,
}

/// A kept link, or a new one; `None`: this endpoint failed, and another may be tried.
async fn link_to(proxy: &Proxy, address: SocketAddr, id: &SpiffeId, route: &mut Route) -> Result<Option<Ready>, Stop> {
    let permit = proxy.permits.admit(Asking::Out { meshed: true, address })?;
    let credentials = proxy.credentials()?;
    let key = Key { address, id: id.clone(), credentials: Generation::of(&credentials) };
    let (kept, _turn) = match proxy.pool.take(&key, &credentials, Instant::now()) {
        Some(kept) => (Some(kept), None),
        None => {
            let turn = turn(proxy, address).await?;
            (proxy.pool.take(&key, &credentials, Instant::now()), Some(turn)) // one may have come back meanwhile
        }
    };
    if let Some(kept) = kept {
        route.seal();
        proxy.metrics.pool_take("reused");
        return Ok(Some(Ready { permit, link: kept.link, peer: kept.peer, key, reused: true }));
    }
    proxy.metrics.pool_take("empty");
    let io = match proxy.dial_peer(address).await {
        Ok(io) => io,
        Err(refusal) => {
            route.failed(address, refusal)?;
            return Ok(None);
        }
    };
    route.seal();
    let began = Instant::now();
    let connected = tls::connect(io, &credentials, id, proxy.config.limits.handshake).await;
    let (result, group) = match &connected {
        Ok((_, peer)) => ("ok", Some(peer.group)),
        Err(e) => (e.label(), None),
    };
    proxy.metrics.handshake(Direction::Outbound, result, group, began.elapsed());
    let error = match connected {
        Ok((link, peer)) => {
            return Ok(Some(Ready { permit, link, peer: Arc::new(peer), key, reused: false }));
        }
        Err(error) => error,
    };
    let refusal = |result| Refusal { result, blame: Blame::Peer, detail: error.to_string() };
    match &error {
        HandshakeError::Peer(why) if matches!(**why, PeerError::Unexpected { .. }) => {
            route.mistaken(proxy, refusal("identity_mismatch"))?;
        }
        HandshakeError::Io(_) | HandshakeError::Timeout(_) => route.failed(address, refusal("handshake_failed"))?,
        _ => {
            route.note_failure();
            return Err(refusal("handshake_failed").into());
        }
    }
    Ok(None)
}

/// So many handshakes at a time and no more: the server side sheds what is beyond its bound for one source.
async fn turn(proxy: &Proxy, address: SocketAddr) -> Result<Turn, Refusal> {
    let limit = proxy.config.limits.connect + proxy.config.limits.handshake;
    let turn = proxy.turns.wait(address.ip(), limit).await;
    turn.ok_or_else(|| Refusal::us("overloaded", format!("no turn at a handshake with {} in time", address.ip())))
}

/// How a conversation over a link ended, if it did not end badly.
enum Spoken {
    /// To its end.
    Well,
    /// The server side proved that no byte reached the app.
    Unheard(Refusal),
}

/// One application connection over a link. After a good end the link is kept.
async fn converse(
    proxy: &Arc<Proxy>,
    app: &mut TcpStream,
    ready: Ready,
    held: &mut Held,
    account: &mut Account,
) -> Result<Spoken, Stop> {
    let Ready { permit, mut link, peer, key, reused } = ready;
    let _proven_anew = proxy.reauth.dialled(&peer, key.address);
    account.peer(&peer, reused);
    account.permit(&permit);
    account.outcome.upstream = Some(key.address);
    let mut flow = Flow::default();
    let ends = pin!(sleep_until(peer.ends()));
    let end = {
        let cut = pin!(proxy.cut(&permit, &peer, ends));
        let cut = on_wake(cut);
        tokio::select! {
            biased;
            cut = cut => Err(cut),
            end = relay::relay(&permit, Side::Client, app, &mut link, held, &mut flow) => Ok(end),
        }
    };
    (account.outcome.sent, account.outcome.received) = (flow.sent, flow.received);
    let refused = |result, blame, detail: String| Refusal { result, blame, detail };
    let (spoken, last_frame) = match end {
        Ok(End::Done) => {
            proxy.pool.put(key, link, peer, Instant::now());
            return Ok(Spoken::Well);
        }
        Ok(End::PeerGone(error)) => {
            let (result, detail) = error.map_or(("peer_gone", String::new()), |e| (e.label(), e.to_string()));
            return Err(refused(result, Blame::Peer, detail).into());
        }
        Ok(End::PeerReset) => (Err(refused("peer_reset", Blame::Peer, String::new()).into()), None),
        Ok(End::AppReset) => (Err(refused("app_reset", Blame::App, String::new()).into()), Some(frame::RST)),
        Ok(End::Refused(Status::Denied(id))) => {
            account.outcome.denial_id = Some(id);
            let detail = format!("{} denied it: {}", peer.id.id(), DenialId(id));
            (Err(refused("denied_by_peer", Blame::Policy, detail).into()), None)
        }
        Ok(End::Refused(status)) => (Ok(Spoken::Unheard(refused(status.label(), Blame::Peer, String::new()))), None),
        Ok(End::Closing) => (Ok(Spoken::Unheard(refused("closing", Blame::Peer, String::new()))), None),
        Err(cut) => (Err(Stop::Cut(cut)), Some(frame::RST)),
    };
    if let Some(frame) = last_frame {
        let _ = link.seal(&[&frame]);
    }
    // Bounded in bytes and time; the app need not wait for it.
    tokio::spawn(link.close());
    spoken
}

/// To an address that is not meshed: bytes pass, if egress allows it. False: this endpoint failed, and another may be tried.
async fn plain(
    proxy: &Proxy,
    app: &mut TcpStream,
    address: SocketAddr,
    inside: bool,
    route: &mut Route,
    account: &mut Account,
) -> Result<bool, Stop> {
    let permit = proxy.permits.admit(Asking::Out { meshed: false, address })?;
    account.permit(&permit);
    account.outcome.source_id = proxy.own_id();
    let mut server = match proxy.dial_peer(address).await {
        Ok(server) => server,
        Err(refusal) => {
            route.failed(address, refusal)?;
            return Ok(false);
        }
    };
    route.worked();
    if inside {
        proxy.metrics.plaintext_inside_mesh(address.ip());
    }
    account.outcome.upstream = Some(address);
    splice(proxy, &permit, app, Vec::new(), &mut server, account).await?;
    Ok(true)
}

/// To an address of this very pod: no network is crossed, and the own rules decide on the own identity. `held` is what another
/// endpoint did not take.
async fn own(
    proxy: &Proxy,
    app: &mut TcpStream,
    address: SocketAddr,
    held: Held,
    account: &mut Account,
) -> Result<(), Stop> {
    let bad = |detail: String| Refusal { result: "bad_destination", blame: Blame::App, detail };
    let own = proxy.own.inbound(address).map_err(|why| bad(why.to_string()))?;
    let destination = own.address();
    let credentials = proxy.credentials()?;
    let who = Principal::parse(credentials.id().as_str()).map_err(|e| bad(format!("own identity: {e}")))?;
    account.outcome.security = Security::Local;
    (account.outcome.tls_group, account.outcome.reused) = (None, false);
    account.outcome.source_id = Some(credentials.id().clone());
    account.outcome.destination_id = Some(credentials.id().clone());
    let asking = Asking::In { who: Some(Arc::new(who)), source_ip: destination.ip(), port: destination.port() };
    let permit = proxy.permits.admit(asking)?;
    account.permit(&permit);
    let mut server = proxy.dial_app(own).await?;
    account.outcome.upstream = Some(destination);
    splice(proxy, &permit, app, held.into_bytes(), &mut server, account).await
}

async fn splice(
    proxy: &Proxy,
    permit: &Permit,
    app: &mut TcpStream,
    first: Vec<u8>,
    server: &mut TcpStream,
    account: &mut Account,
) -> Result<(), Stop> {
    let mut flow = Flow::default();
    let end = {
        let cut = pin!(proxy.cut_plain(permit));
        let cut = on_wake(cut);
        tokio::select! {
            biased;
            cut = cut => Err(cut),
            end = relay::splice(permit, app, first, server, &mut flow) => Ok(end),
        }
    };
    (account.outcome.sent, account.outcome.received) = (flow.sent, flow.received);
    let refused = |result, blame| Stop::Refused(Refusal { result, blame, detail: String::new() });
    match end {
        Ok(PlainEnd::Done) => return Ok(()),
        Ok(PlainEnd::ClientReset) => Err(refused("app_reset", Blame::App)),
        Ok(PlainEnd::ServerReset) => return Err(refused("peer_reset", Blame::Peer)),
        Err(cut) => Err(Stop::Cut(cut)),
    }
    .inspect_err(|_| crate::listen::reset_on_close(server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_has_a_ground_and_what_failed_has_none() {
        let refused = [
            ("unknown_destination", Ground::UnknownDestination),
            ("no_ready_endpoint", Ground::NobodyReady),
            ("no_answer", Ground::NoAnswer),
            ("lookups_exceeded", Ground::TooManyAddresses),
            ("identity_mismatch", Ground::SomebodyElse),
            ("handshake_failed", Ground::HandshakeOut),
            ("no_svid", Ground::OwnSvid),
            ("svid_expired", Ground::OwnSvid),
        ];
        for (result, expected) in refused {
            assert_eq!(ground(result), Some(expected), "{result}");
        }
        let failed = ["connect_failed", "app_unreachable", "draining", "closing", "peer_gone", "tls_broken"];
        let others = ["protocol_error", "app_reset", "peer_reset", "overloaded", "bad_destination", "denied_by_peer"];
        assert!(failed.iter().chain(&others).all(|result| ground(result).is_none()));
    }
}
