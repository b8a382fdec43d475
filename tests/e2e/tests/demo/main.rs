//! The demo as a person meets it: what it prints can be typed, its exit codes mean what they say, and it leaves nothing.
//!
//! `cargo test -p countersign-e2e --test demo`; needs our programs built. The demo enters namespaces of its own, these tests none.
//! Where it may not, they say NOT RUN with the demo's own reason.

#![allow(clippy::unwrap_used)]

mod kept;
mod show;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use countersign_kit::mesh::binary;
use countersign_kit::programs::{is_root, need};

use show::{Shown, alone, demo, ended};

#[test]
fn what_the_kept_demo_prints_can_be_typed_and_nothing_is_left_of_it() {
    kept::tried();
}

#[test]
fn exec_without_a_demo_says_how_to_start_one() {
    let _alone = alone();
    let done =
        Command::new(binary("countersign").unwrap()).args(["demo", "exec", "frontend", "true"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("no demo is running here") && said.contains("countersign demo --keep"), "{said}");
}

/// Without packet sockets nothing can be said of the link: that makes no claim false.
#[test]
fn without_packet_sockets_the_first_claim_is_not_shown_and_the_exit_code_is_2() {
    if !is_root() {
        return println!("NOT RUN: only root can go without a capability; in a user namespace it comes back");
    }
    let _alone = alone();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"]).arg(binary("countersign").unwrap());
    command.args(["demo", "-o", "json", "--claim", "1", "--claim", "2"]);
    let Some(shown) = ended(&mut command) else { return };
    assert_eq!(shown.verdicts(), ["NOT SHOWN", "SHOWN"], "{shown:?}");
    assert!(shown.reason(0).contains("packet socket"), "{shown:?}");
    assert_eq!(shown.code, Some(2));
}

#[test]
fn without_nginx_nothing_is_shown_and_the_line_to_type_is_named() {
    if !is_root() {
        return println!("NOT RUN: only root can hide the system's nginx");
    }
    let Some(nginx) = countersign_kit::programs::find("nginx") else { return println!("NOT RUN: no nginx") };
    let mut command = Command::new("unshare");
    let hide = format!("mount --bind /dev/null {} && exec \"$@\"", nginx.display());
    command.args(["--mount", "sh", "-c", &hide, "sh"]).arg(binary("countersign").unwrap());
    let shown = ended(command.args(["demo", "-o", "json"])).unwrap();
    assert_eq!((shown.verdicts(), shown.code), (vec!["NOT SHOWN"], Some(2)), "{shown:?}");
    assert!(shown.reason(0).contains("apt-get install -y --no-install-recommends nginx"), "{shown:?}");
}

/// The second backend is moved out of the service.
#[test]
fn an_endpoint_that_never_answers_makes_the_first_claim_false() {
    let _alone = alone();
    let folder = Folder::of_binaries("moved");
    folder.replace(
        "countersign-controller",
        "for word in \"$@\"; do case $word in dir:*) dir=${word#dir:};; esac; done\n\
         (until [ -e \"$dir/pod-backend-2.yaml\" ]; do sleep 0.02; done\n\
         sed 's/app: backend/app: elsewhere/' \"$dir/pod-backend-2.yaml\" > \"$dir/.moved\" && mv \"$dir/.moved\" \"$dir/pod-backend-2.yaml\") 2>&- &\n\
         exec REAL \"$@\"",
    );
    is_false(&folder, "1", "not every endpoint of the service answered");
}

/// Beside what the claim asks for something else asks in plaintext, past the redirect, on the link that is captured. It is refused there: what makes
/// the claim false is that it was on the link.
#[test]
fn plaintext_between_the_pods_makes_the_first_claim_false() {
    let _alone = alone();
    let folder = Folder::of_binaries("plaintext");
    folder.replace(
        "countersign-proxy",
        "[ \"$1\" = intercept ] && exec REAL \"$@\" --skip-outbound-ports 2525\n\
         if [ \"$POD_NAME\" = frontend ]; then (while kill -0 $$; do curl -s -m 1 http://10.77.0.21:2525/; sleep 0.02; done) >&- 2>&- & fi\n\
         exec REAL \"$@\"",
    );
    is_false(&folder, "1", "to 10.77.0.21:2525: ");
}

/// The first packet of each connection to the server that speaks first is lost on its way into the sidecar: the kernel sends another a second later.
#[test]
fn a_mesh_that_keeps_a_greeting_waiting_makes_the_second_claim_false() {
    if let Err(missing) = need("nft") {
        return println!("NOT RUN: {missing}");
    }
    let _alone = alone();
    let folder = Folder::of_binaries("waits");
    folder.replace(
        "countersign-proxy",
        "[ \"$1\" = intercept ] || exec REAL \"$@\"\nREAL \"$@\" && exec nft -f - <<'.'\n\
         table inet late {\n set met { type ipv4_addr . inet_service; flags dynamic; size 4096; }\n \
         chain c {\n type filter hook input priority 0\n meta l4proto tcp ct original proto-dst 25 tcp flags & (syn | ack) == syn \
         ip saddr . tcp sport != @met add @met { ip saddr . tcp sport } drop\n }\n}\n.",
    );
    is_false(&folder, "2", "above the direct one: a stall");
}

/// Once it is ready the frontend's sidecar stands still for most of the time: all requests are answered, and late.
#[test]
fn a_sidecar_that_adds_more_than_it_may_makes_the_fourth_claim_false() {
    let _alone = alone();
    let folder = Folder::of_binaries("late");
    folder.replace(
        "countersign-proxy",
        "for word in \"$@\"; do [ \"$last\" = --ready-file ] && ready=$word; last=$word; done\n\
         if [ \"$POD_NAME\" = frontend ]; then (until [ -e \"$ready\" ]; do sleep 0.05; done\n\
         while kill -STOP $$; do sleep 0.2; kill -CONT $$ || exit; sleep 0.1; done) >&- 2>&- & fi\n\
         exec REAL \"$@\"",
    );
    is_false(&folder, "4", "the mesh adds");
}

/// A controller that adds a rule of its own: the mesh runs, and does not keep what it promised.
#[test]
fn an_intruder_that_is_let_in_makes_the_third_claim_false_and_the_exit_code_is_1() {
    let _alone = alone();
    let folder = Folder::of_binaries("intruder");
    folder.replace(
        "countersign-controller",
        "for word in \"$@\"; do case $word in dir:*) cat > ${word#dir:}/more.yaml <<'.'\n\
         apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {name: more, namespace: shop}\nspec:\n  selector: {matchLabels: {app: backend}}\n  action: Allow\n  rules:\n  \
         - from: [{serviceAccounts: [{namespace: shop, name: intruder}]}]\n.\n;; esac; done\nexec REAL \"$@\"",
    );
    is_false(&folder, "3", "intruder was served");
}

/// The same of a rule that stays in force after it was taken away.
#[test]
fn a_rule_that_does_not_go_makes_the_fifth_claim_false() {
    let _alone = alone();
    let folder = Folder::of_binaries("stays");
    folder.replace(
        "countersign-controller",
        "for word in \"$@\"; do case $word in dir:*) dir=${word#dir:};; esac; done\n\
         (until sed 's/name: visit/name: stay/' \"$dir/visit.yaml\" > \"$dir/.stay\" 2>&-; do sleep 0.02; done; mv \"$dir/.stay\" \"$dir/stay.yaml\") &\n\
         exec REAL \"$@\"",
    );
    is_false(&folder, "5", "the rule is gone, and intruder's connection");
}

/// As the old root leaves the bundle, all sidecars die. The answer that is read throughout is the first of what then failed to be told.
#[test]
fn a_request_that_fails_while_the_root_is_replaced_makes_the_sixth_claim_false() {
    if let Err(missing) = need("pkill") {
        return println!("NOT RUN: {missing}");
    }
    let _alone = alone();
    let folder = Folder::of_binaries("dies");
    folder.replace(
        "countersign-ca",
        "until [ $# = 0 ] || [ \"$1\" = --bundle-file ]; do set -- \"$@\" \"$1\"; shift; n=$((n+1)); [ \"$n\" -lt 99 ] || exit 9; done\n\
         roots() { until [ \"$(grep -c BEGIN \"$bundle\")\" = \"$1\" ]; do sleep 0.05; done; }\n\
         bundle=$2; (roots 2; roots 1; pkill -9 -f 'countersign-proxy ') 2>&- &\nexec REAL \"$@\"",
    );
    is_false(&folder, "6", "the long answer: not within 10s: \"it ended: curl: (");
}

/// It starts once, and not again.
#[test]
fn a_ca_that_does_not_come_back_makes_the_seventh_claim_false() {
    let _alone = alone();
    let folder = Folder::of_binaries("gone");
    let began = folder.0.join("began");
    folder.replace("countersign-ca", &format!("mkdir {} || exit 1; exec REAL \"$@\"", began.display()));
    is_false(&folder, "7", "the CA ended before it was ready");
}

fn is_false(folder: &Folder, claim: &str, why: &str) {
    let Some(shown) = ended(folder.demo().args(["-o", "json", "--claim", claim])) else { return };
    assert_eq!((shown.verdicts(), shown.code), (vec!["FALSE"], Some(1)), "{shown:?}");
    assert!(shown.reason(0).contains(why), "{shown:?}");
}

#[test]
fn a_mesh_that_does_not_start_is_false_and_its_log_is_told() {
    let _alone = alone();
    let folder = Folder::of_binaries("no-ca");
    folder.replace("countersign-ca", "echo 'no key for me' >&2; exit 1");
    let Some(shown) = ended(folder.demo().args(["-o", "json"])) else { return };
    assert_eq!((shown.verdicts(), shown.code), (vec!["FALSE"], Some(1)), "{shown:?}");
    assert!(
        shown.reason(0).contains("ended before it was ready") && shown.reason(0).contains("no key for me"),
        "{shown:?}"
    );
}

/// A folder with our programs, of which one can be replaced.
struct Folder(PathBuf);

impl Folder {
    fn of_binaries(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("countersign-demo-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["countersign-ca", "countersign-controller", "countersign-proxy"] {
            symlink(binary(name).unwrap(), folder.join(name)).unwrap();
        }
        Self(folder)
    }

    /// A script in the place of a program; REAL in it is the program itself.
    fn replace(&self, name: &str, script: &str) {
        let (file, real) = (self.0.join(name), binary(name).unwrap().display().to_string());
        fs::remove_file(&file).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{}\n", script.replace("REAL", &real))).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn demo(&self) -> Command {
        let mut command = demo();
        command.env("COUNTERSIGN_BIN_DIR", &self.0);
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_it_says_is_read_right() {
    let shown = Shown::read(Some(1), r#"{"claims": [{"verdict": "FALSE", "reason": "x"}]}"#);
    assert_eq!((shown.verdicts(), shown.reason(0)), (vec!["FALSE"], "x"));
}
