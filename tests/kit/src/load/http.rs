//! The little of HTTP/1.1 that a load needs: one request, and where its response ends.
//!
//! Called by the other files of this folder. It must never take a response for whole that is not: bodies are counted to their last byte.

use std::io::{self, ErrorKind};

/// A response head, a chunk's size line or a trailer line larger than this is an error.
const MAX_HEAD: usize = 16 * 1024;

/// A GET; `fresh` connections say that they are for one request.
pub fn request(host: &str, path: &str, fresh: bool) -> Vec<u8> {
    let close = if fresh { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").into_bytes()
}

/// A response as it comes in.
#[derive(Debug, Default)]
pub struct Response {
    status: u16,
    /// What came of a head or line that is not whole yet.
    part: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    /// So many bytes are left.
    Body(u64),
    /// A chunk's size, in a line of its own.
    Size,
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailer,
    Done,
}

impl Response {
    /// Takes what was read; true when the response is whole. What follows its end is an error: nothing else was asked for.
    ///
    /// # Errors
    /// If it is no HTTP/1.1 response, or its end cannot be known.
    pub fn feed(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        loop {
            bytes = match self.state {
                State::Head => match self.until(bytes, b"\r\n\r\n")? {
                    Some((head, rest)) => {
                        (self.status, self.state) = read_head(&head)?;
                        rest
                    }
                    None => return Ok(false),
                },
                State::Body(0) => {
                    self.state = State::Done;
                    bytes
                }
                State::Body(left) => {
                    let (took, rest) = counted(bytes, left);
                    self.state = State::Body(left - took);
                    rest
                }
                State::Size => match self.until(bytes, b"\r\n")? {
                    Some((line, rest)) => {
                        self.state = match chunk_size(&line)? {
                            0 => State::Trailer,
                            size => State::Chunk(size),
                        };
                        rest
                    }
                    None => return Ok(false),
                },
                State::Chunk(0) => {
                    self.state = State::ChunkEnd;
                    bytes
                }
                State::Chunk(left) => {
                    let (took, rest) = counted(bytes, left);
                    self.state = State::Chunk(left - took);
                    rest
                }
                State::ChunkEnd => match self.until(bytes, b"\r\n")? {
                    Some((_, rest)) => {
                        self.state = State::Size;
                        rest
                    }
                    None => return Ok(false),
                },
                State::Trailer => match self.until(bytes, b"\r\n")? {
                    Some((line, rest)) => {
                        if line.is_empty() {
                            self.state = State::Done;
                        }
                        rest
                    }
                    None => return Ok(false),
                },
                State::Done if bytes.is_empty() => return Ok(true),
                State::Done => return Err(bad("bytes after the response's end")),
            };
            if bytes.is_empty() && !matches!(self.state, State::Body(0) | State::Done) {
                return Ok(false);
            }
        }
    }

    /// Whether the status is a good one.
    ///
    /// # Errors
    /// With the status, if it is not.
    pub fn good(&self) -> io::Result<()> {
        if (200..300).contains(&self.status) { Ok(()) } else { Err(bad(&format!("status {}", self.status))) }
    }

    /// For the next one, with the memory of this one.
    pub fn reset(&mut self) {
        self.part.clear();
        (self.status, self.state) = (0, State::Head);
    }

    /// All up to `mark`, and what follows it; keeps what came when the mark did not.
    fn until<'a>(&mut self, bytes: &'a [u8], mark: &[u8]) -> io::Result<Option<(Vec<u8>, &'a [u8])>> {
        let before = self.part.len();
        self.part.extend_from_slice(bytes);
        match self.part.windows(mark.len()).position(|window| window == mark) {
            Some(at) => {
                let rest = &bytes[at + mark.len() - before..];
                let mut found = std::mem::take(&mut self.part);
                found.truncate(at);
                Ok(Some((found, rest)))
            }
            None if self.part.len() > MAX_HEAD => Err(bad("the response's head is too large")),
            None => Ok(None),
        }
    }
}

fn counted(bytes: &[u8], left: u64) -> (u64, &[u8]) {
    let took = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (took as u64, &bytes[took..])
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let size = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(size, 16).map_err(|_| bad("a chunk without a size"))
}

/// Status, and what follows the head.
fn read_head(head: &[u8]) -> io::Result<(u16, State)> {
    let unknown = || bad("not an HTTP/1.1 response");
    let text = std::str::from_utf8(head).map_err(|_| unknown())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|rest| rest.get(..3));
    let status: u16 = status.and_then(|digits| digits.parse().ok()).ok_or_else(unknown)?;
    let (mut length, mut chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().map_err(|_| bad("a Content-Length that is no number"))?);
        }
        chunked |= name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked");
    }
    match (status, length) {
        (204 | 304, _) => Ok((status, State::Body(0))),
        (100..=199, _) => Err(bad("an interim response")),
        _ if chunked => Ok((status, State::Size)),
        (_, Some(length)) => Ok((status, State::Body(length))),
        (_, None) => Err(bad("a response with neither Content-Length nor chunks")),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(pieces: &[&str]) -> io::Result<bool> {
        let mut response = Response::default();
        let mut whole = false;
        for piece in pieces {
            whole = response.feed(piece.as_bytes())?;
        }
        if whole {
            response.good()?;
        }
        Ok(whole)
    }

    #[test]
    fn a_response_is_whole_at_its_last_byte_and_not_before() {
        assert!(!fed(&["HTTP/1.1 200 OK\r\nContent-Le"]).unwrap());
        assert!(!fed(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"]).unwrap());
        assert!(fed(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "c"]).unwrap());
        assert!(fed(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r", "\n"]).unwrap());
        assert!(fed(&["HTTP/1.1 204 No Content\r\n\r\n"]).unwrap());
        assert!(fed(&["HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab"]).is_err());
    }

    #[test]
    fn chunks_are_counted_in_any_pieces() {
        let whole =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: v\r\n\r\n";
        assert!(fed(&[whole]).unwrap());
        let bytes: Vec<String> = whole.chars().map(String::from).collect();
        let pieces: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert!(fed(&pieces).unwrap());
        assert!(!fed(&pieces[..pieces.len() - 1]).unwrap());
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        assert!(fed(&["HTTP/1.1 200 OK\r\n\r\n"]).is_err());
        assert!(fed(&["SSH-2.0-x\r\n\r\n"]).is_err());
        assert!(fed(&[&"x".repeat(20_000)]).is_err());
        assert!(fed(&["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"]).unwrap_err().to_string().contains("503"));
    }
}
