//! The admin socket's file: made so that nobody else can ever connect, replaced only when nobody answers.
//!
//! Called by each process's `run`, which hands it to `routes`. It must never remove what is not a dead socket, never follow a
//! link to one, and never bring a connection of another user.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// Connections that the kernel may hold before we accept them.
const BACKLOG: i32 = 16;

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{0}: another process answers there")]
    InUse(PathBuf),
    /// There is something else by that name.
    #[error("{0}: is there, and is no socket; not replaced")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The listening socket; its file is removed when dropped, if it is still the same file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Binds with mode 0600. A socket that a dead process left is replaced; one that answers is not.
///
/// # Errors
/// See [`SocketError`].
pub fn bind(path: &Path) -> Result<AdminSocket, SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let listener = match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_dead(path)?;
            bind_private(path)
        }
        bound => bound,
    };
    let listener = listener.and_then(UnixListener::from_std).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok(AdminSocket { listener, path: path.to_owned(), inode })
}

/// The mode is set on the socket before it has a name: Linux gives the file that mode, so there is no moment in which
/// somebody else could connect.
fn bind_private(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let mode = fs::symlink_metadata(path)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        fs::remove_file(path)?;
        return Err(io::Error::other(format!("the file system gave the socket mode {mode:o}")));
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        // It answers, or it would if it were not so busy.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

impl AdminSocket {
    /// The next connection of our own user or root. The file's mode lets nobody else in; but it is a file, and somebody may
    /// have changed it.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        let us = rustix::process::geteuid().as_raw();
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred()?.uid() {
                uid if uid == us || uid == 0 => return Ok(stream),
                uid => tracing::warn!(uid, "admin connection of another user refused"),
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        (folder, socket)
    }

    #[tokio::test]
    async fn only_the_owner_may_open_the_socket() {
        let (_folder, path) = folder();
        let socket = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists(), "left behind");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_answers_is_replaced() {
        let (_folder, path) = folder();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = bind(&path).unwrap();
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), socket.accept());
        connected.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_somebody_answers_is_left_alone() {
        let (_folder, path) = folder();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone_and_links_are_not_followed() {
        let (folder, path) = folder();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let dead = folder.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        std::os::unix::fs::symlink(&dead, &path).unwrap();
        assert!(bind(&path).is_err());
        assert!(fs::symlink_metadata(&dead).unwrap().file_type().is_socket());
    }

    #[tokio::test]
    async fn the_end_removes_its_own_socket_and_no_successors() {
        let (folder, path) = folder();
        let first = bind(&path).unwrap();
        // A file of its own while the first still holds its inode.
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let _second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
