use super::*;
use crate::apiserver::{ApiServer, SYSTEM};

pub(crate) async fn cluster(server: &ApiServer) -> Cluster {
    Cluster::connect(Some(&server.kubeconfig()), SYSTEM).await.unwrap()
}

#[tokio::test]
async fn labels_are_remembered_and_can_be_asked_for_anew() {
    let server = ApiServer::start().await;
    let namespaces = Namespaces::new(cluster(&server).await);
    let (labels, remembered) = namespaces.labels("shop").await.unwrap();
    assert_eq!((labels["countersign.dev/inject"].as_str(), remembered), ("enabled", false));
    server.namespace("shop", &[]);
    assert!(namespaces.labels("shop").await.unwrap().1, "from memory");
    assert!(namespaces.fresh("shop").await.unwrap().is_empty());
    assert!(namespaces.labels("shop").await.unwrap().0.is_empty(), "what was asked for anew is remembered");
    assert_eq!(server.asked().len(), 2);
    assert_eq!(namespaces.labels("gone").await.unwrap_err(), CallError::Missing);
}

#[tokio::test]
async fn what_the_api_server_says_is_sorted() {
    let server = ApiServer::start().await;
    let namespaces = Namespaces::new(cluster(&server).await);
    for (code, kind) in
        [(403, "not permit"), (409, "first"), (500, "not answer"), (429, "not answer"), (422, "refuses")]
    {
        server.hook(move |_, _, _| Some(code));
        let error = namespaces.fresh("shop").await.unwrap_err().to_string();
        assert!(error.contains(kind), "{code}: {error}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_is_none_is_named() {
    let path = std::path::Path::new("/nonexistent/kubeconfig");
    let error = Cluster::connect(Some(path), SYSTEM).await.err().unwrap();
    assert!(error.to_string().starts_with("--kubeconfig: "), "{error}");
}
