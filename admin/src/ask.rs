//! One question to an admin socket, without a runtime: for the sub-commands that ask the process beside them in an image that holds
//! nothing else.
//!
//! Called by `ask` of CA, controller and proxy, and by `countersign-proxy drain`. It must never wait for ever, nor read without bound.

use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Longest status line with headers.
const HEAD: u64 = 16 * 1024;
/// Largest answer that is passed on, in bytes.
const BODY: u64 = 64 * 1024 * 1024;
/// Exit codes of `ask`, beside 0 for an answer: refused (409), not answered or not understood, nothing there (404).
const REFUSED: u8 = 1;
const UNANSWERED: u8 = 2;
const NOTHING: u8 = 3;

/// What was answered.
#[derive(Debug)]
pub struct Answered {
    /// Status line and headers.
    pub head: String,
    /// None: no HTTP answer, or one that ended in its head.
    pub body: Option<String>,
}

/// `GET` or `POST` of a path, each read and write waited for at most `patience`, the answer read up to `most` bytes.
///
/// # Errors
/// When nobody listens, or does not answer in time, or not in UTF-8.
pub fn ask(socket: &Path, method: &str, path: &str, patience: Duration, most: u64) -> io::Result<Answered> {
    let mut answer = String::new();
    say(socket, method, path, patience)?.take(most).read_to_string(&mut answer)?;
    Ok(match answer.split_once("\r\n\r\n") {
        Some((head, body)) => Answered { head: head.to_owned(), body: Some(body.to_owned()) },
        None => Answered { head: answer, body: None },
    })
}

/// The sub-command `ask` of a process: prints the answer as it comes, so that a large one takes no memory of the pod's, and says on standard
/// error what `program` was not answered. Exit codes: 0 answered, 1 refused (the answer says why), 2 not answered, 3 nothing is there.
#[must_use]
pub fn tell(program: &str, socket: &Path, method: &str, path: &str, patience: Duration) -> ExitCode {
    let code = match pass_on(socket, method, path, patience, &mut io::stdout().lock()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{program}: {}: {error}", socket.display());
            return ExitCode::from(UNANSWERED);
        }
    };
    match code.as_str() {
        "200" => ExitCode::SUCCESS,
        "409" => ExitCode::from(REFUSED),
        _ => {
            eprintln!("{program}: {path} was answered with {code}");
            ExitCode::from(if code == "404" { NOTHING } else { UNANSWERED })
        }
    }
}

/// The body into `out`; gives the status code.
fn pass_on(socket: &Path, method: &str, path: &str, patience: Duration, out: &mut impl Write) -> io::Result<String> {
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.".contains(&b)) {
        return Err(io::Error::other("that is no path"));
    }
    let mut stream = BufReader::new(say(socket, method, path, patience)?);
    let mut head = (&mut stream).take(HEAD);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let code = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).map(str::to_owned);
    let code = code.ok_or_else(|| io::Error::other("no HTTP answer"))?;
    let mut length = None;
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::Error::other("no HTTP answer"));
        }
        match line.trim_end().split_once(':') {
            None if line == "\r\n" => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok(),
            _ => {}
        }
    }
    let length: u64 = length.ok_or_else(|| io::Error::other("an answer of unknown length"))?;
    if length > BODY {
        return Err(io::Error::other(format!("an answer of {length} bytes; at most {BODY} are passed on")));
    }
    match io::copy(&mut stream.take(length), out).and_then(|copied| out.flush().map(|()| copied)) {
        Ok(copied) if copied < length => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        // Whoever reads no further has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(code),
    }
}

fn say(socket: &Path, method: &str, path: &str, patience: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// Asks somebody who answers one connection with `reply`, and closes it.
    fn told(path: &str, reply: String) -> io::Result<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap();
            assert!(n == 0 || request.starts_with(b"GET /things/a HTTP/1.1\r\n"));
            let _ = stream.write_all(reply.as_bytes());
        });
        let mut out = Vec::new();
        let code = pass_on(&socket, "GET", path, PATIENCE, &mut out);
        // Nobody may have come.
        let _ = UnixStream::connect(&socket);
        server.join().unwrap();
        Ok((code?, String::from_utf8(out).unwrap()))
    }

    fn reply(code: &str, length: usize, body: &str) -> String {
        format!("HTTP/1.1 {code}\r\nContent-Type: x\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    #[test]
    fn the_body_is_passed_on_with_its_code() {
        assert_eq!(told("/things/a", reply("200 OK", 4, "body")).unwrap(), ("200".into(), "body".into()));
        assert_eq!(told("/things/a", reply("404 Not Found", 0, "")).unwrap(), ("404".into(), String::new()));
    }

    #[test]
    fn half_an_answer_one_too_large_and_no_answer_are_errors() {
        assert!(told("/things/a", reply("200 OK", 9, "body")).is_err());
        assert!(told("/things/a", reply("200 OK", usize::MAX, "body")).is_err());
        assert!(told("/things/a", "HTTP/1.1 200 OK\r\n\r\nbody".into()).is_err());
        assert!(told("/things/a", "HTTP/1.1 200 OK\r\n".into()).is_err());
        assert!(told("/things/a", "SSH-2.0-hello\r\n".into()).is_err());
        assert!(told("/things/a", format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(20_000))).is_err());
    }

    #[test]
    fn what_is_no_path_is_not_asked() {
        assert!(told("/things/a HTTP/1.1\r\nX: y", reply("200 OK", 0, "")).is_err());
        assert!(told("/things?a", reply("200 OK", 0, "")).is_err());
    }

    #[test]
    fn nobody_there_is_an_error() {
        assert!(pass_on(Path::new("/no/such.sock"), "GET", "/status", PATIENCE, &mut Vec::new()).is_err());
    }
}
