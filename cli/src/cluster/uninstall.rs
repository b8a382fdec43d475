//! `countersign uninstall`: removes what `install`, Helm and our own processes have put into a cluster, and proves that nothing is left.
//!
//! Called by `main`. It must never remove the CA's state without being told so in as many words, never go on while pods still have a
//! sidecar (they would stop working within an hour, with nobody to renew their certificates), never remove what only has the name of ours in
//! a namespace of others, and never call a cluster clean that it could not look through.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use countersign_api::names;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{Api, CallError, ClusterArgs};
use super::kinds::{KINDS, Name};
use super::{block_on, meshed};
use crate::output::{self, Format, Verdict};

/// What each of our objects is labelled with.
const OURS: &str = "app.kubernetes.io/part-of=countersign";
/// Annotation by which the CA says whose roots these are: the namespace of its mesh.
const SYSTEM: &str = "countersign.dev/system-namespace";
const RULES: &str = "/apis/policy.countersign.dev/v1alpha1/authorizationpolicies";
/// Pods that are named when they are in the way.
const NAMED: usize = 10;
/// Between two looks at what is being removed.
const PAUSE: Duration = Duration::from_millis(500);

/// What can be said to `uninstall`.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the mesh's own processes
    #[arg(short, long, default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Prints what would be removed, and removes nothing
    #[arg(long)]
    dry_run: bool,
    /// Does not ask. Keeps the CA's state unless --ca-state remove
    #[arg(long)]
    yes: bool,
    /// What becomes of the CA's state (root, issuer, key): without it no certificate that was issued can be renewed or trusted again
    #[arg(long, value_enum)]
    ca_state: Option<CaState>,
    /// Goes on although pods still have a sidecar
    #[arg(long)]
    force: bool,
    /// How long to wait until all is gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u64,
}

/// What becomes of the CA's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CaState {
    /// It stays, with its namespace: an install goes on with the same root.
    Keep,
    /// It goes.
    Remove,
}

/// Removes all.
pub fn run(args: &UninstallArgs, format: Format) -> Result<Verdict> {
    block_on(async {
        let api = Api::connect(&args.cluster).await?;
        uninstall(&api, args, format).await
    })
}

async fn uninstall(api: &Api, args: &UninstallArgs, format: Format) -> Result<Verdict> {
    let all = find(api, &args.namespace).await?;
    let found = &all.ours;
    let (none, no_pods) = (BTreeSet::new(), BTreeSet::new());
    if found.is_empty() {
        tell(format, "nothing", found, &no_pods, &all.others)?;
        return Ok(Verdict::Yes);
    }
    let pods = sidecars(api).await?;
    let rules = api.list(RULES).await.context("looking for rules")?;
    if !rules.is_empty() {
        eprintln!(
            "note: {} rules go with their kind; to keep them: kubectl get authorizationpolicies -A -o yaml",
            rules.len()
        );
    }
    if args.dry_run {
        tell(format, "would remove", found, &pods, &all.others_without(found))?;
        return Ok(Verdict::Yes);
    }
    if !pods.is_empty() && !args.force {
        tell(format, "still in the mesh", &none, &pods, &none)?;
        eprintln!(
            "countersign: {} pods still have a sidecar, and would stop working when their certificates end: take the label {} off their \
             namespaces and pods and restart them, or say --force",
            pods.len(),
            names::LABEL_INJECT
        );
        return Ok(Verdict::No);
    }
    let Some(doomed) = agreed(args, found)? else {
        bail!("nothing was removed");
    };
    let others = all.others_without(&doomed);
    remove(api, &doomed, Duration::from_secs(args.wait)).await?;
    let kept: BTreeSet<_> = found.difference(&doomed).cloned().collect();
    // Looked for anew: what somebody made meanwhile is left behind, too.
    let left: BTreeSet<_> = find(api, &args.namespace).await?.ours.difference(&kept).cloned().collect();
    if !left.is_empty() {
        tell(format, "left behind", &left, &no_pods, &others)?;
        eprintln!(
            "countersign: {} objects are still there after {} s; run it once more, or see what holds them",
            left.len(),
            args.wait
        );
        return Ok(Verdict::No);
    }
    let (what, these) = if kept.is_empty() { ("removed", &doomed) } else { ("kept, all else is removed", &kept) };
    tell(format, what, these, &no_pods, &others)?;
    Ok(Verdict::Yes)
}

/// What is there.
#[derive(Default)]
struct Found {
    /// Is to go.
    ours: BTreeSet<Name>,
    /// ConfigMaps of the roots' name that our CA did not write: they are named, and stay.
    others: BTreeSet<Name>,
}

impl Found {
    /// The others that stay when `doomed` goes: not those that go with their namespace.
    fn others_without(&self, doomed: &BTreeSet<Name>) -> BTreeSet<Name> {
        let goes =
            |namespace: Option<&str>| doomed.iter().any(|name| namespace.is_some_and(|home| is_home(name, home)));
        self.others.iter().filter(|name| !goes(name.namespace.as_deref())).cloned().collect()
    }
}

/// Everything of ours that is there: what we install by its name, what is labelled as ours, and what our processes made.
async fn find(api: &Api, namespace: &str) -> Result<Found> {
    let mut found = BTreeSet::new();
    for object in crate::install::defaults(namespace)? {
        let name = Name::of(&object)?;
        if look(api, &name).await? {
            found.insert(name);
        }
    }
    for (row, kind) in KINDS.iter().enumerate() {
        // In other namespaces there is nothing of ours but the roots.
        let path = format!("{}?labelSelector={}", kind.collection(Some(namespace)), OURS.replace('=', "%3D"));
        for object in api.list(&path).await.with_context(|| format!("looking for {}", kind.plural))? {
            let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
            let name = text("name").context("an object without a name")?;
            found.insert(Name { row, namespace: text("namespace").filter(|_| kind.namespaced), name });
        }
    }
    for secret in [names::CA_STATE_SECRET, names::CA_KEY_SECRET] {
        let name = Name::new("Secret", Some(namespace), secret)?;
        if look(api, &name).await? {
            found.insert(name);
        }
    }
    // What our processes made says whose it is.
    for kind in ["Secret", "ConfigMap"] {
        for account in [names::CA_ACCOUNT, names::CONTROLLER_ACCOUNT, names::INJECTOR_ACCOUNT] {
            let of = Name::new(kind, Some(namespace), "x")?.kind().collection(Some(namespace));
            let path = format!("{of}?labelSelector={}%3D{account}", names::LABEL_MANAGED_BY.replace('/', "%2F"));
            for object in api.list(&path).await.with_context(|| format!("looking for {kind}s"))? {
                found.insert(Name::new(
                    kind,
                    Some(namespace),
                    object["metadata"]["name"].as_str().unwrap_or_default(),
                )?);
            }
        }
    }
    let roots = roots(api, namespace).await?;
    found.extend(roots.ours);
    // The label alone does not make roots ours.
    found.retain(|name| !roots.others.contains(name));
    Ok(Found { ours: found, others: roots.others })
}

async fn look(api: &Api, name: &Name) -> Result<bool> {
    Ok(api.get(&name.path()).await.with_context(|| format!("looking for {name}"))?.is_some())
}

/// The ConfigMaps of the roots' name, in all namespaces. Ours are those that our CA keeps in step: by its label and by the name of our
/// namespace, as it tells them itself. Whatever lacks one of the two is somebody else's.
async fn roots(api: &Api, namespace: &str) -> Result<Found> {
    let all = Name::new("ConfigMap", None, names::BUNDLE_CONFIG_MAP)?.kind().collection(None);
    let objects = api.list(&format!("{all}?fieldSelector=metadata.name%3D{}", names::BUNDLE_CONFIG_MAP)).await;
    let mut found = Found::default();
    for map in objects.context("looking for the roots in all namespaces")? {
        let metadata = &map["metadata"];
        let ours = metadata["labels"][names::LABEL_MANAGED_BY] == names::CA_ACCOUNT
            && metadata["annotations"][SYSTEM] == namespace;
        let name = Name::new("ConfigMap", metadata["namespace"].as_str(), names::BUNDLE_CONFIG_MAP)?;
        if ours {
            found.ours.insert(name)
        } else {
            found.others.insert(name)
        };
    }
    Ok(found)
}

async fn sidecars(api: &Api) -> Result<BTreeSet<String>> {
    let pods = api.list("/api/v1/pods").await.context("looking for pods that have a sidecar")?;
    Ok(pods.iter().filter(|pod| meshed::has_sidecar(pod) && meshed::is_running(pod)).map(meshed::place).collect())
}

/// What is to go, once everybody agreed; `None` if not.
fn agreed(args: &UninstallArgs, found: &BTreeSet<Name>) -> Result<Option<BTreeSet<Name>>> {
    let state = found.iter().any(|name| is_state(name, &args.namespace));
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            bail!("nobody to ask here: say --yes, and --ca-state keep or remove");
        }
        eprint!("{}", list("would remove", found));
        if ask("Remove the mesh from this cluster? [yes/no] ")? != "yes" {
            return Ok(None);
        }
    }
    let choice = match args.ca_state {
        Some(choice) => choice,
        None if !state => CaState::Remove,
        None if args.yes => CaState::Keep,
        None => {
            eprintln!(
                "The CA's state holds the mesh's root. Removed, it cannot be made again: whoever trusts this root must be given a new one."
            );
            match ask("Type `remove` to remove it, anything else keeps it: ")?.as_str() {
                "remove" => CaState::Remove,
                _ => CaState::Keep,
            }
        }
    };
    let keep = |name: &&Name| {
        choice == CaState::Remove || !(is_state(name, &args.namespace) || is_home(name, &args.namespace))
    };
    Ok(Some(found.iter().filter(keep).cloned().collect()))
}

fn ask(question: &str) -> Result<String> {
    eprint!("{question}");
    std::io::stderr().flush().context("standard error")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("standard input")?;
    Ok(line.trim().to_owned())
}

/// The Secrets of the CA.
fn is_state(name: &Name, namespace: &str) -> bool {
    name.kind().kind == "Secret"
        && name.namespace.as_deref() == Some(namespace)
        && [names::CA_STATE_SECRET, names::CA_KEY_SECRET].contains(&name.name.as_str())
}

/// The namespace that they are in.
fn is_home(name: &Name, namespace: &str) -> bool {
    name.kind().kind == "Namespace" && name.name == namespace
}

/// Kind by kind: the next is begun when the objects of the one before, and the pods of the Deployments, are gone; a process that is still
/// there would make its objects anew.
async fn remove(api: &Api, doomed: &BTreeSet<Name>, wait: Duration) -> Result<()> {
    let end = Instant::now() + wait;
    for row in 0..KINDS.len() {
        let these: Vec<_> = doomed.iter().filter(|name| name.row == row).collect();
        for name in &these {
            api.delete(&name.path()).await.with_context(|| format!("removing {name}"))?;
        }
        for name in these {
            while look(api, name).await? || has_pods(api, name).await? {
                if Instant::now() > end {
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn has_pods(api: &Api, name: &Name) -> Result<bool, CallError> {
    let (Some(namespace), "Deployment") = (&name.namespace, name.kind().kind) else { return Ok(false) };
    let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app.kubernetes.io%2Fname%3D{}", name.name);
    Ok(!api.list(&path).await?.is_empty())
}

fn tell(
    format: Format,
    what: &str,
    objects: &BTreeSet<Name>,
    pods: &BTreeSet<String>,
    others: &BTreeSet<Name>,
) -> Result<()> {
    let words = |names: &BTreeSet<Name>| names.iter().map(Name::to_string).collect::<Vec<_>>();
    let value: Value = json!({
        "what": what, "objects": words(objects), "pods_with_sidecar": pods, "left_alone": words(others),
    });
    output::either(format, &value, || list(what, objects) + &named_pods(pods) + &left_alone(others))
}

/// Of the roots' name, and not ours.
fn left_alone(others: &BTreeSet<Name>) -> String {
    others.iter().map(|name| format!("left alone: {name} (not written by this mesh's CA)\n")).collect()
}

fn list(what: &str, objects: &BTreeSet<Name>) -> String {
    match objects.is_empty() && what == "nothing" {
        true => "nothing of the mesh is here\n".to_owned(),
        false => objects.iter().map(|name| format!("{what}: {name}\n")).collect(),
    }
}

fn named_pods(pods: &BTreeSet<String>) -> String {
    let mut text: String = pods.iter().take(NAMED).map(|pod| format!("has a sidecar: {pod}\n")).collect();
    if pods.len() > NAMED {
        text += &format!("and {} more\n", pods.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(yes: bool, ca_state: Option<CaState>) -> UninstallArgs {
        let namespace = "countersign-system".to_owned();
        UninstallArgs {
            cluster: ClusterArgs::default(),
            namespace,
            dry_run: false,
            yes,
            ca_state,
            force: false,
            wait: 1,
        }
    }

    fn found() -> BTreeSet<Name> {
        let system = Some("countersign-system");
        [
            Name::new("Secret", system, names::CA_STATE_SECRET),
            Name::new("Secret", system, names::CA_KEY_SECRET),
            Name::new("Namespace", None, "countersign-system"),
            Name::new("ConfigMap", Some("shop"), names::BUNDLE_CONFIG_MAP),
            Name::new("ClusterRole", None, names::CA_ACCOUNT),
        ]
        .into_iter()
        .collect::<Result<_>>()
        .unwrap()
    }

    #[test]
    fn yes_alone_keeps_the_cas_state_and_its_namespace() {
        let doomed = agreed(&args(true, None), &found()).unwrap().unwrap();
        let kinds: Vec<_> = doomed.iter().map(|name| name.kind().kind).collect();
        assert_eq!(kinds, ["ConfigMap", "ClusterRole"]);
    }

    #[test]
    fn told_so_everything_goes() {
        assert_eq!(agreed(&args(true, Some(CaState::Remove)), &found()).unwrap().unwrap(), found());
    }

    #[test]
    fn without_a_terminal_and_without_yes_nothing_goes() {
        if !std::io::stdin().is_terminal() {
            assert!(agreed(&args(false, None), &found()).is_err());
        }
    }

    #[test]
    fn what_refuses_pods_goes_first_and_the_namespace_last() {
        assert!(KINDS.first().unwrap().kind.ends_with("WebhookConfiguration"));
        assert_eq!(KINDS.last().unwrap().kind, "Namespace");
        let at = |kind: &str| KINDS.iter().position(|row| row.kind == kind).unwrap();
        assert!(at("Deployment") < at("ConfigMap"), "the CA would write the roots anew");
    }

    fn bundle(namespace: &str, by: Option<&str>, mesh: Option<&str>) -> Value {
        json!({ "metadata": {
            "namespace": namespace, "name": names::BUNDLE_CONFIG_MAP,
            "labels": by.map(|by| json!({ names::LABEL_MANAGED_BY: by })),
            "annotations": mesh.map(|mesh| json!({ SYSTEM: mesh })),
        } })
    }

    #[tokio::test]
    async fn only_roots_that_our_ca_wrote_go_and_all_others_are_named() {
        let (ca, system) = (Some(names::CA_ACCOUNT), Some("countersign-system"));
        let maps = json!({ "items": [
            bundle("ours", ca, system),
            bundle("bare", None, None),
            bundle("unlabelled", None, system),
            bundle("unsaid", ca, None),
            bundle("helms", Some("Helm"), system),
            bundle("another-mesh", ca, Some("other-system")),
        ] });
        let api = super::super::api::tests::holding(vec![("/api/v1/configmaps".to_owned(), maps)]);
        let found = find(&api, "countersign-system").await.unwrap();
        let places = |names: &BTreeSet<Name>| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(places(&found.ours), ["ConfigMap ours/countersign-bundle"]);
        let others = ["another-mesh", "bare", "helms", "unlabelled", "unsaid"];
        assert_eq!(places(&found.others), others.map(|namespace| format!("ConfigMap {namespace}/countersign-bundle")));
        let said = list("removed", &found.ours) + &left_alone(&found.others);
        assert!(said.contains("left alone: ConfigMap bare/countersign-bundle"), "{said}");
        assert!(!said.contains("left alone: ConfigMap ours/"), "{said}");
    }

    /// In our own namespace, too, where else our CA's label alone says whose an object is; unless all of the namespace goes.
    #[tokio::test]
    async fn roots_in_our_namespace_that_are_not_ours_stay_with_it() {
        let system = "countersign-system";
        let maps = json!({ "items": [bundle(system, Some(names::CA_ACCOUNT), Some("other-system"))] });
        let held = |paths: &[&str]| paths.iter().map(|path| ((*path).to_owned(), maps.clone())).collect();
        let api = super::super::api::tests::holding(held(&[
            "/api/v1/configmaps",
            "/api/v1/namespaces/countersign-system/configmaps",
        ]));
        let found = find(&api, system).await.unwrap();
        assert_eq!((found.ours.len(), found.others.len()), (0, 1));
        assert_eq!(found.others_without(&BTreeSet::new()).len(), 1);
        let home = BTreeSet::from([Name::new("Namespace", None, system).unwrap()]);
        assert_eq!(found.others_without(&home).len(), 0);
    }
}
