//! When the certificates that the mesh's own processes have in use end: their leaves, the CA's issuer and root, the injector's serving
//! certificate. Called by `check`, after the install.
//!
//! Each process is asked itself, for its metrics, through the API server (`pods/proxy`): what a Secret holds is not yet what a process serves.

use countersign_api::{names, ports};
use serde_json::Value;
use time::OffsetDateTime;

use super::world::World;
use super::{Finding, State, some_of};
use crate::cluster::api::{Api, CallError};
use crate::cluster::meshed;
use crate::output::span;

/// Whose metrics are at which port.
const PROCESSES: [(&str, u16); 3] = [
    (names::CA_ACCOUNT, ports::CA_HEALTH),
    (names::CONTROLLER_ACCOUNT, ports::CONTROLLER_HEALTH),
    (names::INJECTOR_ACCOUNT, ports::INJECTOR_HEALTH),
];
/// The end of every metric's name that is the end of a certificate.
const ENDS: &str = "_expiration_timestamp_seconds";

/// What a process said of itself.
pub struct Served {
    /// The pod.
    pub pod: String,
    /// Its metrics.
    pub metrics: Result<String, CallError>,
}

/// Asks each running pod of ours.
pub async fn ask(api: &Api, namespace: &str, pods: &[Value]) -> Vec<Served> {
    let mut served = Vec::new();
    for (process, port) in PROCESSES {
        let ours = pods.iter().filter(|pod| pod["metadata"]["namespace"] == namespace && meshed::is_running(pod));
        for pod in ours.filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == process) {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
            let metrics = api.text(&path).await;
            served.push(Served { pod, metrics });
        }
    }
    served
}

/// Well only if every process told of a certificate, and none has ended.
pub fn finding(world: &World) -> Finding {
    const CHECK: &str = "certificates";
    let now = world.server_time().unwrap_or_else(OffsetDateTime::now_utc).unix_timestamp();
    let (mut ended, mut next, mut unseen) = (Vec::new(), None, None);
    for Served { pod, metrics } in &world.served {
        let text = match metrics {
            Ok(text) => text,
            Err(error) => {
                unseen = Some(error.clone());
                continue;
            }
        };
        let ends: Vec<_> = ends(text).collect();
        if ends.is_empty() {
            ended.push(format!("{pod} has no certificate"));
        }
        for (name, end) in ends {
            let said = format!("{pod}: {name} {}", span(end - now));
            if end <= now {
                ended.push(said);
            } else if next.as_ref().is_none_or(|(first, _)| end < *first) {
                next = Some((end, said));
            }
        }
    }
    let todo = format!("kubectl -n {} logs POD: why it gets no new one", world.namespace);
    match (unseen, next) {
        _ if !ended.is_empty() => Finding::problem(CHECK, format!("ended: {}", some_of(&ended)), todo),
        (Some(error), _) => Finding::unknown(CHECK, &error),
        (None, Some((_, first))) => {
            Finding::ok(CHECK, format!("{} processes have good ones; the first to end: {first}", world.served.len()))
        }
        (None, None) => {
            Finding { state: State::Unknown, ..Finding::problem(CHECK, "no process of the mesh runs", todo) }
        }
    }
}

/// Ends of certificates in OpenMetrics text: what the certificate is called there, and seconds since 1970. Zero is none.
fn ends(metrics: &str) -> impl Iterator<Item = (String, i64)> {
    metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        name.strip_suffix(ENDS)?;
        let labels = labels.trim_end_matches('}');
        let called =
            labels.split('"').nth(1).map_or_else(|| "its certificate".to_owned(), |word| format!("its {word}"));
        let end = value.parse::<f64>().ok().filter(|end| *end > 0.0)?;
        // Exact for any time that a certificate can have.
        Some((called, end as i64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::check::world::tests::world;

    const CA: &str = "# TYPE countersign_ca_certificate_expiration_timestamp_seconds gauge\n\
                      countersign_ca_certificate_expiration_timestamp_seconds{certificate=\"root\"} 90000.0\n\
                      countersign_ca_certificate_expiration_timestamp_seconds{certificate=\"issuer\"} 7200.0\n# EOF\n";

    fn with(metrics: &[Result<&str, CallError>]) -> Finding {
        let served =
            metrics.iter().map(|metrics| Served { pod: "ca-1".into(), metrics: metrics.clone().map(str::to_owned) });
        finding(&World { served: served.collect(), ..world() })
    }

    #[test]
    fn the_first_to_end_is_told_and_one_that_has_ended_is_a_problem() {
        let well = with(&[Ok(CA), Ok("x_identity_cert_expiration_timestamp_seconds 8000\n")]);
        assert_eq!(well.state, State::Ok, "{well:?}");
        assert!(well.says.contains("2 processes") && well.says.contains("ca-1: its issuer in "), "{well:?}");
        let ended = with(&[Ok(CA), Ok("x_identity_cert_expiration_timestamp_seconds -5\n")]);
        assert_eq!(ended.state, State::Problem, "{ended:?}");
        let ended = with(&[Ok(&CA.replace("7200.0", "0.5").replace("90000.0", "0.25"))]);
        assert!(
            ended.state == State::Problem && ended.says.contains("its issuer") && ended.says.contains("its root"),
            "{ended:?}"
        );
    }

    #[test]
    fn what_could_not_be_asked_is_never_well() {
        let error = || Err(CallError::Forbidden("pods/proxy".to_owned()));
        assert_eq!(with(&[Ok(CA), error()]).state, State::Unknown);
        assert_eq!(with(&[Ok("up 1\n"), error()]).state, State::Problem, "none at all is worse");
        assert_eq!(with(&[]).state, State::Unknown);
    }
}
