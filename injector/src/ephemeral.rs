//! An ephemeral container as it comes to the API server (`kubectl debug`): a pod that is there already gets one more.
//!
//! Called by `server` for `/ephemeral`. Pure. The webhook's `matchConditions` send only what asks for the sidecar's own user in a pod that has
//! a sidecar; whatever else comes is judged all the same. It must never refuse for a container that was there before.

use countersign_api::names;
use serde_json::Value;

use crate::admission::{Answer, ReadError, Request};
use crate::refuse;

/// Answers for a pod whose ephemeral containers are changed.
///
/// # Errors
/// The request is about something else: the webhook's `rules` are wrong.
pub fn judge(request: &Request) -> Result<Answer, ReadError> {
    let bad = |field, problem: String| {
        Err(ReadError::Field { field, problem: format!("{problem}: see `rules` of the webhook's configuration") })
    };
    if request.kind.kind != "Pod" || !request.kind.group.is_empty() {
        return bad("kind", format!("{} is not Pod", request.kind.kind));
    }
    if request.sub_resource != "ephemeralcontainers" {
        return bad("subResource", format!("{:?} is not ephemeralcontainers", request.sub_resource));
    }
    if !entries(&request.object, "initContainers").any(|(_, container)| container["name"] == names::SIDECAR_CONTAINER) {
        return Ok(Answer::accepted(request));
    }
    let before: Vec<_> = entries(&request.old_object, EPHEMERAL).map(|(_, container)| &container["name"]).collect();
    let user = entries(&request.object, EPHEMERAL)
        .find(|(_, container)| refuse::is_own_user(container) && !before.contains(&&container["name"]));
    Ok(match user {
        None => Answer::accepted(request),
        Some((at, _)) => {
            let field = format!("spec.{EPHEMERAL}[{at}].securityContext.runAsUser");
            Answer::denied(request, format!("{field}: {}", refuse::own_user()))
        }
    })
}

const EPHEMERAL: &str = "ephemeralContainers";

fn entries<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    pod["spec"][list].as_array().into_iter().flatten().enumerate()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::read;

    fn request(change: impl FnOnce(&mut Value)) -> Request {
        let pod = |ephemeral: Value| {
            json!({ "spec": {
                "initContainers": [{ "name": "countersign-proxy" }], "containers": [{ "name": "a" }], "ephemeralContainers": ephemeral,
            } })
        };
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "operation": "UPDATE", "namespace": "shop", "subResource": "ephemeralcontainers",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "object": pod(json!([{ "name": "x" }, { "name": "debug", "securityContext": { "runAsUser": 1337 } }])),
                "oldObject": pod(json!([{ "name": "x" }])),
            },
        });
        change(&mut review["request"]);
        read(review.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_ephemeral_container_as_the_sidecars_user_is_refused_by_its_field() {
        let answer = judge(&request(|_| ())).unwrap();
        let message = answer.message().unwrap();
        assert!(message.starts_with("spec.ephemeralContainers[1].securityContext.runAsUser: 1337 is"), "{message}");
    }

    #[test]
    fn any_other_passes_and_so_does_one_that_was_there_and_one_without_a_sidecar_to_pass_by() {
        let pass: [fn(&mut Value); 4] = [
            |it| it["object"]["spec"]["ephemeralContainers"][1]["securityContext"] = json!({ "runAsUser": 1000 }),
            |it| it["object"]["spec"]["ephemeralContainers"][1]["securityContext"] = Value::Null,
            |it| it["oldObject"] = it["object"].clone(),
            |it| it["object"]["spec"]["initContainers"] = json!([]),
        ];
        for (i, change) in pass.into_iter().enumerate() {
            assert_eq!(judge(&request(change)).unwrap().message(), None, "{i}");
        }
    }

    #[test]
    fn what_is_no_such_change_is_told() {
        let error = judge(&request(|it| it["subResource"] = "status".into())).unwrap_err().to_string();
        assert!(error.starts_with("request.subResource: \"status\""), "{error}");
        let error = judge(&request(|it| it["kind"]["kind"] = "Node".into())).unwrap_err().to_string();
        assert!(error.starts_with("request.kind: Node"), "{error}");
    }
}
