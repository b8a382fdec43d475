//! Raw frames in and out of one interface.
//!
//! Called by the capture, and by tests that play a hostile neighbour. It must never be used where a socket would do.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lacks::Here as _;
use crate::namespace::Namespace;

/// ETH_P_ALL, in network byte order.
const EVERY_PROTOCOL: i32 = 3_u16.to_be() as i32;
const RECEIVE_BUFFER: usize = 64 * 1024 * 1024;

/// Every frame that passes an interface, both ways, and a way to send any.
pub struct Raw {
    socket: Socket,
    interface: LinkAddr,
}

impl Raw {
    /// Opens it; needs CAP_NET_RAW, which all have inside.
    ///
    /// # Errors
    /// If there is no such interface, or no such socket may be had ([`crate::Lacks`]).
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open_in(namespace, interface).with_context(|| format!("a packet socket on {interface}")).here()
    }

    fn open_in(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.inside(|| {
            let interface = link_address(interface)?;
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))?;
            // Beyond the system's limit where we may (root), else up to it.
            if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
                socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            }
            bind(socket.as_raw_fd(), &interface)?;
            Ok(Self { socket, interface })
        })
    }

    /// The interface's own hardware address.
    #[must_use]
    pub fn hardware(&self) -> [u8; 6] {
        self.interface.addr().unwrap_or_default()
    }

    /// Sends one frame as it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty())?;
        Ok(())
    }

    /// The next frame; waits for it as long as `set_patience` said.
    ///
    /// # Errors
    /// `WouldBlock` when none came.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &self.socket, buffer)
    }

    /// How long `receive` waits.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_patience(&self, patience: std::time::Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }
}

/// The address of an interface of the calling thread's namespace, by which it can be bound to.
fn link_address(name: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|found| found.interface_name == name)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {name}"))
}
