//! Connections within a budget: so many at once, so many of one source, each bounded by `http`; one more is closed, and counted
//! by the process.
//!
//! Called by `health` and `routes`. It must never spin when the process has no file left, and never outlive its caller: when
//! the serving is dropped, its connections end.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::http::{self, Answer};

/// Wait after an accept that failed for want of files or memory: the listener stays readable, so without it we would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// So many at once.
    pub most: usize,
    /// So many of one source, where the source is known: one that holds all it can must not keep the others out.
    pub each: usize,
    /// Longest life of one.
    pub life: Duration,
}

/// Connections that are open, by source; sources that hold none are not kept.
type Open = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection of a source; given back on drop.
struct Share(Open, IpAddr);

impl Share {
    fn take(open: &Open, source: IpAddr, each: usize) -> Option<Self> {
        let mut by_source = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_source.entry(source).or_insert(0);
        if *count >= each {
            return None;
        }
        *count += 1;
        Some(Self(Arc::clone(open), source))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut by_source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_source.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.1);
            }
        }
    }
}

/// Serves what `accept` brings, with its source if it has one, within the budget, until dropped.
pub async fn serve<IO, Accepted, Handled>(
    mut accept: impl FnMut() -> Accepted,
    budget: Budget,
    shed: impl Fn(),
    handle: impl Fn(Request<Incoming>) -> Handled + Clone + Send + 'static,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Accepted: Future<Output = io::Result<(IO, Option<IpAddr>)>>,
    Handled: Future<Output = Answer> + Send + 'static,
{
    let mut open = JoinSet::new();
    let by_source = Open::default();
    loop {
        let (io, source) = match accept().await {
            Ok(accepted) => accepted,
            // The client gave up before we came to it: nothing is wrong here, and no reason to pause for others.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => continue,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while open.try_join_next().is_some() {}
        let share = source.map(|source| Share::take(&by_source, source.to_canonical(), budget.each));
        if open.len() >= budget.most || matches!(share, Some(None)) {
            shed();
            continue;
        }
        let handle = handle.clone();
        open.spawn(async move {
            let _share = share;
            http::serve(io, budget.life, handle).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::Mutex;
    use tokio::time::Instant;

    // The name means tokio's here.
    use super::{Budget, ErrorKind, Incoming, IpAddr, PAUSE, Request, http, io, serve};
    use crate::http::Answer;

    const ONE: Budget = Budget { most: 1, each: 1, life: http::LIFE };

    /// Accepts what waits, then nothing more.
    async fn next(waiting: &Mutex<VecDeque<io::Result<DuplexStream>>>) -> io::Result<(DuplexStream, Option<IpAddr>)> {
        let next = waiting.lock().await.pop_front();
        match next {
            Some(next) => next.map(|io| (io, None)),
            None => std::future::pending().await,
        }
    }

    async fn fine(_: Request<Incoming>) -> Answer {
        http::text(StatusCode::OK, "fine\n")
    }

    async fn answer(mut far: DuplexStream) -> String {
        let _ = far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn an_accept_that_fails_is_not_tried_again_at_once() {
        let began = Instant::now();
        let (far, near) = duplex(1024);
        let no_file = || Err(io::Error::from_raw_os_error(24));
        let gone = Err(ErrorKind::ConnectionAborted.into());
        let waiting = Mutex::new(VecDeque::from([no_file(), gone, no_file(), Ok(near)]));
        tokio::select! {
            () = serve(|| next(&waiting), ONE, || (), fine) => unreachable!("it serves for ever"),
            answer = answer(far) => assert!(answer.ends_with("fine\n"), "{answer}"),
        }
        assert!((2 * PAUSE..3 * PAUSE).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_the_budget_is_closed_and_counted_and_a_place_comes_back() {
        let (first_far, first) = duplex(1024);
        let (mut second_far, second) = duplex(1024);
        let (third_far, third) = duplex(1024);
        let shed = AtomicUsize::new(0);
        let (more, later) = tokio::sync::mpsc::channel(1);
        let later = Mutex::new(later);
        let accept = || async { Ok((later.lock().await.recv().await.unwrap(), None)) };
        let clients = async {
            more.send(first).await.unwrap();
            more.send(second).await.unwrap();
            assert_eq!(second_far.read(&mut [0; 1]).await.unwrap(), 0);
            assert!(answer(first_far).await.ends_with("fine\n"));
            more.send(third).await.unwrap();
            assert!(answer(third_far).await.ends_with("fine\n"));
        };
        tokio::select! {
            () = serve(accept, ONE, || _ = shed.fetch_add(1, Ordering::Relaxed), fine) => unreachable!(),
            () = clients => {}
        }
        assert_eq!(shed.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn one_source_that_holds_all_it_can_does_not_keep_out_another() {
        let (more, later) = tokio::sync::mpsc::channel(1);
        let later = Mutex::new(later);
        let accept = || async { Ok(later.lock().await.recv().await.unwrap()) };
        let budget = Budget { most: 8, each: 2, life: http::LIFE };
        let (rude, other) = (IpAddr::from([10, 0, 0, 9]), IpAddr::from([10, 0, 0, 1]));
        let clients = async {
            let mut held = Vec::new();
            for _ in 0..2 {
                let (far, near) = duplex(1024);
                more.send((near, Some(rude))).await.unwrap();
                held.push(far);
            }
            for spelled in [rude, "::ffff:10.0.0.9".parse().unwrap()] {
                let (mut far, near) = duplex(1024);
                more.send((near, Some(spelled))).await.unwrap();
                assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "shed");
            }
            let (far, near) = duplex(1024);
            more.send((near, Some(other))).await.unwrap();
            assert!(answer(far).await.ends_with("fine\n"));
            // Its share comes back.
            held.pop();
            loop {
                let (far, near) = duplex(1024);
                more.send((near, Some(rude))).await.unwrap();
                if answer(far).await.ends_with("fine\n") {
                    return;
                }
            }
        };
        tokio::select! {
            () = serve(accept, budget, || (), fine) => unreachable!(),
            () = clients => {}
        }
    }

    #[tokio::test]
    async fn connections_end_with_the_serving() {
        let (mut far, near) = duplex(1024);
        let server = tokio::spawn(async move {
            let waiting = Mutex::new(VecDeque::from([Ok(near)]));
            serve(|| next(&waiting), ONE, || (), fine).await;
        });
        far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        far.read_exact(&mut [0; 8]).await.unwrap();
        server.abort();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
    }
}
