use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::testing::{MESH, SERVICES, Temp, look, policy, trust_domain, workload, workloads};

fn filled() -> (Temp, Dir) {
    let temp = Temp::new();
    temp.put("mesh.yaml", MESH);
    temp.put("pods/all.yaml", &workloads());
    temp.put("services.yml", SERVICES);
    temp.put("rules/deny.yaml", &policy("shop", "deny", None, "Deny"));
    temp.put("notes.txt", "not: [read");
    let mut dir = temp.dir();
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.serves_rules(), "{:?}", snapshot.problems);
    (temp, dir)
}

fn has(snapshot: &Snapshot, uid: &str) -> bool {
    snapshot.index.as_ref().unwrap().by_uid(uid).is_some()
}

fn said(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn every_file_below_the_directory_is_read_and_nothing_else() {
    let (_temp, mut dir) = filled();
    assert_eq!(dir.files.keys().collect::<Vec<_>>(), ["mesh.yaml", "pods/all.yaml", "rules/deny.yaml", "services.yml"]);
    assert!(look(&mut dir).is_none(), "nothing changed, nothing is published");
}

#[test]
fn a_bad_file_keeps_what_it_said_and_the_others_go_on() {
    let (temp, mut dir) = filled();
    temp.put(
        "pods/all.yaml",
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {name: x, namespace: shop}\nspec: {uidd: x}\n",
    );
    temp.put("more.yaml", &workload("shop", "new", "new", "10.77.0.30", "fd77::30", ""));
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"), "the bad file's last good state");
    assert!(has(&snapshot, "uid-new"), "the other file");
    assert!(snapshot.serves_rules());
    assert_eq!(snapshot.problems.len(), 1);
    let said = said(&snapshot);
    assert!(said[0].starts_with("pods/all.yaml:4:8: spec.uidd: unknown field"), "{said:?}");

    temp.put("pods/all.yaml", &workload("shop", "only", "only", "10.77.0.40", "fd77::40", ""));
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.problems.is_empty());
    assert!(has(&snapshot, "uid-only") && !has(&snapshot, "uid-frontend"));
}

#[test]
fn an_emptied_file_keeps_what_it_said_and_a_deleted_one_does_not() {
    let (temp, mut dir) = filled();
    temp.overwrite("pods/all.yaml", "");
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"));
    assert_eq!(said(&snapshot), ["pods/all.yaml: is empty; delete the file to remove its objects"]);
    temp.remove("pods/all.yaml");
    let snapshot = look(&mut dir).unwrap();
    assert!(!has(&snapshot, "uid-frontend"));
    assert!(snapshot.problems.is_empty());
}

#[test]
fn a_file_renamed_while_it_is_listed_is_never_gone() {
    let (temp, mut dir) = filled();
    fs::rename(temp.join("rules/deny.yaml"), temp.join("rules/renamed.yaml")).unwrap();
    let list = || walk(temp.path(), &Limits::default());
    let run_through = || {
        let mut walk = list();
        walk.files.remove("rules/renamed.yaml").unwrap();
        walk
    };
    let mut listings = [run_through(), list(), list()].into_iter();
    let walk = dir.agreed(|| listings.next().unwrap());
    assert!(walk.files.contains_key("rules/renamed.yaml") && !walk.files.contains_key("rules/deny.yaml"));
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(snapshot.index.unwrap().namespace("shop").unwrap().rules.len(), 1);
}

#[test]
fn a_file_bad_from_the_start_withholds_all_rules_until_it_was_good_once() {
    let temp = Temp::new();
    temp.put("mesh.yaml", MESH);
    temp.put("pods.yaml", &workloads());
    temp.put("deny.yaml", "spec: [");
    let mut dir = temp.dir();
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"), "answers are given");
    assert!(!snapshot.serves_rules(), "nobody knows what deny.yaml denied before this process started");
    assert_eq!(snapshot.withheld, ["deny.yaml"]);

    temp.put("deny.yaml", &policy("shop", "deny", None, "Deny"));
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.serves_rules());

    // From now on its last good state is known, and a new bad file denied nothing before.
    temp.put("deny.yaml", "spec: [");
    temp.put("new.yaml", "spec: [");
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.serves_rules());
    assert_eq!(snapshot.problems.len(), 2);
    assert_eq!(snapshot.index.as_ref().unwrap().namespace("shop").unwrap().rules.len(), 1);
}

#[test]
fn without_a_mesh_there_is_no_picture_and_a_lost_mesh_changes_nothing() {
    let temp = Temp::new();
    temp.put("pods.yaml", &workloads());
    let mut dir = temp.dir();
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.index.is_none() && !snapshot.serves_rules());
    assert_eq!(said(&snapshot), [".: holds no good Mesh object: nobody knows where the mesh begins"]);
    temp.put("mesh.yaml", MESH);
    let first = look(&mut dir).unwrap();
    assert!(first.serves_rules());

    temp.remove("mesh.yaml");
    temp.remove("pods.yaml");
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"));
    assert_eq!(snapshot.problems.len(), 1);
    assert_eq!(snapshot.index.unwrap().revision(), first.index.unwrap().revision());
}

#[test]
fn of_two_files_at_odds_the_one_that_changed_gives_way() {
    let (temp, mut dir) = filled();
    // Earlier in order of path, but later in time.
    temp.put("a.yaml", &workload("shop", "thief", "thief", "10.77.0.10", "fd77::66", ""));
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend") && !has(&snapshot, "uid-thief"));
    assert_eq!(
        said(&snapshot),
        [
            "a.yaml:4:59: spec.addresses[0]: 10.77.0.10 is claimed by Workload shop/thief here and by Workload shop/frontend at \
          pods/all.yaml:4:65"
        ]
    );
    // Once the other gives the address up, the held back file comes into force without being touched.
    temp.put("pods/all.yaml", &workloads().replace("10.77.0.10", "10.77.0.50"));
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-thief") && has(&snapshot, "uid-frontend"));
    assert!(snapshot.problems.is_empty());
}

#[test]
fn objects_may_move_between_files_and_swap_in_one_go() {
    let temp = Temp::new();
    temp.put("mesh.yaml", MESH);
    let (one, two) = (
        workload("shop", "one", "a", "10.77.0.1", "fd77::1", ""),
        workload("shop", "two", "a", "10.77.0.2", "fd77::2", ""),
    );
    temp.put("a.yaml", &one);
    temp.put("b.yaml", &two);
    let mut dir = temp.dir();
    let before = look(&mut dir).unwrap().index.unwrap();
    temp.put("a.yaml", &two);
    temp.put("b.yaml", &one);
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    assert_eq!(snapshot.index.unwrap().revision(), before.revision());
}

#[test]
fn a_mesh_that_shuts_workloads_out_gives_way() {
    let (temp, mut dir) = filled();
    temp.put("mesh.yaml", &MESH.replace("10.77.0.0/24", "10.78.0.0/24"));
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"));
    let said = said(&snapshot);
    assert!(
        said[0].starts_with(
            "mesh.yaml:3:18: spec.podRanges: leaves out 10.77.0.10 of Workload shop/frontend at pods/all.yaml:4:65"
        ),
        "{said:?}"
    );
}

#[test]
fn a_mesh_of_another_trust_domain_is_refused() {
    let temp = Temp::new();
    temp.put("mesh.yaml", &MESH.replace("trustDomain: cluster.local", "trustDomain: example.org"));
    let snapshot = look(&mut temp.dir()).unwrap();
    assert!(snapshot.index.is_none());
    assert_eq!(
        said(&snapshot)[0],
        "mesh.yaml:3:18: spec.trustDomain: is example.org; this controller was started for cluster.local"
    );
}

#[test]
fn a_change_without_a_change_of_size_is_seen() {
    let (temp, mut dir) = filled();
    // Rewritten at once, in place, with the same length: times may not differ, so only the content tells.
    let _ = dir.scan(SystemTime::now());
    temp.overwrite("pods/all.yaml", &workloads().replace("uid-frontend", "uid-frontena"));
    let snapshot = dir.scan(SystemTime::now()).snapshot.unwrap();
    assert!(has(&snapshot, "uid-frontena"));
}

#[test]
fn a_directory_that_cannot_be_seen_keeps_what_it_said() {
    let (temp, mut dir) = filled();
    // Root reads everything: a directory replaced by a link to nowhere cannot be seen by anybody.
    fs::rename(temp.join("pods"), temp.join(".pods")).unwrap();
    fs::rename(temp.path(), temp.path().with_extension("away")).unwrap();
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"), "the whole directory is away");
    assert!(snapshot.problems.iter().all(|problem| problem.message.starts_with("cannot be read")));
    fs::rename(temp.path().with_extension("away"), temp.path()).unwrap();
    fs::rename(temp.join(".pods"), temp.join("pods")).unwrap();
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend") && snapshot.problems.is_empty());
}

#[test]
fn an_unreadable_file_keeps_what_it_said() {
    let (temp, mut dir) = filled();
    if rustix::process::geteuid().is_root() {
        // A link to nowhere is what root cannot read.
        temp.remove("pods/all.yaml");
        symlink("nowhere", temp.join("pods/all.yaml")).unwrap();
    } else {
        fs::set_permissions(temp.join("pods/all.yaml"), fs::Permissions::from_mode(0o0)).unwrap();
        temp.overwrite("mesh.yaml", MESH);
    }
    let snapshot = look(&mut dir).unwrap();
    assert!(has(&snapshot, "uid-frontend"));
    assert!(said(&snapshot)[0].starts_with("pods/all.yaml: cannot be read"), "{:?}", said(&snapshot));
}

#[test]
fn a_volume_as_kubernetes_mounts_it_is_read_once_and_followed() {
    let temp = Temp::new();
    let version = |name: &str, pods: &str| {
        fs::create_dir(temp.join(name)).unwrap();
        fs::write(temp.join(name).join("mesh.yaml"), MESH).unwrap();
        fs::write(temp.join(name).join("pods.yaml"), pods).unwrap();
        symlink(name, temp.join("..data_tmp")).unwrap();
        fs::rename(temp.join("..data_tmp"), temp.join("..data")).unwrap();
    };
    version("..2026_01", &workloads());
    symlink("..data/mesh.yaml", temp.join("mesh.yaml")).unwrap();
    symlink("..data/pods.yaml", temp.join("pods.yaml")).unwrap();
    let mut dir = temp.dir();
    let snapshot = look(&mut dir).unwrap();
    assert!(snapshot.problems.is_empty() && snapshot.serves_rules(), "{:?}", snapshot.problems);
    assert_eq!(snapshot.files, 2);
    version("..2026_02", &workloads().replace("uid-frontend", "uid-second"));
    fs::remove_dir_all(temp.join("..2026_01")).unwrap();
    assert!(has(&look(&mut dir).unwrap(), "uid-second"));
}

#[test]
fn links_in_a_circle_end() {
    let (temp, mut dir) = filled();
    symlink(temp.path(), temp.join("pods/up")).unwrap();
    symlink("around.yaml", temp.join("around.yaml")).unwrap();
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(snapshot.warnings, ["pods/up: links to a directory that was read already; left out"]);
    assert_eq!(said(&snapshot).len(), 1);
    assert!(said(&snapshot)[0].starts_with("around.yaml: cannot be read"), "{:?}", said(&snapshot));
    assert!(has(&snapshot, "uid-frontend"));
}

#[test]
fn what_is_too_much_is_refused_and_the_rest_goes_on() {
    let temp = Temp::new();
    temp.put("a-mesh.yaml", MESH);
    temp.put("b.yaml", &workload("shop", "one", "a", "10.77.0.1", "fd77::1", ""));
    temp.put("c-large.yaml", &format!("# {}\n", "x".repeat(5000)));
    temp.put("deep/er/d.yaml", &workload("shop", "two", "a", "10.77.0.2", "fd77::2", ""));
    let limits = Limits { files: 3, directories: 10, depth: 1, file_bytes: 4000, total_bytes: 1 << 20, documents: 2 };
    let mut dir = Dir::new(temp.path().to_owned(), limits.clone(), trust_domain());
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(said(&snapshot), ["c-large.yaml: is larger than 4000 bytes", "deep/er: lies deeper than 1 directories"]);
    assert!(has(&snapshot, "uid-one") && !has(&snapshot, "uid-two"));

    temp.remove("c-large.yaml");
    fs::remove_dir_all(temp.join("deep")).unwrap();
    temp.put("c.yaml", &[MESH, MESH].join("---\n"));
    temp.put("d.yaml", &workload("shop", "two", "a", "10.77.0.2", "fd77::2", ""));
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(
        said(&snapshot),
        ["c.yaml: holds 4 documents; at most 2 are read", "d.yaml: is one of more than 3 files"]
    );

    let limits = Limits { total_bytes: 600, file_bytes: 4000, documents: 10, ..limits };
    let mut dir = Dir::new(temp.path().to_owned(), Limits { files: 10, ..limits }, trust_domain());
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(snapshot.problems.len(), 2, "{:?}", snapshot.problems);
    assert!(said(&snapshot)[0].ends_with("and the files before it are larger than 600 bytes together"));
}

#[test]
fn a_pipe_does_not_block_the_reader() {
    let (temp, mut dir) = filled();
    rustix::fs::mknodat(rustix::fs::CWD, temp.join("pipe.yaml"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let snapshot = look(&mut dir).unwrap();
    assert_eq!(said(&snapshot), ["pipe.yaml: is not a regular file"]);
}

#[test]
fn text_that_is_not_utf8_is_named_by_its_line() {
    let (temp, mut dir) = filled();
    fs::write(temp.join("bad.yaml"), b"a: b\nc: \xff\n").unwrap();
    assert_eq!(said(&look(&mut dir).unwrap()), ["bad.yaml:2:0: is not UTF-8"]);
}

#[tokio::test]
async fn a_change_is_followed_without_a_restart() {
    let (temp, dir) = filled();
    let (publish, mut snapshots) = watch::channel(Arc::new(Snapshot::nothing()));
    let running = tokio::spawn(run(Dir { changes: 0, ..dir }, publish));
    let wait = async |snapshots: &mut watch::Receiver<Arc<Snapshot>>, uid: &str, there: bool| {
        let seen = snapshots.wait_for(|snapshot| snapshot.index.is_some() && has(snapshot, uid) == there);
        drop(
            tokio::time::timeout(Duration::from_secs(20), seen)
                .await
                .unwrap_or_else(|_| panic!("{uid} {there}"))
                .unwrap(),
        );
    };
    wait(&mut snapshots, "uid-frontend", true).await;
    temp.put("more.yaml", &workload("shop", "renamed", "a", "10.77.0.31", "fd77::31", ""));
    wait(&mut snapshots, "uid-renamed", true).await;
    temp.overwrite("more.yaml", &workload("shop", "written", "a", "10.77.0.31", "fd77::31", ""));
    wait(&mut snapshots, "uid-written", true).await;
    temp.put("new/er/more.yaml", &workload("shop", "below", "a", "10.77.0.32", "fd77::32", ""));
    wait(&mut snapshots, "uid-below", true).await;
    temp.put("new/er/more.yaml", &workload("shop", "below-2", "a", "10.77.0.32", "fd77::32", ""));
    wait(&mut snapshots, "uid-below-2", true).await;
    temp.remove("more.yaml");
    wait(&mut snapshots, "uid-written", false).await;
    // A volume as Kubernetes mounts it: what is renamed is a hidden link.
    let version = |name: &str, pod: &str| {
        fs::create_dir_all(temp.join("volume").join(name)).unwrap();
        temp.put(&format!("volume/{name}/pod.yaml"), pod);
        symlink(name, temp.join("volume/..data_tmp")).unwrap();
        fs::rename(temp.join("volume/..data_tmp"), temp.join("volume/..data")).unwrap();
    };
    version("..one", &workload("shop", "mounted", "a", "10.77.0.33", "fd77::33", ""));
    symlink("..data/pod.yaml", temp.join("volume/pod.yaml")).unwrap();
    wait(&mut snapshots, "uid-mounted", true).await;
    version("..two", &workload("shop", "swapped", "a", "10.77.0.33", "fd77::33", ""));
    wait(&mut snapshots, "uid-swapped", true).await;
    running.abort();
}
