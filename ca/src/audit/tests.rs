use serde_json::Value;

use super::*;

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn entry() -> Entry<'static> {
    Entry { spiffe_id: Some("spiffe://mesh.test/ns/a/sa/b"), ..Entry::new(Event::Leaf, GRANTED) }
}

#[tokio::test]
async fn a_record_is_on_the_disk_when_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(&path).unwrap();
    let _one = audit.record(&entry(), 1_500).await.unwrap();
    let seen = lines(&path);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["v"], 1);
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
    let audit = Audit::open(&path).unwrap();
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
    let _one = Audit::open(&path).unwrap().record(&entry(), 1).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    for torn in [&b"{\"v\":1,\"ti"[..], &[b'x'; 10_000]] {
        std::fs::write(&path, [&whole[..], torn].concat()).unwrap();
        let audit = Audit::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let _two = audit.record(&entry(), 2).await.unwrap();
        assert_eq!(lines(&path).len(), 2);
    }
    std::fs::write(&path, "torn and nothing else").unwrap();
    let _audit = Audit::open(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[tokio::test]
async fn no_room_is_an_error_to_every_waiting_writer_and_ends_when_there_is_room() {
    // /dev/full takes the open and refuses each write with ENOSPC.
    let mut log = Log { file: OpenOptions::new().write(true).open("/dev/full").unwrap(), good: 0, torn: false };
    let error = log.append(b"{}\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(log.good, 0);

    let audit = Audit::on(log.file);
    for _ in 0..3 {
        assert!(matches!(audit.record(&entry(), 1).await, Err(AuditError::Write(_))));
    }
}

#[test]
fn what_could_not_be_cut_off_is_cut_before_the_next_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    std::fs::write(&path, "{}\n{\"half").unwrap();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    let mut log = Log { file, good: 3, torn: true };
    log.append(b"{\"next\":1}\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"{}\n{\"next\":1}\n");
}

#[tokio::test]
async fn two_never_write_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let first = Audit::open(&path).unwrap();
    assert!(matches!(Audit::open(&path), Err(AuditError::InUse(_))));
    let _one = first.record(&entry(), 1).await.unwrap();
    assert_eq!(lines(&path).len(), 1);
    drop(first);
    let second = Audit::open(&path).unwrap();
    let _two = second.record(&entry(), 2).await.unwrap();
    assert_eq!(lines(&path).len(), 2);
}

#[test]
fn a_log_that_was_cut_to_make_room_is_not_padded_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let mut log = Log::open(&path).unwrap();
    log.append(b"{\"before\":1}\n").unwrap();
    std::fs::write(&path, "").unwrap();
    log.append(b"{}\n").unwrap();
    assert_eq!(log.good, 3, "to this length it is cut when a write fails");
    assert_eq!(std::fs::read(&path).unwrap(), b"{}\n");
}

#[tokio::test]
async fn a_closed_log_refuses() {
    let (queue, waiting) = mpsc::channel(1);
    drop(waiting);
    assert!(matches!(Audit { queue }.record(&entry(), 1).await, Err(AuditError::Closed)));
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let error = Audit::open(Path::new("/proc/nowhere/audit")).err().unwrap();
    assert!(error.to_string().contains("/proc/nowhere/audit"));
}
