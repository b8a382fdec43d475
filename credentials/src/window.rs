//! HTTP/2 windows: what a stream may have on its way to us, and what its connection must allow for that.
//!
//! Called where a window is set: `channel`, `incoming`, and the servers of CA and controller. Pure.

/// What `h2` (0.4.16 and later) says that one unread frame of data costs it, bytes.
const FRAME: u32 = 256;

/// The connection window at which one stream may be full of messages of the `smallest` size, each in a frame of its own.
///
/// `h2` charges each unread frame with what it lacks of 256 bytes, allows half of the connection window in all, and beyond that
/// ends the connection (`ENHANCE_YOUR_CALM`, "`too_many_data_frames`"): with windows of one size, 64 KiB, after some 130
/// small messages that we had no time to read.
#[must_use]
pub const fn connection_window(stream_window: u32, smallest: u32) -> u32 {
    2 * (stream_window / smallest + 1) * FRAME.saturating_sub(smallest)
}
