use tokio::net::TcpListener;

use super::*;

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port on which nobody listens: it was just given back.
async fn closed_port() -> u16 {
    listener().await.1
}

#[tokio::test]
async fn a_dialled_connection_has_no_nagle_and_notices_a_dead_peer() {
    let (_listener, port) = listener().await;
    let stream = dial(SocketAddr::from(([127, 0, 0, 1], port)), None).await.unwrap();
    assert!(stream.nodelay().unwrap());
    let socket = SockRef::from(&stream);
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

#[tokio::test]
async fn a_connection_is_marked_or_not_made() {
    let (listener, port) = listener().await;
    match dial(SocketAddr::from(([127, 0, 0, 1], port)), Some(1337)).await {
        Ok(stream) => assert_eq!(SockRef::from(&stream).mark().unwrap(), 1337),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let nobody = timeout(Duration::from_millis(1), listener.accept()).await;
            assert!(nobody.is_err(), "an unmarked connection was made");
        }
    }
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let (listener, port) = listener().await;
    let names = format!("127.0.0.1:{}, 127.0.0.1:{port}", closed_port().await);
    let (stream, accepted) = tokio::join!(dial_host(&names, None, Duration::from_secs(10)), listener.accept());
    assert_eq!(stream.unwrap().local_addr().unwrap(), accepted.unwrap().1);
}

#[tokio::test]
async fn the_error_names_the_address_that_refused() {
    let port = closed_port().await;
    let error = dial_host(&format!("127.0.0.1:{port}"), None, Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(error.label(), "connect");
    assert!(error.to_string().starts_with(&format!("127.0.0.1:{port}: ")), "{error}");
}

#[tokio::test]
async fn a_name_that_is_none_is_told() {
    let limit = Duration::from_secs(10);
    let error = dial_host("no-port", None, limit).await.unwrap_err();
    assert_eq!(error.label(), "resolve");
    assert!(error.to_string().starts_with("no-port: "), "{error}");
    assert!(matches!(dial_host(" , ", None, limit).await.unwrap_err(), DialError::NoAddress(_)));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_all_attempts_together() {
    // Nobody accepts and the backlog is full: the kernel leaves further connects unanswered.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut taken = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        taken.push(stream);
    }
    let names = [address.to_string(), address.to_string(), address.to_string()].join(",");
    let began = tokio::time::Instant::now();
    let error = dial_host(&names, None, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { .. }), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}
