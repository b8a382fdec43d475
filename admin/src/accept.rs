//! Connections within a budget: so many at once, each bounded by `http`; one more is closed, and counted by the process.
//!
//! Called by `health` and `routes`. It must never spin when the process has no file left, and never outlive its caller: when
//! the serving is dropped, its connections end.

use std::io::{self, ErrorKind};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::http::{self, Answer};

/// Wait after an accept that failed for want of files or memory: the listener stays readable, so without it we would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves what `accept` brings, `most` connections at once, until dropped.
pub async fn serve<IO, Accepted, Handled>(
    mut accept: impl FnMut() -> Accepted,
    most: usize,
    shed: impl Fn(),
    handle: impl Fn(Request<Incoming>) -> Handled + Clone + Send + 'static,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Accepted: Future<Output = io::Result<IO>>,
    Handled: Future<Output = Answer> + Send + 'static,
{
    let mut open = JoinSet::new();
    loop {
        let io = match accept().await {
            Ok(io) => io,
            // The client gave up before we came to it: nothing is wrong here, and no reason to pause for others.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => continue,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while open.try_join_next().is_some() {}
        if open.len() >= most {
            shed();
            continue;
        }
        let handle = handle.clone();
        open.spawn(async move { http::serve(io, handle).await });
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

    use super::*;

    /// Accepts what waits, then nothing more.
    async fn next(waiting: &Mutex<VecDeque<io::Result<DuplexStream>>>) -> io::Result<DuplexStream> {
        let next = waiting.lock().await.pop_front();
        match next {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }

    async fn fine(_: Request<Incoming>) -> Answer {
        http::text(StatusCode::OK, "fine\n")
    }

    async fn answer(mut far: DuplexStream) -> String {
        far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
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
            () = serve(|| next(&waiting), 1, || (), fine) => unreachable!("it serves for ever"),
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
        let accept = || async { Ok(later.lock().await.recv().await.unwrap()) };
        let clients = async {
            more.send(first).await.unwrap();
            more.send(second).await.unwrap();
            assert_eq!(second_far.read(&mut [0; 1]).await.unwrap(), 0);
            assert!(answer(first_far).await.ends_with("fine\n"));
            more.send(third).await.unwrap();
            assert!(answer(third_far).await.ends_with("fine\n"));
        };
        tokio::select! {
            () = serve(accept, 1, || _ = shed.fetch_add(1, Ordering::Relaxed), fine) => unreachable!(),
            () = clients => {}
        }
        assert_eq!(shed.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn connections_end_with_the_serving() {
        let (mut far, near) = duplex(1024);
        let server = tokio::spawn(async move {
            let waiting = Mutex::new(VecDeque::from([Ok(near)]));
            serve(|| next(&waiting), 1, || (), fine).await;
        });
        far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        far.read_exact(&mut [0; 8]).await.unwrap();
        server.abort();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
    }
}
