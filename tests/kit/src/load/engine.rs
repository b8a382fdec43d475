//! The loop that sends requests and takes their responses: one thread, epoll, a timer to the nanosecond.
//!
//! Called by `Load` and by the benches. It must never send a request other than when it is due, and never block on one connection.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::http::{Response, request};
use super::{MAX_MICROS, Measured, REQUEST_LIMIT};

/// At least this often timeouts are looked for, resting connections go on and the watcher is asked.
const TICK: Duration = Duration::from_millis(100);
/// The timer's name among the events.
const TIMER: u64 = u64::MAX;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many a second over all connections, whatever the responses do.
    Rate(u32),
    /// The next as soon as the last was answered.
    Closed,
}

/// A load: GETs of one path over HTTP/1.1.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where each connection goes.
    pub target: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path.
    pub path: String,
    /// When.
    pub pace: Pace,
    /// Connections, each with at most one request under way.
    pub connections: usize,
    /// A new connection for each request.
    pub fresh: bool,
    /// For how long.
    pub length: Duration,
}

impl Plan {
    /// One connection, back to back, for one second.
    #[must_use]
    pub fn new(target: SocketAddr, path: &str) -> Self {
        Self {
            target,
            host: target.to_string(),
            path: path.to_owned(),
            pace: Pace::Closed,
            connections: 1,
            fresh: false,
            length: Duration::from_secs(1),
        }
    }

    /// How many requests are meant to be sent; unknown in a closed loop.
    #[must_use]
    pub fn planned(&self) -> Option<u64> {
        let Pace::Rate(rate) = self.pace else { return None };
        let nanos = u64::try_from(self.length.as_nanos()).unwrap_or(u64::MAX);
        Some(nanos.saturating_mul(rate.into()) / 1_000_000_000)
    }

    /// Opens every kept connection (not measured: a request each passes before the clock starts), then runs. `watch` is asked about
    /// every 100 ms, and ends the run by `false`.
    ///
    /// # Errors
    /// If a connection cannot be opened or its first request fails; failures later are counted.
    pub fn run(&self, watch: &mut dyn FnMut(&Measured) -> bool) -> Result<Measured> {
        self.open()?.run(watch)
    }

    /// Opens every kept connection, a request each.
    ///
    /// # Errors
    /// If a connection cannot be opened or its first request fails.
    pub fn open(&self) -> Result<Opened<'_>> {
        ensure!(self.pace != Pace::Rate(0) && self.connections > 0, "a load without requests");
        let mut engine = Engine::new(self)?;
        if !self.fresh {
            engine.open_all().with_context(|| format!("the first request to {}", self.target))?;
        }
        Ok(Opened(engine))
    }

    /// When request `number` is meant to leave, after the start.
    fn due(&self, number: u64) -> Duration {
        match self.pace {
            Pace::Rate(rate) => Duration::from_nanos(number.saturating_mul(1_000_000_000) / u64::from(rate)),
            Pace::Closed => Duration::ZERO,
        }
    }
}

/// A load whose connections are open: what is measured from here on is the load alone.
pub struct Opened<'a>(Engine<'a>);

impl Opened<'_> {
    /// Runs the plan, as [`Plan::run`].
    ///
    /// # Errors
    /// If the system refuses to wait.
    pub fn run(self, watch: &mut dyn FnMut(&Measured) -> bool) -> Result<Measured> {
        self.0.run(watch)
    }
}

struct Engine<'a> {
    plan: &'a Plan,
    request: Vec<u8>,
    epoll: Epoll,
    timer: TimerFd,
    connections: Vec<Connection>,
    /// Those without a request, longest free first.
    free: VecDeque<usize>,
    /// Those that failed in a closed loop: they wait for the next tick, so that a dead target is not hammered.
    resting: Vec<usize>,
    next: u64,
    start: Instant,
    measured: Measured,
    buffer: Vec<u8>,
}

struct Connection {
    stream: Option<TcpStream>,
    response: Response,
    /// Of the request under way.
    intended: Instant,
    doing: Doing,
    freed: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Connecting,
    Receiving,
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
            .context("a timer")?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER)).context("epoll")?;
        let start = Instant::now();
        let connection = || Connection {
            stream: None,
            response: Response::default(),
            intended: start,
            doing: Doing::Nothing,
            freed: start,
        };
        Ok(Self {
            request: request(&plan.host, &plan.path, plan.fresh),
            epoll,
            timer,
            connections: (0..plan.connections).map(|_| connection()).collect(),
            free: (0..plan.connections).collect(),
            resting: Vec::new(),
            next: 0,
            start,
            measured: Measured::empty()?,
            buffer: vec![0; 256 * 1024],
            plan,
        })
    }

    /// Each connection with its first request, one after the other.
    fn open_all(&mut self) -> io::Result<()> {
        for number in 0..self.connections.len() {
            let mut stream = super::idle::connect(self.plan.target)?;
            super::idle::exchange(&mut stream, &self.request, &mut self.buffer)?;
            stream.set_nonblocking(true)?;
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            self.connections[number].stream = Some(stream);
        }
        Ok(())
    }

    fn run(mut self, watch: &mut dyn FnMut(&Measured) -> bool) -> Result<Measured> {
        self.start = Instant::now();
        self.connections.iter_mut().for_each(|connection| connection.freed = self.start);
        let end = self.start + self.plan.length;
        let mut tick = self.start + TICK;
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let now = Instant::now();
            if self.over(now, end) {
                break;
            }
            self.launch(now);
            self.set_timer(now)?;
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(20u8)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("epoll"),
            };
            for event in &events[..count] {
                match usize::try_from(event.data()) {
                    Ok(number) if event.data() != TIMER => self.event(number, event.events()),
                    _ => drop(self.timer.wait()),
                }
            }
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                self.measured.elapsed = now - self.start;
                if !watch(&self.measured) {
                    break;
                }
                self.free.extend(self.resting.drain(..));
                self.cut_the_late(now);
            }
        }
        self.measured.elapsed = match self.plan.pace {
            Pace::Closed => self.start.elapsed().min(self.plan.length),
            Pace::Rate(_) => self.start.elapsed(),
        };
        Ok(self.measured)
    }

    fn over(&self, now: Instant, end: Instant) -> bool {
        match self.plan.planned() {
            Some(planned) => self.next >= planned && self.free.len() + self.resting.len() == self.connections.len(),
            None => now >= end,
        }
    }

    /// Sends all that is due, as far as there are free connections.
    fn launch(&mut self, now: Instant) {
        let planned = self.plan.planned().unwrap_or(u64::MAX);
        while self.next < planned {
            let (intended, closed) = (self.start + self.plan.due(self.next), self.plan.pace == Pace::Closed);
            if !closed && intended > now {
                return;
            }
            let Some(number) = self.free.pop_front() else { return };
            self.next += 1;
            let connection = &mut self.connections[number];
            connection.intended = if closed { Instant::now() } else { intended };
            if !closed && connection.freed <= intended {
                self.measured.lateness.saturating_record(micros_since(intended));
            }
            if let Err(error) = self.send(number) {
                self.fail(number, &error);
            }
        }
    }

    fn send(&mut self, number: usize) -> io::Result<()> {
        let connection = &mut self.connections[number];
        if let Some(stream) = &mut connection.stream {
            write_whole(stream, &self.request)?;
            connection.doing = Doing::Receiving;
            return Ok(());
        }
        let stream = start_connecting(self.plan.target)?;
        let event = EpollEvent::new(EpollFlags::EPOLLOUT, number as u64);
        self.epoll.add(&stream, event)?;
        (connection.stream, connection.doing) = (Some(stream), Doing::Connecting);
        Ok(())
    }

    /// To the nanosecond where the next request has a time and a connection.
    fn set_timer(&self, now: Instant) -> Result<()> {
        let due = self.plan.planned().filter(|planned| self.next < *planned && !self.free.is_empty());
        if due.is_some() {
            let left = (self.start + self.plan.due(self.next)).saturating_duration_since(now);
            let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
            self.timer.set(Expiration::OneShot(left), TimerSetTimeFlags::empty()).context("a timer")?;
        }
        Ok(())
    }

    fn event(&mut self, number: usize, flags: EpollFlags) {
        let done = match self.connections[number].doing {
            Doing::Connecting => self.connected(number),
            Doing::Receiving => self.receive(number),
            // A free connection that its other end closed: the next request opens another.
            Doing::Nothing => {
                debug_assert!(!flags.is_empty());
                self.connections[number].stream = None;
                return;
            }
        };
        match done {
            Ok(false) => {}
            Ok(true) => self.answered(number),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fail(number, &error),
        }
    }

    fn connected(&mut self, number: usize) -> io::Result<bool> {
        let connection = &mut self.connections[number];
        let Some(stream) = &mut connection.stream else { return Ok(false) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        self.epoll.modify(&*stream, &mut EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        write_whole(stream, &self.request)?;
        connection.doing = Doing::Receiving;
        Ok(false)
    }

    fn receive(&mut self, number: usize) -> io::Result<bool> {
        let connection = &mut self.connections[number];
        let Some(stream) = &mut connection.stream else { return Ok(false) };
        match stream.read(&mut self.buffer)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended before the response did")),
            length if connection.response.feed(&self.buffer[..length])? => connection.response.good().map(|()| true),
            _ => Ok(false),
        }
    }

    fn answered(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        self.measured.answered += 1;
        self.measured.latency.saturating_record(micros_since(connection.intended));
        connection.response.reset();
        if self.plan.fresh {
            connection.stream = None;
        }
        (connection.doing, connection.freed) = (Doing::Nothing, Instant::now());
        self.free.push_back(number);
    }

    fn fail(&mut self, number: usize, error: &io::Error) {
        let connection = &mut self.connections[number];
        self.measured.failed += 1;
        self.measured.failure.get_or_insert_with(|| error.to_string());
        connection.response.reset();
        connection.stream = None;
        (connection.doing, connection.freed) = (Doing::Nothing, Instant::now());
        match self.plan.pace {
            Pace::Closed => self.resting.push(number),
            Pace::Rate(_) => self.free.push_back(number),
        }
    }

    fn cut_the_late(&mut self, now: Instant) {
        for number in 0..self.connections.len() {
            let connection = &self.connections[number];
            let waited = now.saturating_duration_since(connection.intended.max(connection.freed));
            if connection.doing != Doing::Nothing && waited > REQUEST_LIMIT {
                self.fail(number, &io::Error::new(ErrorKind::TimedOut, "no response in 5 s"));
            }
        }
    }
}

fn start_connecting(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// A request is small, and its connection has nothing else to send: what does not fit at once never will.
fn write_whole(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    match stream.write(bytes)? {
        length if length == bytes.len() => Ok(()),
        length => Err(io::Error::new(ErrorKind::WriteZero, format!("only {length} bytes of a request were taken"))),
    }
}

fn micros_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_micros()).unwrap_or(MAX_MICROS).clamp(1, MAX_MICROS)
}
