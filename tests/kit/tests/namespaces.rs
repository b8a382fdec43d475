//! The kit's own promises about pods, kept inside private namespaces.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use countersign_kit::mesh::{self, Mesh, Settings};
use countersign_kit::testca::{LeafSpec, TestCa};
use countersign_kit::{Capture, Inside, Net, PodSpec, enter};
use libtest_mimic::{Arguments, Completion, Trial};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main() {
    let inside = match enter() {
        Ok(inside) => inside,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let trial = |name: &str, test: fn(Inside)| {
        Trial::test(name, move || {
            test(inside);
            Ok(())
        })
    };
    let trials = vec![
        trial("pods_reach_each_other_over_both_families", pods_reach_each_other_over_both_families),
        trial("nothing_is_beyond_and_it_says_so_at_once", nothing_is_beyond_and_it_says_so_at_once),
        trial("two_nets_may_use_the_same_addresses", two_nets_may_use_the_same_addresses),
        trial(
            "a_program_is_bounded_in_time_and_its_forks_die_with_it",
            a_program_is_bounded_in_time_and_its_forks_die_with_it,
        ),
        trial("a_pod_takes_its_processes_along", a_pod_takes_its_processes_along),
        trial("log_lines_are_waited_for_and_signals_delivered", log_lines_are_waited_for_and_signals_delivered),
        trial("another_user_is_taken_or_refused_by_name", another_user_is_taken_or_refused_by_name),
        trial("a_capture_sees_what_passes_and_puts_it_together", a_capture_sees_what_passes_and_puts_it_together),
        trial("a_capture_tells_when_it_did_not_see_all", a_capture_tells_when_it_did_not_see_all),
        // Needs our programs built: `cargo xtask test` does that first.
        Trial::ignorable_test("a_stolen_issuer_signs_what_its_mesh_believes", move || {
            for program in ["countersign-ca", "countersign-controller"] {
                if let Err(absent) = mesh::binary(program) {
                    return Ok(Completion::ignored_with(format!("{absent:#}")));
                }
            }
            a_stolen_issuer_signs_what_its_mesh_believes(inside);
            Ok(Completion::Completed)
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn pods_reach_each_other_over_both_families(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let (a, b) = (net.pod(PodSpec::numbered("a", 11)).unwrap(), net.pod(PodSpec::numbered("b", 12)).unwrap());
    for address in b.addresses() {
        let server = b.inside(|| std::net::TcpListener::bind((address, 0)).unwrap());
        let target = server.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, from) = server.accept().unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
            from
        });
        let said = a.run(|| async move {
            let mut stream = tokio::net::TcpStream::connect(target).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            let mut word = Vec::new();
            stream.read_to_end(&mut word).await.unwrap();
            word
        });
        assert_eq!(said, b"hello");
        assert!(a.addresses().contains(&echo.join().unwrap().ip()));
    }
}

fn nothing_is_beyond_and_it_says_so_at_once(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let pod = net.pod(PodSpec::numbered("a", 11)).unwrap();
    for target in ["198.51.100.1:80", "10.96.0.10:80", "[2001:db8::1]:80"] {
        let target: SocketAddr = target.parse().unwrap();
        let start = Instant::now();
        let error = pod.inside(|| TcpStream::connect_timeout(&target, Duration::from_secs(20)).unwrap_err());
        assert!(start.elapsed() < Duration::from_secs(10), "{target}: {error}");
        assert!(matches!(error.raw_os_error(), Some(101 | 113)), "{target}: {error}");
    }
}

fn two_nets_may_use_the_same_addresses(inside: Inside) {
    let nets = [Net::new(inside).unwrap(), Net::new(inside).unwrap()];
    let pods = nets.each_ref().map(|net| net.pod(PodSpec::numbered("same", 11)).unwrap());
    let server = pods[0].inside(|| std::net::TcpListener::bind((pods[0].v4(), 0)).unwrap());
    let target = server.local_addr().unwrap();
    assert!(pods[0].inside(|| TcpStream::connect(target)).is_ok());
    assert!(pods[1].inside(|| TcpStream::connect(target)).is_err());
    assert!(nets[1].link().inside(|| TcpStream::connect(target)).is_err());
    assert!(nets[0].link().inside(|| TcpStream::connect(target)).is_ok());
}

fn a_program_is_bounded_in_time_and_its_forks_die_with_it(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let start = Instant::now();
    let error = net
        .link()
        .command("sh")
        .args(["-c", "sleep 1000 & sleep 1000"])
        .limit(Duration::from_millis(50))
        .finish()
        .unwrap_err();
    assert!(format!("{error:#}").contains("still running"), "{error:#}");
    assert!(start.elapsed() < Duration::from_secs(20));
    let error = net.link().command("sh").args(["-c", "echo said >&2; exit 3"]).succeed().unwrap_err();
    assert!(error.to_string().contains("exit status: 3") && error.to_string().contains("said"), "{error}");
    assert_eq!(net.link().command("cat").stdin("fed").succeed().unwrap(), "fed");
}

fn a_pod_takes_its_processes_along(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let pod = net.pod(PodSpec::numbered("a", 11)).unwrap();
    // Not by our own handle, and out of its process group.
    let mut command =
        pod.command("setsid").args(["--wait", "sh", "-c", "echo here; exec sleep 1000"]).into_std().unwrap();
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut word = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    let netns = pod.netns().to_owned();
    drop(pod);
    assert!(!child.wait().unwrap().success());
    assert!(!std::path::Path::new("/run/netns").read_dir().unwrap().flatten().any(|e| e.file_name() == *netns));
}

fn log_lines_are_waited_for_and_signals_delivered(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let script = "trap 'echo got term; exit 5' TERM; echo ready >&2; while :; do sleep 0.01; done";
    let mut program = net.link().command("sh").args(["-c", script]).spawn().unwrap();
    program.wait_for_line(Duration::from_secs(20), |line| line == "ready").unwrap();
    program.signal_leader(Signal::SIGTERM);
    assert_eq!(program.wait(Duration::from_secs(20)).unwrap().code(), Some(5));
    program.wait_for_line(Duration::from_secs(20), |line| line == "got term").unwrap();
    let error = program.wait_for_line(Duration::from_secs(20), |line| line == "never").unwrap_err();
    assert!(error.to_string().contains("ended its output"), "{error}");
}

fn another_user_is_taken_or_refused_by_name(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let said = net.link().command("id").arg("-u").uid(1337).succeed();
    if inside.rootless() {
        assert!(said.unwrap_err().to_string().contains("only one user"));
    } else {
        assert_eq!(said.unwrap().trim(), "1337");
    }
}

/// `count` markers from pod to pod and back, over one connection of each family.
fn exchange(net: &Net, count: usize) {
    let (a, b) = (net.pod(PodSpec::numbered("a", 11)).unwrap(), net.pod(PodSpec::numbered("b", 12)).unwrap());
    for address in b.addresses() {
        let server = b.inside(|| std::net::TcpListener::bind((address, 7000)).unwrap());
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
        });
        let mut stream = a.inside(|| TcpStream::connect((address, 7000)).unwrap());
        let markers = b"marker-1234;".repeat(count);
        let mut reading = stream.try_clone().unwrap();
        let length = markers.len();
        let reader = std::thread::spawn(move || {
            let mut back = Vec::new();
            reading.read_to_end(&mut back).unwrap();
            assert_eq!(back.len(), length);
        });
        stream.write_all(&markers).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        reader.join().unwrap();
        echo.join().unwrap();
    }
}

fn a_capture_sees_what_passes_and_puts_it_together(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let capture = Capture::start(&net, 16 * 1024 * 1024).unwrap();
    exchange(&net, 20_000);
    let captured = capture.finish().unwrap();
    assert!(captured.whole());
    assert!(captured.contains(b"marker-1234;marker") && !captured.contains(b"marker-4321"));
    let flows: Vec<_> = captured.flows().into_iter().filter(|flow| flow.server.port() == 7000).collect();
    assert_eq!(flows.iter().map(|flow| flow.server.is_ipv4()).collect::<Vec<_>>(), [true, false]);
    for flow in flows {
        for stream in [flow.to_server, flow.to_client] {
            assert_eq!(stream.bytes, b"marker-1234;".repeat(20_000));
            assert!(stream.whole && stream.finished && !stream.reset);
        }
    }
}

fn a_capture_tells_when_it_did_not_see_all(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let capture = Capture::start(&net, 10_000).unwrap();
    exchange(&net, 20_000);
    let captured = capture.finish().unwrap();
    assert!(!captured.whole());
    assert!(captured.frames().iter().map(Vec::len).sum::<usize>() <= 10_000);
}

fn a_stolen_issuer_signs_what_its_mesh_believes(inside: Inside) {
    let mesh = Mesh::start(Net::new(inside).unwrap(), Settings::default()).unwrap();
    let folder = mesh.folder().join("ca");
    let ca = TestCa::stolen(&folder.join("state"), &folder.join("state.key")).unwrap();
    assert_eq!(ca.root_pem().trim(), std::fs::read_to_string(folder.join("state/bundle.pem")).unwrap().trim());
    let leaf = ca.leaf(&LeafSpec::of("spiffe://cluster.local/ns/shop/sa/frontend")).unwrap();
    leaf.write(&folder).unwrap();
    let openssl = |root: &str| {
        let files = ["chain.pem", root].map(|file| folder.join(file).display().to_string());
        let script = format!("openssl verify -CAfile {} -untrusted {} {}", files[1], files[0], files[0]);
        mesh.net().link().command("sh").args(["-c", &script]).finish().unwrap()
    };
    let judged = openssl("state/bundle.pem");
    assert!(judged.status.success(), "{}{}", judged.text(), judged.errors());
    std::fs::write(folder.join("other.pem"), TestCa::new("other").unwrap().root_pem()).unwrap();
    assert!(!openssl("other.pem").status.success());
    std::fs::write(folder.join("wrong.key"), [7; 32]).unwrap();
    assert!(TestCa::stolen(&folder.join("state"), &folder.join("wrong.key")).is_err());
}
