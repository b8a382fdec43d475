//! `countersign ca audit verify`: whether the CA's audit log is whole and unchanged, and up to where that is signed.
//!
//! Called by `main`; offline. It reads the form of `countersign_api::audit` anew and shares no code with the writer. It must never
//! take a signature for good whose certificates do not chain to a root that was given, nor pass over a line.

mod chain;
mod signed;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use countersign_api::audit::{CHECKPOINT_EVERY_S, MAX_LINE};
use countersign_api::names;
use countersign_identity::SpiffeId;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::chain::Chain;
use self::signed::Roots;
use crate::identity::chain::read as certificates;
use crate::output::{self, Format, Style, Verdict};

/// What may be done with audit logs.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Verifies a log: hash chain, signed checkpoints, a torn end; exit code 1 with the line at fault
    Verify(VerifyArgs),
}

/// What is verified, against what.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The log, and the older files that it goes on from, in any order; - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Trusted roots, PEM or DER (bundle.pem, and older roots that signed older checkpoints); may be given several times. Without
    /// it checkpoints are checked for agreeing with themselves only
    #[arg(long, value_name = "FILE")]
    pub bundle: Vec<PathBuf>,
    /// SPIFFE id of the CA that signs the checkpoints
    #[arg(long, value_name = "ID", default_value_t = default_ca())]
    pub ca: String,
    /// A CA writes the log now: the last checkpoint must be no older than two minutes
    #[arg(long)]
    pub live: bool,
}

fn default_ca() -> String {
    format!("spiffe://{}/ns/{}/sa/{}", names::TRUST_DOMAIN, names::SYSTEM_NAMESPACE, names::CA_ACCOUNT)
}

/// Runs one of the commands.
pub fn run(command: &AuditCommand, format: Format) -> Result<Verdict> {
    let AuditCommand::Verify(args) = command;
    let roots = roots(args)?;
    let mut files = args.files.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
    // In the chain's order, where that can be told; it is verified all the same.
    files.sort_by_key(|file| file.first);
    let mut chain = Chain::new(roots);
    let mut torn = None;
    let mut problem = None;
    let count = files.len();
    'files: for (at, file) in files.into_iter().enumerate() {
        let name = file.name.clone();
        for (number, line) in (1u64..).zip(file.lines()) {
            let (line, whole) = line.with_context(|| name.clone())?;
            let place = |what: String| json!({ "file": name, "line": number, "what": what });
            if !whole && line.len() < MAX_LINE {
                if at + 1 == count {
                    torn = Some(json!({ "file": name, "line": number, "bytes": line.len() }));
                    break;
                }
                problem = Some(place("the line is torn, and a later file follows".to_owned()));
                break 'files;
            }
            if let Err(found) = chain.take(&line) {
                problem = Some(place(found.to_string()));
                break 'files;
            }
        }
    }
    if problem.is_none() && chain.records == 0 {
        bail!("there is no record to verify");
    }
    let stale = (args.live && problem.is_none()).then(|| stale(&chain)).flatten();
    let report = report(&chain, args, problem, torn, stale);
    output::either(format, &report, || text(&report, Style::detect()))?;
    Ok(match report["verified"] == true {
        // Whole, but nobody has signed any of it.
        true if !args.bundle.is_empty() && chain.checkpoints == 0 => Verdict::Unknown,
        verified => Verdict::of(verified),
    })
}

fn roots(args: &VerifyArgs) -> Result<Option<Roots>> {
    let ca = SpiffeId::parse(&args.ca).context("--ca")?;
    if args.bundle.is_empty() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for file in &args.bundle {
        all.extend(certificates(file).context("--bundle")?);
    }
    Ok(Some(Roots::new(ca, all)))
}

fn stale(chain: &Chain) -> Option<String> {
    let Some(last) = &chain.last_checkpoint else { return Some("it has no checkpoint".to_owned()) };
    let at = OffsetDateTime::parse(&last.time, &Rfc3339).ok()?;
    let age = (OffsetDateTime::now_utc() - at).whole_seconds();
    let most = 2 * i64::try_from(CHECKPOINT_EVERY_S).unwrap_or(i64::MAX);
    (age > most)
        .then(|| format!("the last checkpoint is {age} s old: a CA that writes signs one each {CHECKPOINT_EVERY_S} s"))
}

fn report(
    chain: &Chain,
    args: &VerifyArgs,
    problem: Option<Value>,
    torn: Option<Value>,
    stale: Option<String>,
) -> Value {
    let last = chain.last_checkpoint.as_ref();
    json!({
        "verified": problem.is_none() && stale.is_none() && chain.unsigned_too_long.is_none(),
        "problem": problem,
        "stale": stale,
        "chain": chain.id,
        "records": chain.records,
        "first": chain.first,
        "last": chain.last,
        // False: it begins in the middle; the files before were not given, or are gone.
        "from_the_beginning": chain.first.as_ref().is_some_and(|first| first["n"] == 0),
        "checkpoints": chain.checkpoints,
        "last_checkpoint": last.map(|last| json!({ "n": last.n, "time": last.time })),
        "signatures": if args.bundle.is_empty() { "agree with themselves; no --bundle was given" } else { "chain to the roots given" },
        "unsigned": chain.unsigned,
        "unsigned_too_long": chain.unsigned_too_long.as_ref().map(|(from, to)| json!({ "from": from, "to": to })),
        "torn": torn,
    })
}

fn text(report: &Value, style: Style) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut text = String::new();
    let verdict = if report["verified"] == true { style.good("verified") } else { style.bad("NOT VERIFIED") };
    let _ = writeln!(text, "{verdict}: chain {}, {} records", word(&report["chain"]), report["records"]);
    for end in ["first", "last"] {
        if report[end].is_object() {
            let _ = writeln!(text, "  {end:12} record {} of {}", report[end]["n"], word(&report[end]["time"]));
        }
    }
    if report["from_the_beginning"] == false && report["first"].is_object() {
        let _ =
            writeln!(text, "  {:12} it begins in the middle: what came before was not given", style.unsure("before"));
    }
    let _ =
        writeln!(text, "  checkpoints  {}, their signatures {}", report["checkpoints"], word(&report["signatures"]));
    match &report["last_checkpoint"] {
        Value::Null => {
            let _ = writeln!(text, "  {:12} nothing is signed: the end could be anybody's", style.unsure("unsigned"));
        }
        last => {
            let _ = writeln!(text, "  {:12} up to record {} of {}", "signed", last["n"], word(&last["time"]));
            let _ = writeln!(text, "  {:12} {} records after it", "unsigned", report["unsigned"]);
        }
    }
    if let torn @ Value::Object(_) = &report["torn"] {
        let _ = writeln!(
            text,
            "  {:12} {} line {}: {} bytes, as a crash leaves them; nothing took effect for it",
            style.unsure("torn"),
            word(&torn["file"]),
            torn["line"],
            torn["bytes"]
        );
    }
    if let at @ Value::Object(_) = &report["problem"] {
        let _ = writeln!(
            text,
            "  {} {} line {}: {}",
            style.bad("problem"),
            word(&at["file"]),
            at["line"],
            word(&at["what"])
        );
    }
    if let gap @ Value::Object(_) = &report["unsigned_too_long"] {
        let _ = writeln!(
            text,
            "  {} no checkpoint is signed over the records from {} to {}: a CA that runs signs one each {CHECKPOINT_EVERY_S} s (or the machine slept, or its clock was set forward)",
            style.bad("problem"),
            word(&gap["from"]),
            word(&gap["to"])
        );
    }
    if let Value::String(stale) = &report["stale"] {
        let _ = writeln!(text, "  {} {stale}", style.bad("stale"));
    }
    text
}

/// One file.
struct Source {
    name: String,
    reader: Box<dyn BufRead>,
    /// Number of its first record, as it says; 0 where it says none.
    first: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut reader: Box<dyn BufRead> = match name.as_str() {
            "-" => Box::new(BufReader::with_capacity(MAX_LINE, std::io::stdin())),
            _ => Box::new(BufReader::with_capacity(MAX_LINE, File::open(path).context(name.clone())?)),
        };
        let head = reader.fill_buf().with_context(|| name.clone())?;
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let first = serde_json::from_slice::<Value>(line).ok().and_then(|line| line["n"].as_u64()).unwrap_or(0);
        Ok(Self { name, reader, first })
    }

    /// Each line without its newline, and whether it had one; never more than a line may have.
    fn lines(mut self) -> impl Iterator<Item = Result<(Vec<u8>, bool)>> {
        std::iter::from_fn(move || {
            let mut line = Vec::new();
            match (&mut self.reader).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
                Ok(0) => None,
                Ok(_) => {
                    let whole = line.last() == Some(&b'\n');
                    line.truncate(line.len() - usize::from(whole));
                    Some(Ok((line, whole)))
                }
                Err(error) => Some(Err(error.into())),
            }
        })
    }
}
