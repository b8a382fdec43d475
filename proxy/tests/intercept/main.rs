//! Interception, in private namespaces: the rules judged by `nft`, by real traffic and by a hostile neighbour.
#![allow(clippy::unwrap_used)]

mod reused;
mod rules;
mod spoofed;
mod strays;
mod support;
mod traffic;

use countersign_kit::programs::there;
use countersign_kit::{Inside, enter};
use libtest_mimic::{Arguments, Completion, Trial};

type Promise = (&'static str, fn(Inside));

fn main() {
    let inside = match enter() {
        Ok(inside) => inside,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let promises = [rules::PROMISES, traffic::PROMISES, spoofed::PROMISES, strays::PROMISES, reused::PROMISES].concat();
    // What cannot run here is told as ignored, with the reason or the line to type; under CI that is a failure.
    let missing = there(&["ip", "nft", "nsenter", "setpriv", "bash"]).err().map(|missing| missing.to_string());
    let trials = promises.into_iter().map(|(name, promise)| {
        let one_user = "there is only one user in an ordinary user's namespace: run it as root";
        let alone = inside.rootless() && name == "the_proxys_own_user_is_exempt";
        let unable = missing.clone().or_else(|| alone.then(|| one_user.to_owned()));
        Trial::ignorable_test(name, move || match unable {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => {
                promise(inside);
                Ok(Completion::Completed)
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
