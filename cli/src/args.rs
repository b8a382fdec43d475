//! The command line: every command, option and default.
//!
//! Read by `main`. It must never decide anything.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::output::Format;

/// Identities, rules and state of a Countersign mesh.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, max_term_width = 110, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 it is so, 1 it is not, 2 it could not be found out.")]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a whole mesh on this machine, shows each claim and checks it
    Demo(DemoArgs),
    /// Puts a load on a service and tells its latency
    Bench(crate::bench::BenchArgs),
    /// Asks running processes how they are: on this machine, or with --kubectl in a cluster
    Status(StatusArgs),
    /// Explains a denial: who was seen, each rule tried, and what would let it in
    Explain(ExplainArgs),
    /// Prints the mesh's Kubernetes objects, for kubectl apply -f -
    Install(crate::install::InstallArgs),
    /// Puts sidecars into the pods of YAML files, as the injector does at admission
    Inject(Box<crate::inject::InjectArgs>),
    /// Takes them out again
    Uninject(crate::inject::UninjectArgs),
    /// Looks whether a cluster can take the mesh (--pre), and whether the mesh in it is as it should be
    Check(crate::cluster::check::CheckArgs),
    /// Removes the mesh from a cluster, and proves that nothing is left
    Uninstall(crate::cluster::uninstall::UninstallArgs),
    /// Looks at certificates
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Looks at rules
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Looks at the CA: its root and how another takes its place, its audit log
    #[command(subcommand)]
    Ca(CaCommand),
    /// Prints the completion script for a shell
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Prints the version and what it speaks
    Version,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    pub command: Option<DemoCommand>,
    /// Leave it running afterwards, and print what to try
    #[arg(long)]
    pub keep: bool,
    /// Show these claims alone, by number; may be given several times
    #[arg(long = "claim", value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=7))]
    pub claims: Vec<u8>,
}

#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Runs a command in a pod of a demo that was left running with --keep
    Exec {
        /// frontend, backend-1, backend-2, intruder, stranger, system, ...
        pod: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// Which processes are asked, and how.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// An admin socket; may be given several times
    #[arg(long = "socket", value_name = "PATH")]
    pub sockets: Vec<PathBuf>,
    /// A folder of admin sockets (*.sock, in sub-folders too); may be given several times
    #[arg(long = "dir", value_name = "FOLDER")]
    pub dirs: Vec<PathBuf>,
    /// Through `kubectl exec`, in the cluster that kubectl speaks to: every pod with a sidecar
    #[arg(long, conflicts_with_all = ["sockets", "dirs"])]
    pub kubectl: bool,
    /// With --kubectl: the sidecars of this namespace alone
    #[arg(short, long, value_name = "NAME", requires = "kubectl")]
    pub namespace: Option<String>,
}

/// How the CA is reached.
#[derive(Debug, clap::Args)]
pub struct RoadArgs {
    /// The CA's admin socket
    #[arg(long, value_name = "PATH", default_value = "/run/countersign/ca.sock")]
    pub socket: PathBuf,
    /// Through `kubectl exec`, in the cluster that kubectl speaks to
    #[arg(long, conflicts_with = "socket")]
    pub kubectl: bool,
    /// With --kubectl: where the CA is
    #[arg(long, value_name = "NAME", default_value = countersign_api::names::SYSTEM_NAMESPACE)]
    pub namespace: String,
}

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Which root signs, where a rotation is, and who is missing for its next step
    Status(RoadArgs),
    /// Begins a rotation: a new root beside the old one, in the bundle; leaves still come from the old
    Prepare(RoadArgs),
    /// The new root signs; refused (exit code 1) while somebody is not known to hold it
    Activate(RoadArgs),
    /// The old root leaves the bundle; refused (exit code 1) while somebody still stands on it
    Retire(RoadArgs),
    /// Back to the old root: at once before the new one has signed, else when nobody stands on the new one any more
    Abort(RoadArgs),
    /// All steps, each as soon as it may be taken, and a signed report; goes on where an earlier one was interrupted
    Rotate(RotateArgs),
    /// The signed report of the last rotation
    #[command(subcommand)]
    Report(ReportCommand),
    /// Looks at its audit log
    #[command(subcommand)]
    Audit(crate::audit::AuditCommand),
}

#[derive(Debug, clap::Args)]
pub struct RotateArgs {
    #[command(flatten)]
    pub road: RoadArgs,
    /// For a root that is lost or stolen: all steps now, whoever is cut. Says who will be, and asks
    #[arg(long)]
    pub emergency: bool,
    /// With --emergency: the trust domain's name, instead of being asked
    #[arg(long, value_name = "TRUST_DOMAIN", requires = "emergency")]
    pub confirm: Option<String>,
    /// Where the report goes [default: rotation-ID.json]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// Writes it to a file, as the CA knows it now
    Fetch {
        #[command(flatten)]
        road: RoadArgs,
        /// Where to
        file: PathBuf,
    },
    /// Checks that the CA has signed it; exit code 1 if it has not
    Verify {
        /// The report; - for standard input
        file: PathBuf,
        /// The CA's public bundle (PEM): who is to be believed
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub places: PlaceArgs,
    /// With --kubectl: where controller and CA are
    #[arg(long, value_name = "NAME", requires = "kubectl", default_value = countersign_api::names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Again and again, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// With --watch: seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The denial's id, as both sides log it: 16 hex digits
    pub id: String,
    #[command(flatten)]
    pub places: PlaceArgs,
    /// An access log to look in when no proxy remembers it; may be given several times
    #[arg(long = "log", value_name = "FILE")]
    pub logs: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// SPIFFE id of the source; left out: a source without identity
    #[arg(long, value_name = "ID")]
    pub from: Option<String>,
    /// Workload or pod, and the port, that it wants: NAME:PORT or NAMESPACE/NAME:PORT. A workload (Deployment, StatefulSet, DaemonSet, Job) is known by
    /// the names of its pods, which must have the same rules in force
    #[arg(long, value_name = "WORKLOAD:PORT")]
    pub to: String,
    /// Address that it comes from, where rules speak of addresses
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub source_ip: std::net::IpAddr,
    #[command(flatten)]
    pub places: PlaceArgs,
}

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Prints what a certificate chain says, and what the SPIFFE profile says against it (exit code 1)
    Show {
        /// PEM or DER, leaf first; - for standard input
        file: PathBuf,
    },
    /// Verifies a chain as a peer of the mesh would; exit code 1 with the reason if it is refused
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// PEM or DER, leaf first; - for standard input
    pub file: PathBuf,
    /// The trust bundle: PEM or DER
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// The trust domain that the bundle speaks for
    #[arg(long, value_name = "NAME")]
    pub trust_domain: String,
    /// Which side of a connection the peer is on; both, if not said
    #[arg(long, value_enum)]
    pub purpose: Option<Side>,
    /// The time at which to judge, RFC 3339; now, if not said
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}

/// Side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    Client,
    Server,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Parses rules as strictly as the controller does, and tells every mistake with file, line, column and field (exit code 1). What else is in
    /// the files is named, and not judged
    Check {
        /// YAML files, or folders of them; - for standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Decides an attempt by the rules that a pod's sidecar has in force; exit code 1 if it is denied
    Why(WhyArgs),
}
