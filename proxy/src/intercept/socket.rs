//! The conversation with the kernel's nf_tables, over one netlink socket.
//!
//! Called by `install`, `remove` and `check`. It must never wait without bound, nor take an answer that is cut short for
//! a whole one.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with};

use super::batch::{Batch, questions};
use super::dump::Found;
use super::netlink::{DONE, DUMP_INTERRUPTED, ERROR, Message, messages};
use super::ruleset::Family;

/// The kernel answers at once, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);
/// For the longest batch that `Rules` allow, with room to spare.
const SEND_BUFFER: usize = 1024 * 1024;
/// More than the kernel puts in one datagram (32 KiB).
const RECEIVE: usize = 256 * 1024;
/// How often a listing is asked for anew because the rules changed under it.
const TRIES: usize = 5;

/// What went wrong in the conversation.
#[derive(Debug)]
pub(super) enum SocketError {
    /// The kernel refused the message with this sequence number.
    Refused(usize, Errno),
    /// No conversation was possible.
    Broken(io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Broken(errno.into())
    }
}

pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> Result<Self, SocketError> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        set_socket_send_buffer_size(&socket, SEND_BUFFER)?; // as much of it as the system allows
        Ok(Self(socket))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        sendto(&self.0, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    fn receive<'a>(&self, buffer: &'a mut [u8], flags: RecvFlags) -> Result<&'a [u8], Errno> {
        let (_, length) = recv(&self.0, &mut *buffer, flags | RecvFlags::TRUNC)?;
        buffer.get(..length).ok_or(Errno::MSGSIZE)
    }

    /// Has a batch done. The kernel works while we send: all its answers are there when that returns.
    pub(super) fn transact(&self, batch: &Batch) -> Result<(), SocketError> {
        self.send(&batch.bytes)?;
        let mut buffer = vec![0; RECEIVE];
        let mut done = false;
        loop {
            let datagram = match self.receive(&mut buffer, RecvFlags::DONTWAIT) {
                Ok(datagram) => datagram,
                Err(Errno::AGAIN) if done => return Ok(()),
                Err(Errno::AGAIN) => return Err(io::Error::other("the kernel did not answer").into()),
                Err(errno) => return Err(errno.into()),
            };
            for message in messages(datagram).filter(|message| message.kind == ERROR) {
                refused(&message)?;
                done = true;
            }
        }
    }

    /// Reads our table.
    pub(super) fn read(&self, family: Family) -> Result<Found, SocketError> {
        for _ in 0..TRIES {
            let mut found = Found::new(family);
            let takers = [Found::add_table, Found::add_chain, Found::add_rule];
            let mut whole = true;
            for (question, take) in questions(family).iter().zip(takers) {
                whole &= self.ask(question, |message| take(&mut found, message))?;
            }
            if whole {
                return Ok(found);
            }
        }
        Err(io::Error::other("the rules keep changing while they are read").into())
    }

    /// One listing; false if the rules changed while it was made.
    fn ask(&self, question: &[u8], mut take: impl FnMut(&Message<'_>)) -> Result<bool, SocketError> {
        self.send(question)?;
        let mut buffer = vec![0; RECEIVE];
        let mut whole = true;
        loop {
            for message in messages(self.receive(&mut buffer, RecvFlags::empty())?) {
                whole &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    DONE | ERROR => return refused(&message).map(|()| whole),
                    _ => take(&message),
                }
            }
        }
    }
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

fn refused(message: &Message<'_>) -> Result<(), SocketError> {
    match message.error() {
        0 => Ok(()),
        number => {
            let errno = io::Error::from_raw_os_error(number);
            let errno = Errno::from_io_error(&errno).unwrap_or(Errno::INVAL);
            Err(SocketError::Refused(usize::try_from(message.sequence).unwrap_or(usize::MAX), errno))
        }
    }
}
