use std::collections::HashSet;

use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use outrigger_identity::AuthorityOptions;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::desk::MOST;
use super::*;
use crate::registry::Row;
use crate::registry::kubernetes::KubernetesSettings;

/// An API server that knows one namespace, and counts how often it is asked.
async fn api_server(labels: Value) -> (String, watch::Receiver<u64>) {
    api_server_of(Arc::new(Mutex::new(labels))).await
}

/// One whose namespace may say something else later.
async fn api_server_of(labels: Arc<Mutex<Value>>) -> (String, watch::Receiver<u64>) {
    let (count, asked) = watch::channel(0);
    let count = Arc::new(count);
    let namespace = move |axum::extract::Path(name): axum::extract::Path<String>| {
        count.send_modify(|asked| *asked += 1);
        let labels = labels.lock().clone();
        let (status, body) = match name.as_str() {
            "shop" => (
                200,
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
            ),
            _ => (
                404,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such namespace",
                "reason": "NotFound", "code": 404}),
            ),
        };
        let lost = name.starts_with("nowhere");
        async move {
            if lost {
                std::future::pending::<()>().await;
            }
            (StatusCode::from_u16(status).unwrap(), axum::Json(body))
        }
    };
    let router = Router::new().route("/api/v1/namespaces/{name}", axum::routing::get(namespace));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let file = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {}}],
    });
    (file.to_string(), asked)
}

/// The injector with a cluster of this kubeconfig, or without any.
fn injector(kubeconfig: Option<&std::path::Path>) -> Router {
    injector_among(kubeconfig, &Table::new())
}

/// The same with registries that are followed.
fn injector_among(kubeconfig: Option<&std::path::Path>, registries: &Table) -> Router {
    injector_of(kubeconfig, registries, Box::new(HashSet::new))
}

/// The same where the mesh has something in some namespaces.
fn injector_of(
    kubeconfig: Option<&std::path::Path>,
    registries: &Table,
    inhabited: Box<Inhabited>,
) -> Router {
    let row = kubeconfig.map(|path| Row {
        kubernetes: Some(KubernetesSettings {
            kubeconfig: Some(path.into()),
            ..KubernetesSettings::default()
        }),
        ..Row::default()
    });
    let settings = Settings {
        injector: Some(InjectSettings { image: "outrigger-proxy:test".into(), ..InjectSettings::default() }),
        registries: row.into_iter().collect(),
        ..Settings::default()
    };
    let authority = Arc::new(Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap());
    Injector::new(&settings, authority, registries, &Registry::new(), inhabited).unwrap().router()
}

async fn ask(router: &Router, body: impl Into<Body>) -> (u16, String) {
    ask_at("/inject", router, body).await
}

async fn ask_at(path: &str, router: &Router, body: impl Into<Body>) -> (u16, String) {
    let request = Request::post(path).body(body.into()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn review(namespace: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "dryRun": true,
            "namespace": namespace,
            "object": {"metadata": {"generateName": "web-", "labels": labels}, "spec": {"containers": [{"name": "app"}]}},
        },
    })
}

async fn response(router: &Router, review: Value) -> Value {
    let (status, body) = ask(router, review.to_string()).await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&answer["apiVersion"], &answer["response"]["uid"]),
        (&json!("admission.k8s.io/v1"), &json!("u-1"))
    );
    answer["response"].clone()
}

#[tokio::test]
async fn a_pod_of_a_namespace_that_asks_gets_its_sidecar_and_the_namespace_is_asked_about_once() {
    let (file, asked) = api_server(json!({"istio-injection": "enabled"})).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    let router = injector(Some(&path));
    let review = review("shop", json!({}));
    let answer = response(&router, review.clone()).await;
    assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(answer["patch"].as_str().unwrap()).unwrap();
    let patch: Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = review["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "outrigger-proxy");
    let env = pod["spec"]["initContainers"][1]["env"][5]["value"].as_str().unwrap();
    assert!(env.contains("BEGIN CERTIFICATE"), "{env}");
    response(&router, review).await;
    assert_eq!(*asked.borrow(), 1);
}

/// Whose API server does not answer for made-up names, which are asked for in crowds once it has been asked for `shop`.
async fn crowded(familiar: bool) -> (Router, watch::Receiver<u64>, Vec<tokio::task::JoinHandle<Value>>) {
    let labels = Arc::new(Mutex::new(json!({"istio-injection": "disabled"})));
    let (file, mut asked) = api_server_of(labels.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    let router = injector_of(Some(&path), &Table::new(), Box::new(|| HashSet::from(["shop".to_owned()])));
    if familiar {
        assert_eq!(response(&router, review("shop", json!({}))).await.get("patch"), None);
    }
    let turns = *asked.borrow() + 4;
    let crowd = (0..60).map(|number| {
        let (router, review) = (router.clone(), review(&format!("nowhere-{number}"), json!({})));
        tokio::spawn(async move { response(&router, review).await })
    });
    let crowd = crowd.collect();
    let all_turns = tokio::time::timeout(Duration::from_secs(20), asked.wait_for(|asked| *asked >= turns));
    all_turns.await.expect("strangers have four turns").unwrap();
    *labels.lock() = json!({"istio-injection": "enabled"});
    (router, asked, crowd)
}

#[tokio::test]
async fn questions_about_names_that_nobody_knows_hold_up_no_pod_of_a_namespace_that_has_had_one() {
    // It has had a Pod, or the mesh has something in it.
    for familiar in [true, false] {
        let (router, asked, crowd) = crowded(familiar).await;
        let before = *asked.borrow();
        assert!(response(&router, review("shop", json!({}))).await["patch"].is_string());
        assert_eq!(*asked.borrow(), before + 1, "strangers have four turns, and it has another");
        // Those for whom there was no room are told at once; it did not have to wait until the others' turns were over.
        let (answered, waits): (Vec<_>, Vec<_>) = crowd.into_iter().partition(|one| one.is_finished());
        assert_eq!((answered.len(), waits.len()), (52, 8));
        for answer in answered {
            let message = answer.await.unwrap()["status"]["message"].to_string();
            assert!(message.contains("too many namespaces that nobody knows"), "{message}");
        }
        waits.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn what_a_namespace_said_a_moment_ago_leaves_no_pod_without_a_sidecar() {
    let labels = Arc::new(Mutex::new(json!({})));
    let (file, asked) = api_server_of(labels.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    let router = injector(Some(&path));
    let no = response(&router, review("shop", json!({}))).await;
    assert!(no["allowed"] == true && no.get("patch").is_none(), "{no}");
    assert_eq!(*asked.borrow(), 1);
    *labels.lock() = json!({"istio-injection": "enabled"});
    let yes = response(&router, review("shop", json!({}))).await;
    assert!(yes["patch"].is_string(), "{yes}");
    assert_eq!(*asked.borrow(), 2);
    // A yes is kept: Pods of a Deployment come in crowds.
    response(&router, review("shop", json!({}))).await;
    assert_eq!(*asked.borrow(), 2);
}

#[tokio::test]
async fn a_cluster_that_is_too_old_for_native_sidecars_gets_plain_ones_until_it_is_not() {
    let (file, _) = api_server(json!({"istio-injection": "enabled"})).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    let mut registries = Table::new();
    let row = registries.add("kubernetes", "kubernetes");
    let router = injector_among(Some(&path), &registries);
    for (release, native) in [(None, true), (Some("v1.28.9"), false), (Some("v1.29.0"), true)] {
        row.health.set_release(release.map(|text| text.parse().unwrap()));
        let review = review("shop", json!({}));
        let answer = response(&router, review.clone()).await;
        let patch = STANDARD.decode(answer["patch"].as_str().unwrap()).unwrap();
        let patch: Patch = serde_json::from_slice(&patch).unwrap();
        let mut pod = review["request"]["object"].clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        let list = if native { &pod["spec"]["initContainers"][1] } else { &pod["spec"]["containers"][0] };
        assert_eq!(list["name"], "outrigger-proxy", "{release:?}: {pod}");
        let warned = answer["warnings"][0].as_str().is_some_and(|words| words.contains("Kubernetes 1.28"));
        assert_eq!(warned, !native, "{release:?}: {answer}");
    }
}

#[tokio::test]
async fn where_the_namespace_cannot_be_asked_about_only_a_clear_word_of_the_pod_counts() {
    let (file, _) = api_server(json!({})).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    for (router, namespace, reason) in
        [(injector(None), "shop", "settings name no cluster"), (injector(Some(&path)), "gone", "answers 404")]
    {
        let yes = response(&router, review(namespace, json!({"sidecar.istio.io/inject": "true"}))).await;
        assert!(yes["allowed"] == true && yes["patch"].is_string(), "{yes}");
        let no = response(&router, review(namespace, json!({"sidecar.istio.io/inject": "false"}))).await;
        assert!(no["allowed"] == true && no.get("patch").is_none(), "{no}");
        let unclear = response(&router, review(namespace, json!({}))).await;
        assert_eq!(unclear["allowed"], false);
        let message = unclear["status"]["message"].as_str().unwrap();
        assert!(message.contains(reason) && message.contains(namespace), "{message}");
    }
}

#[tokio::test]
async fn an_annotation_that_cannot_be_taken_refuses_the_pod_and_one_that_is_not_known_is_a_warning() {
    let router = injector(None);
    let mut review = review("shop", json!({"sidecar.istio.io/inject": "true"}));
    review["request"]["object"]["metadata"]["annotations"] = json!({"config.linkerd.io/opaque-ports": "25"});
    let answer = response(&router, review.clone()).await;
    assert!(answer["warnings"][0].as_str().unwrap().contains("opaque-ports"), "{answer}");
    review["request"]["object"]["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPU": "much"});
    let answer = response(&router, review).await;
    assert!(
        answer["allowed"] == false && answer["status"]["message"].as_str().unwrap().contains("proxyCPU"),
        "{answer}"
    );
}

#[tokio::test]
async fn what_is_no_review_of_a_pod_is_told_so() {
    let router = injector(None);
    let changed = |path: &str, value: Value| {
        let mut review = review("shop", json!({}));
        *review.pointer_mut(path).unwrap() = value;
        review.to_string()
    };
    for (body, word) in [
        ("{".to_owned(), "no AdmissionReview"),
        ("[]".to_owned(), "no AdmissionReview"),
        (json!({"apiVersion": "admission.k8s.io/v1"}).to_string(), "no request"),
        (changed("/apiVersion", "admission.k8s.io/v1beta1".into()), "admissionReviewVersions"),
        (changed("/request/kind/kind", "Service".into()), "takes Pods, not Service"),
        (changed("/request/object", Value::Null), "no object"),
    ] {
        let (status, said) = ask(&router, body).await;
        assert!(status == 400 && said.contains(word), "{status}: {said}");
    }
    let (status, said) = ask(&router, vec![b' '; MOST + 1]).await;
    assert!(status == 413 && said.contains("3145728"), "{status}: {said}");
}

#[tokio::test]
async fn whoever_applies_what_makes_pods_hears_what_their_injection_warns_of() {
    let (file, _) = api_server(json!({"istio-injection": "enabled"})).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file).unwrap();
    let router = injector(Some(&path));
    let template = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
    let review = |group: &str, kind: &str, namespace: &str, object: Value, old: Value| {
        let mut object = object;
        (object["apiVersion"], object["kind"]) = (format!("{group}/v1").into(), kind.into());
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": group, "version": "v1", "kind": kind}, "operation": "CREATE", "namespace": namespace,
            "object": object, "oldObject": old,
        }})
    };
    let warned = async |review: Value| -> Vec<String> {
        let (status, body) = ask_at("/inject/warnings", &router, review.to_string()).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let answer = &answer["response"];
        assert!(answer["allowed"] == true && answer.get("patch").is_none(), "{answer}");
        serde_json::from_value(answer.get("warnings").cloned().unwrap_or(json!([]))).unwrap()
    };
    let unknown = json!({"sidecar.istio.io/unknown": "1"});
    let deployment =
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "template": template(unknown.clone())}});
    let said = warned(review("apps", "Deployment", "shop", deployment.clone(), Value::Null)).await;
    assert!(said.len() == 1 && said[0].contains("sidecar.istio.io/unknown"), "{said:?}");
    let cron = json!({"spec": {"jobTemplate": {"spec": {"template": template(unknown)}}}});
    assert_eq!(warned(review("batch", "CronJob", "shop", cron, Value::Null)).await, said);
    // How many there are to be is another matter.
    let mut scaled = deployment.clone();
    scaled["spec"]["replicas"] = 2.into();
    assert_eq!(warned(review("apps", "Deployment", "shop", scaled, deployment.clone())).await, [""; 0]);
    // What refuses the Pods is said before there are any, and refuses nothing else.
    let wrong = template(json!({"sidecar.istio.io/proxyCPU": "much"}));
    let said =
        warned(review("apps", "StatefulSet", "shop", json!({"spec": {"template": wrong}}), Value::Null))
            .await;
    assert!(
        said.len() == 1 && said[0].starts_with("its Pods will be refused: ") && said[0].contains("proxyCPU"),
        "{said:?}"
    );
    // Without a word of its namespace nothing is known.
    assert_eq!(warned(review("apps", "Deployment", "gone", deployment.clone(), Value::Null)).await, [""; 0]);
    let other = review("apps", "Service", "shop", deployment, Value::Null);
    assert_eq!(ask_at("/inject/warnings", &router, other.to_string()).await.0, 400);

    let many: serde_json::Map<String, Value> =
        (0..100).map(|n| (format!("sidecar.istio.io/{n}{}", "x".repeat(2000)), json!(""))).collect();
    let said = warned(review(
        "apps",
        "Deployment",
        "shop",
        json!({"spec": {"template": template(many.into())}}),
        Value::Null,
    ))
    .await;
    assert_eq!(said.len(), 17);
    assert!(said.iter().all(|one| one.len() <= 1024) && said[16] == "and 84 more", "{said:?}");
}
