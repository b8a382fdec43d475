//! Permissions: before, whether whoever asks may install; after, whether the mesh's own accounts may do what they must.
//!
//! Called by `check`. Asked of the API server (SelfSubjectAccessReview, SubjectAccessReview), which decides; RBAC objects are not read for it.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use super::Finding;
use super::world::World;
use crate::cluster::api::{Api, CallError};
use crate::cluster::kinds::Kind;

const AUTHORIZATION: &str = "/apis/authorization.k8s.io/v1";

/// One question: may `who` (nobody: whoever asks) do this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    who: Option<String>,
    verb: String,
    group: String,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
}

/// Asks about all of it.
pub async fn findings(api: &Api, world: &World) -> Result<Vec<Finding>> {
    let (questions, todo) = match world.pre {
        true => (of_installer(world)?, "install with an account that may (cluster-admin has all)"),
        false => (of_accounts(world), "apply the manifest once more; somebody changed the roles or bindings"),
    };
    let (mut refused, mut unknown) = (Vec::new(), None);
    for question in &questions {
        match ask(api, question).await {
            Ok(true) => {}
            Ok(false) => refused.push(question.to_string()),
            Err(error) => unknown = Some(error),
        }
    }
    Ok(vec![match (&unknown, refused.is_empty()) {
        (Some(error), true) => Finding::unknown("permissions", error),
        _ => {
            let well = match world.pre {
                true => format!("you may make and change all {} kinds of objects", questions.len() / 2),
                false => format!("the mesh's accounts may do each of {} things that they must", questions.len()),
            };
            Finding::none_of("permissions", well, &refused, todo)
        }
    }])
}

async fn ask(api: &Api, question: &Question) -> Result<bool, CallError> {
    let kind = if question.who.is_some() { "SubjectAccessReview" } else { "SelfSubjectAccessReview" };
    let (resource, subresource) = question.resource.split_once('/').unwrap_or((&question.resource, ""));
    let attributes = json!({
        "verb": question.verb, "group": question.group, "resource": resource, "subresource": subresource,
        "namespace": question.namespace.as_deref().unwrap_or_default(), "name": question.name.as_deref().unwrap_or_default(),
    });
    let mut spec = json!({ "resourceAttributes": attributes });
    if let Some(who) = &question.who {
        spec["user"] = Value::from(who.as_str());
        spec["groups"] = json!(["system:serviceaccounts", "system:authenticated"]);
    }
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
    let answer = api.create(&format!("{AUTHORIZATION}/{}s", kind.to_lowercase()), &review).await?;
    Ok(answer["status"]["allowed"] == true)
}

/// Two questions for each kind that is installed.
fn of_installer(world: &World) -> Result<BTreeSet<Question>> {
    let mut questions = BTreeSet::new();
    for object in &world.objects {
        let kind = Kind::of(object)?;
        for verb in ["create", "patch"] {
            questions.insert(Question {
                who: None,
                verb: verb.to_owned(),
                group: kind.group().to_owned(),
                resource: kind.plural.to_owned(),
                namespace: kind.namespaced.then(|| world.namespace.clone()),
                name: None,
            });
        }
    }
    Ok(questions)
}

/// One question for each verb of each of our roles, for the account that the role is bound to: it has the role's name.
fn of_accounts(world: &World) -> BTreeSet<Question> {
    let mut questions = BTreeSet::new();
    for role in world.objects.iter().filter(|object| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole"))) {
        let account = role["metadata"]["name"].as_str().unwrap_or_default();
        let who = Some(format!("system:serviceaccount:{}:{account}", world.namespace));
        let namespace = (role["kind"] == "Role").then(|| world.namespace.clone());
        for rule in items(&role["rules"]) {
            let named =
                items(&rule["resourceNames"]).iter().map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>();
            let names = if named.is_empty() { vec![None] } else { named };
            for group in items(&rule["apiGroups"]) {
                for resource in items(&rule["resources"]) {
                    for verb in items(&rule["verbs"]) {
                        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                        questions.extend(names.iter().map(|name| Question {
                            who: who.clone(),
                            verb: text(verb),
                            group: text(group),
                            resource: text(resource),
                            namespace: namespace.clone(),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    questions
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let who = self.who.as_deref().map_or("you", |who| who.rsplit(':').next().unwrap_or(who));
        write!(f, "{who} may not {} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        self.name.iter().try_for_each(|name| write!(f, " {name}"))?;
        self.namespace.iter().try_for_each(|namespace| write!(f, " in {namespace}"))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::cluster::api::tests::answering;
    use crate::cluster::block_on;
    use crate::cluster::check::State;
    use crate::cluster::check::world::tests::world;

    /// What is found where the API server allows what `may` says of a review's kind and its spec.
    fn found(pre: bool, may: impl Fn(&str, &Value) -> bool + Send + Sync + 'static) -> Finding {
        asked(pre, move |path, review| {
            assert!(path.starts_with(AUTHORIZATION), "{path}");
            let allowed = may(review["kind"].as_str().unwrap(), &review["spec"]);
            (StatusCode::CREATED, json!({ "status": { "allowed": allowed } }))
        })
    }

    fn asked(pre: bool, answer: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static) -> Finding {
        let objects = crate::install::defaults("countersign-system").unwrap();
        let world = World { pre, objects, ..world() };
        let mut findings = block_on(async { findings(&answering(answer), &world).await }).unwrap();
        assert_eq!(findings.len(), 1);
        findings.remove(0)
    }

    #[test]
    fn whoever_may_do_all_may_install() {
        let well = found(true, |kind, spec| kind == "SelfSubjectAccessReview" && spec["user"].is_null());
        assert_eq!(well.state, State::Ok, "{well:?}");
        assert!(well.says.starts_with("you may make and change all 1"), "{well:?}");
    }

    #[test]
    fn before_an_install_each_missing_permission_is_named() {
        let missing = found(true, |_, spec| {
            let of = &spec["resourceAttributes"];
            assert!(matches!(of["verb"].as_str(), Some("create" | "patch")), "{of}");
            of["resource"] != "clusterroles" && !(of["resource"] == "secrets" && of["verb"] == "create")
        });
        assert_eq!(missing.state, State::Problem, "{missing:?}");
        let rbac = "rbac.authorization.k8s.io";
        let said = format!(
            "you may not create secrets in countersign-system; you may not create clusterroles.{rbac}; you may not patch \
             clusterroles.{rbac}"
        );
        assert_eq!(missing.says, said);
        assert!(missing.todo.unwrap().contains("cluster-admin"));
    }

    #[test]
    fn whoever_may_do_nothing_is_told_the_first_and_how_many_more() {
        let nothing = found(true, |_, _| false);
        assert_eq!(nothing.state, State::Problem, "{nothing:?}");
        assert!(nothing.says.contains("more"), "{nothing:?}");
    }

    #[test]
    fn where_nobody_answers_it_is_unknown_unless_something_is_known_to_be_missing() {
        let down = || (StatusCode::SERVICE_UNAVAILABLE, json!({ "message": "down" }));
        assert_eq!(asked(true, move |_, _| down()).state, State::Unknown);
        let partly =
            asked(true, move |_, review| match review["spec"]["resourceAttributes"]["resource"] == "namespaces" {
                true => (StatusCode::CREATED, json!({ "status": { "allowed": false } })),
                false => down(),
            });
        assert_eq!(partly.state, State::Problem);
        // No word is no "yes".
        assert_eq!(asked(true, |_, _| (StatusCode::CREATED, json!({}))).state, State::Problem);
    }

    #[test]
    fn after_an_install_the_accounts_are_asked_for_and_one_without_a_right_is_named() {
        let ca = "system:serviceaccount:countersign-system:countersign-ca";
        let missing = found(false, move |kind, spec| {
            assert_eq!(kind, "SubjectAccessReview");
            assert!(spec["user"].as_str().unwrap().starts_with("system:serviceaccount:countersign-system:"), "{spec}");
            !(spec["user"] == ca && spec["resourceAttributes"]["resource"] == "tokenreviews")
        });
        assert_eq!(missing.state, State::Problem, "{missing:?}");
        assert_eq!(missing.says, "countersign-ca may not create tokenreviews.authentication.k8s.io");
    }
}
