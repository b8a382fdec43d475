//! Our wire between two sidecars: frames inside TLS, one application connection at a time.

pub mod frame;
pub mod link;
pub mod out;
pub mod records;
pub mod talk;

/// Bytes read from a socket at once, and the most that one connection may have waiting for a slow receiver in
/// each direction. 8 and 16 KiB cost 1.5 to 1.8 times the CPU per byte; 128 KiB gives nothing more.
pub const BUFFER: usize = 64 * 1024;

use std::cell::RefCell;

use records::MOST_SEALED;

thread_local! {
    /// A buffer, behind what is left of a record that was not whole.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST_SEALED + BUFFER].into_boxed_slice());
    static PLAIN_SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST_SEALED + BUFFER].into_boxed_slice());
    static APP_SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Lends this thread's buffer for bytes from the network: an idle connection holds none.
pub fn with_network_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    with_sealed_buffer(|buffer| f(&mut buffer[..BUFFER]))
}

/// The same, with room before a whole buffer for what is left of a record.
fn with_sealed_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffer| f(buffer))
}

/// Lends this thread's buffer for what the link opens, with room for all that the network one may hold. May be held while that is.
fn with_plain_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    PLAIN_SCRATCH.with_borrow_mut(|buffer| f(buffer))
}

/// Lends this thread's buffer for bytes from the app. May be held while the network one is.
pub fn with_app_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    APP_SCRATCH.with_borrow_mut(|buffer| f(buffer))
}
