//! The admin socket's file: made so that nobody else can ever connect, replaced only when nobody answers.
//!
//! Called by `admin`. It must never remove what is not a dead socket, and never follow a link to one.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

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
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Binds with mode 0600.
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
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        // It answers, or it would if it were not so busy.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
