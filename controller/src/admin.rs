//! Administration over a unix socket (0600): `GET /status`, `GET /config_dump`, `GET|PUT /log`. Started by `run`. Only our own
//! user and root are served, whatever the socket's directory allows; a secret never leaves.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::{UnixListener, UnixStream};

use crate::http::{self, Answer};
use crate::inside::Inside;

/// Connections at once: people and their scripts.
const CAP: usize = 16;

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Something that is no socket is in its place.
    #[error("admin socket {0}: the path is taken by something that is no socket")]
    Taken(PathBuf),
    /// The system refused.
    #[error("admin socket {path}: {source}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Binds the socket. One that a dead process left is replaced; one that answers is not.
pub fn bind(path: &Path) -> Result<UnixListener, AdminError> {
    let failed = |source| AdminError::Bind { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(AdminError::Taken(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, inside: Arc<Inside>) {
    let us = rustix::process::geteuid().as_raw();
    let accept = || async {
        loop {
            let (stream, _) = listener.accept().await?;
            if may(&stream, us) {
                return Ok(stream);
            }
            tracing::warn!("admin connection of another user refused");
        }
    };
    http::serve(accept, CAP, move |request| respond(request, Arc::clone(&inside))).await;
}

fn may(stream: &UnixStream, us: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == us || peer.uid() == 0)
}

async fn respond(request: Request<Incoming>, inside: Arc<Inside>) -> Answer {
    match (request.method().clone(), request.uri().path()) {
        (Method::GET, "/status") => http::json(&inside.status()),
        (Method::GET, "/config_dump") => http::json(&inside.dump()),
        (Method::GET, "/log") => http::text(StatusCode::OK, format!("{}\n", inside.log_filter())),
        (Method::PUT, "/log") => match http::body(request).await.map(|text| inside.set_log_filter(text.trim())) {
            Some(Ok(())) => http::text(StatusCode::OK, format!("{}\n", inside.log_filter())),
            Some(Err(why)) => http::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            None => http::text(StatusCode::BAD_REQUEST, "the filter is too long or no text\n"),
        },
        (_, "/status" | "/config_dump" | "/log") => http::text(StatusCode::METHOD_NOT_ALLOWED, "GET; /log also PUT\n"),
        _ => http::text(StatusCode::NOT_FOUND, "here are /status /config_dump /log\n"),
    }
}
