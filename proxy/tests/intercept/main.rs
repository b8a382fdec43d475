//! Interception, in private namespaces: the rules judged by `nft`, by real traffic and by a hostile neighbour.
#![allow(clippy::unwrap_used)]

mod rules;
mod spoofed;
mod strays;
mod support;
mod traffic;

use countersign_kit::{Inside, enter};
use libtest_mimic::{Arguments, Trial};

type Promise = (&'static str, fn(Inside));

fn main() {
    let inside = match enter() {
        Ok(inside) => inside,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let promises = [rules::PROMISES, traffic::PROMISES, spoofed::PROMISES, strays::PROMISES].concat();
    let trials = promises.into_iter().map(|(name, promise)| {
        let trial = Trial::test(name, move || {
            promise(inside);
            Ok(())
        });
        // There is only one user in a rootless namespace: the proxy is exempt by mark there.
        trial.with_ignored_flag(inside.rootless() && name == "the_proxys_own_user_is_exempt")
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
