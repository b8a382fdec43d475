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
    let (questions, well, todo) = match world.pre {
        true => {
            let (questions, kinds) = of_installer(world)?;
            let well =
                format!("you may make and change all {kinds} kinds of objects, and give the mesh its permissions");
            (questions, well, "install with an account that may (cluster-admin has all)")
        }
        false => {
            let questions = of_roles(world, |account| Some(account.to_owned()));
            let well = format!("the mesh's accounts may do each of {} things that they must", questions.len());
            (questions, well, "apply the manifest once more; somebody changed the roles or bindings")
        }
    };
    let mut answers = asked(api, &questions).await;
    if world.pre {
        answers = answers.and(gives(api, world).await);
    }
    Ok(vec![match (&answers.unknown, answers.refused.is_empty()) {
        (Some(error), true) => Finding::unknown("permissions", error),
        _ => Finding::none_of("permissions", well, &answers.refused, todo),
    }])
}

/// What came of questions.
#[derive(Default)]
struct Answers {
    refused: Vec<String>,
    unknown: Option<CallError>,
}

impl Answers {
    fn and(mut self, other: Self) -> Self {
        self.refused.extend(other.refused);
        Self { refused: self.refused, unknown: self.unknown.or(other.unknown) }
    }

    fn is_yes(&self) -> bool {
        self.refused.is_empty() && self.unknown.is_none()
    }
}

async fn asked(api: &Api, questions: &BTreeSet<Question>) -> Answers {
    let mut answers = Answers::default();
    for question in questions {
        match ask(api, question).await {
            Ok(true) => {}
            Ok(false) => answers.refused.push(question.to_string()),
            Err(error) => answers.unknown = Some(error),
        }
    }
    answers
}

/// Whether whoever asks may give the mesh's accounts what they need: the API server lets nobody give away what they have not themselves,
/// unless they may `escalate` and `bind`.
async fn gives(api: &Api, world: &World) -> Answers {
    let has = asked(api, &of_roles(world, |_| None)).await;
    let may = |verb: &str, resource: &str, namespace: Option<&str>| Question {
        who: None,
        verb: verb.to_owned(),
        group: "rbac.authorization.k8s.io".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
        name: None,
    };
    let both = |resource, namespace| ["escalate", "bind"].map(|verb| may(verb, resource, namespace));
    let beyond = [both("clusterroles", None), both("roles", Some(&world.namespace))].concat();
    match has.is_yes() || asked(api, &beyond.into_iter().collect()).await.is_yes() {
        true => Answers::default(),
        false => has,
    }
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

/// What `kubectl apply` does with each kind that is installed; and how many kinds these are.
fn of_installer(world: &World) -> Result<(BTreeSet<Question>, usize)> {
    let verbs = ["get", "create", "patch"];
    let mut questions = BTreeSet::new();
    for object in &world.objects {
        let kind = Kind::of(object)?;
        for verb in verbs {
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
    let kinds = questions.len() / verbs.len();
    Ok((questions, kinds))
}

/// One question for each verb of each of our roles, for whom `who` makes of the account that the role is bound to: it has the role's name.
fn of_roles(world: &World, who: impl Fn(&str) -> Option<String>) -> BTreeSet<Question> {
    let mut questions = BTreeSet::new();
    for role in world.objects.iter().filter(|object| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole"))) {
        let account = role["metadata"]["name"].as_str().unwrap_or_default();
        let who = who(&format!("system:serviceaccount:{}:{account}", world.namespace));
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
            of["resource"] != "clusterroles" && !(of["resource"] == "services" && of["verb"] == "create")
        });
        assert_eq!(missing.state, State::Problem, "{missing:?}");
        let rbac = "rbac.authorization.k8s.io";
        let said = format!(
            "you may not create services in countersign-system; you may not create clusterroles.{rbac}; you may not get \
             clusterroles.{rbac}; you may not patch clusterroles.{rbac}"
        );
        assert_eq!(missing.says, said);
        assert!(missing.todo.unwrap().contains("cluster-admin"));
    }

    #[test]
    fn nobody_may_give_the_mesh_what_they_have_not_unless_they_may_escalate_and_bind() {
        let reviews = |of: &Value| of["resource"] == "tokenreviews";
        let beyond = |of: &Value, verbs: &[&str]| of["verb"].as_str().is_some_and(|verb| verbs.contains(&verb));
        let without = found(true, move |_, spec| {
            let of = &spec["resourceAttributes"];
            !reviews(of) && !beyond(of, &["escalate", "bind"])
        });
        assert_eq!(without.state, State::Problem, "{without:?}");
        assert_eq!(without.says, "you may not create tokenreviews.authentication.k8s.io");
        let half = found(true, move |_, spec| {
            let of = &spec["resourceAttributes"];
            !reviews(of) && !beyond(of, &["bind"])
        });
        assert_eq!(half.state, State::Problem, "{half:?}");
        let with = found(true, move |_, spec| !reviews(&spec["resourceAttributes"]));
        assert_eq!(with.state, State::Ok, "{with:?}");
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
