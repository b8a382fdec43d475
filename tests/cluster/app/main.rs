//! The app that the cluster tests run in pods: a server whose health can be turned, and a client that counts what fails.
//!
//! Called by the tests' manifests. It knows nothing of the mesh, and must never try a failed request again: what fails is to be seen.

mod load;
mod serve;

use std::process::ExitCode;

const USAGE: &str = "\
app serve [sick]                 HTTP on 8080, gRPC health on 9090, TCP on 7070, well or sick at first; prints each call of /hook/NAME;
                                 SIGTERM: goes on for 4 s, each answer with `connection: close`, then ends in order
app load URL SECONDS new|keep    20 requests a second, each on a new connection, or all on kept ones; prints a JSON report;
                                 SIGTERM: goes on for 10 s, then ends in order
app get URL                      one request; prints what came
app wait                         until SIGTERM";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("app: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match words.as_slice() {
            ["serve"] => serve::run(true).await,
            ["serve", "sick"] => serve::run(false).await,
            ["load", url, seconds, "new"] => load::run(url, seconds.parse()?, false).await,
            ["load", url, seconds, "keep"] => load::run(url, seconds.parse()?, true).await,
            ["get", url] => load::get(url).await,
            ["wait"] => serve::until_asked().await,
            _ => anyhow::bail!("{USAGE}"),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("app: {error:#}");
            ExitCode::FAILURE
        }
    }
}
