use std::fs::OpenOptions;
use std::path::Path;

use serde_json::Value;

use super::*;

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const NO_BOUNDS: Bounds = Bounds { reserve: 0, max: None, remove_oldest: false };

/// Hash of the last whole line.
fn hash(bytes: &[u8]) -> String {
    let line = bytes.strip_suffix(b"\n").unwrap().rsplit(|byte| *byte == b'\n').next().unwrap();
    crate::state::hex(&crate::state::sha256(line))
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// An SVID as the CA has it, and its public point.
fn svid() -> (Arc<Svid>, Vec<u8>) {
    let authority = crate::testing::authority();
    let key = crate::testing::p256();
    let terms = crate::grant::Terms { default: Duration::from_secs(3600), max: Duration::from_secs(3600) };
    let granter = crate::grant::Granter {
        trust_domain: authority.trust_domain(),
        issuer_end: authority.issuer().not_after(),
        own_id: &crate::testing::own_id(),
        terms,
    };
    let grant = crate::grant::for_self(granter, crate::testing::START * 1000).unwrap();
    let signed = crate::sign::leaf(&authority, &grant, &key, crate::testing::now()).unwrap();
    let point = key.public_key_raw().to_vec();
    (Arc::new(Svid::new(signed.chain().to_vec(), rustls_pki_types::PrivateKeyDer::from(key)).unwrap()), point)
}

fn entry() -> Entry<'static> {
    Entry { spiffe_id: Some("spiffe://mesh.test/ns/a/sa/b"), ..Entry::new(Event::Leaf, GRANTED) }
}

#[tokio::test]
async fn a_record_is_on_the_disk_when_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1_500).await.unwrap();
    let seen = lines(&path);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["v"], 2);
    assert_eq!(seen[0]["time"], "1970-01-01T00:00:01.5Z");
    assert_eq!((&seen[0]["event"], &seen[0]["outcome"]), (&Value::from("leaf"), &Value::from("granted")));
    assert!(seen[0].get("serial").is_none(), "what is not known is left out");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn many_writers_lose_and_mix_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let all = (0..200u64).map(|n| {
        let audit = audit.clone();
        tokio::spawn(async move {
            let entry = Entry { not_after: Some(n), ..entry() };
            audit.record(&entry, n).await.map(drop)
        })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    let mut seen: Vec<_> = lines(&path).iter().map(|line| line["not_after"].as_u64().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_of_a_former_run_stay_and_a_torn_one_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let _one = Audit::at(&path).unwrap().record(&entry(), 1).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    for torn in [&b"{\"v\":1,\"ti"[..], &[b'x'; 10_000]] {
        std::fs::write(&path, [&whole[..], torn].concat()).unwrap();
        let audit = Audit::at(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let _two = audit.record(&entry(), 2).await.unwrap();
        assert_eq!(lines(&path).len(), 2);
    }
    std::fs::write(&path, "torn and nothing else").unwrap();
    let _audit = Audit::at(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[tokio::test]
async fn no_room_is_an_error_to_every_waiting_writer_and_is_seen() {
    // /dev/full takes the open and refuses each write with ENOSPC.
    let audit = Audit::on(OpenOptions::new().write(true).open("/dev/full").unwrap());
    for _ in 0..3 {
        let error = audit.record(&entry(), 1).await.unwrap_err();
        assert!(matches!(&error, AuditError::Write(_)), "{error}");
        assert!(!audit.facts().writable);
    }
}

#[tokio::test]
async fn what_could_not_be_cut_off_is_cut_before_the_next_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    drop(audit);
    let mut log = Log::open(&path, NO_BOUNDS, false).unwrap();
    std::fs::write(&path, [&whole[..], b"{\"half"].concat()).unwrap();
    log.torn = true;
    let (chain, bytes) = log.prepare(10, "t").unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), bytes), (whole, Vec::new()));
    assert_eq!(chain.next(), 1);
}

#[tokio::test]
async fn two_never_write_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let first = Audit::at(&path).unwrap();
    assert!(matches!(Audit::at(&path), Err(AuditError::InUse(_))));
    let _one = first.record(&entry(), 1).await.unwrap();
    assert_eq!(lines(&path).len(), 1);
    drop(first);
    let second = Audit::at(&path).unwrap();
    let _two = second.record(&entry(), 2).await.unwrap();
    assert_eq!(lines(&path).len(), 2);
}

#[tokio::test]
async fn a_log_that_was_cut_to_make_room_is_not_padded_again_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    let _two = audit.record(&entry(), 2).await.unwrap();
    assert_eq!((lines(&path).len(), &lines(&path)[0]["n"]), (1, &Value::from(1)));
    assert_eq!(lines(&path)[0]["prev"], hash(&before));
}

#[tokio::test]
async fn a_log_that_was_moved_or_removed_goes_on_in_a_new_file_of_the_same_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("audit.jsonl"), dir.path().join("moved"));
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    std::fs::rename(&path, &moved).unwrap();
    let _two = audit.record(&entry(), 2).await.unwrap();
    assert_eq!((lines(&moved).len(), lines(&path).len()), (1, 1));
    assert_eq!(lines(&path)[0]["prev"], hash(&std::fs::read(&moved).unwrap()));
    std::fs::remove_file(&path).unwrap();
    let _three = audit.record(&entry(), 3).await.unwrap();
    assert_eq!(lines(&path)[0]["n"], 2);
}

#[tokio::test]
async fn a_bounded_log_goes_on_in_new_files_and_stops_at_its_bound_until_one_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let bounds = Bounds { max: Some(16 * 1024), ..NO_BOUNDS };
    let open = || Audit::open(&Settings { path: path.clone(), bounds, copy: false }).unwrap();
    let audit = open();
    let mut written = 0;
    let refused = loop {
        match audit.record(&entry(), 1).await {
            Ok(_recorded) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "it never ends");
    };
    assert!(refused.to_string().contains("has reached its bound"), "{refused}");
    let files = files(dir.path());
    assert!(files.len() >= 8, "{files:?}");
    let total: u64 = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    assert!((12 * 1024..16 * 1024).contains(&total), "{total}");
    assert!(audit.facts().room.used > 0.8 && audit.facts().room.alarm);
    drop(audit);
    // A restart goes on with the same chain, and finds no room either.
    let audit = open();
    assert!(audit.record(&entry(), 1).await.is_err());
    let oldest = files.iter().find(|file| **file != path).unwrap();
    std::fs::remove_file(oldest).unwrap();
    let _recorded = audit.record(&entry(), 1).await.unwrap();
    assert_eq!(lines(&path).last().unwrap()["n"], written);
    assert!(audit.facts().writable);
}

#[tokio::test]
async fn a_bounded_log_whose_records_others_have_too_removes_its_oldest_files_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let bounds = Bounds { max: Some(16 * 1024), remove_oldest: true, ..NO_BOUNDS };
    let audit = Audit::open(&Settings { path: path.clone(), bounds, copy: false }).unwrap();
    for _ in 0..200 {
        let _recorded = audit.record(&entry(), 1).await.unwrap();
    }
    let files = files(dir.path());
    let total: u64 = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    assert!(total < 16 * 1024, "{total}");
    let said = files.iter().flat_map(|file| lines(file)).find(|line| line["event"] == "removed").unwrap();
    assert!(said["detail"].as_str().unwrap().starts_with("audit.jsonl.0000"), "{said}");
    assert!(!audit.facts().room.alarm || audit.facts().room.used >= 0.8, "only the file system may be full");
}

#[tokio::test]
async fn a_crash_between_an_old_files_new_name_and_the_new_file_keeps_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    drop(audit);
    std::fs::rename(&path, room::older_name(&path, 0)).unwrap();
    let audit = Audit::at(&path).unwrap();
    let _two = audit.record(&entry(), 2).await.unwrap();
    assert_eq!(lines(&path)[0]["n"], 1);
}

#[tokio::test]
async fn the_reserve_is_allocated_ahead_of_the_end_and_does_not_make_the_file_longer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let bounds = Bounds { reserve: 1 << 20, ..NO_BOUNDS };
    let audit = Audit::open(&Settings { path: path.clone(), bounds, copy: false }).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.len() < 1000);
    if audit.facts().room.reserve > 0 {
        assert!(std::os::unix::fs::MetadataExt::blocks(&meta) * 512 >= 1 << 20);
    } else {
        eprintln!("NOT RUN: this file system reserves nothing");
    }
}

#[tokio::test]
async fn a_checkpoint_is_signed_by_the_svid_over_its_place_in_the_chain() {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    let (svid, point) = svid();
    for _ in 0..2 {
        audit.checkpoint(&svid, 60_000).await.unwrap();
    }
    let seen = lines(&path);
    for (at, has_certificates) in [(1, true), (2, false)] {
        let line = &seen[at];
        let text = |name: &str| line[name].as_str().unwrap();
        assert_eq!((text("event"), line["certificates"].is_array()), ("checkpoint", has_certificates));
        let n = line["n"].as_u64().unwrap();
        let signed = countersign_api::audit::signed_text(text("chain"), n, text("prev"), text("time"));
        let signature = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text("signature")).unwrap();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point);
        key.verify(signed.as_bytes(), &signature).unwrap();
        assert!(key.verify(signed.replace(text("prev"), "0").as_bytes(), &signature).is_err());
    }
    assert_eq!(audit.facts().checkpoints, 2);
}

#[tokio::test]
async fn a_log_that_was_tampered_with_at_its_end_is_gone_on_with_in_a_new_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    std::fs::write(&path, "{\"v\":2}\n").unwrap();
    let audit = Audit::at(&path).unwrap();
    let _one = audit.record(&entry(), 1).await.unwrap();
    assert_eq!(lines(&path)[1]["n"], 0);
}

#[tokio::test]
async fn a_closed_log_refuses() {
    let (queue, waiting) = mpsc::channel(1);
    drop(waiting);
    assert!(matches!(Audit::of(queue, Arc::new(Shared::new(0))).record(&entry(), 1).await, Err(AuditError::Closed)));
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let error = Audit::at(Path::new("/proc/nowhere/audit")).err().unwrap();
    assert!(error.to_string().contains("/proc/nowhere/audit"));
}
