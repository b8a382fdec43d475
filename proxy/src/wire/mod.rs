//! Our wire between two sidecars: frames inside TLS, one application connection at a time.

pub mod frame;
pub mod link;

/// Bytes read from a socket at once, and the most that one connection may have waiting for a slow receiver in
/// each direction. 8 and 16 KiB cost 1.5 to 1.8 times the CPU per byte; 128 KiB gives nothing more.
pub const BUFFER: usize = 64 * 1024;

/// Most plaintext of one TLS record.
const RECORD: usize = 16 * 1024;

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
    static PLAIN_SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER + RECORD].into_boxed_slice());
    static APP_SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Lends this thread's buffer for bytes from the network: an idle connection holds none. `None` when it is lent already.
pub fn with_network_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffer| f(buffer))
}

/// Lends this thread's buffer for what the link decrypts. May be held while the network one is.
pub fn with_plain_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    PLAIN_SCRATCH.with_borrow_mut(|buffer| f(buffer))
}

/// Lends this thread's buffer for bytes from the app. May be held while the network one is.
pub fn with_app_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    APP_SCRATCH.with_borrow_mut(|buffer| f(buffer))
}
