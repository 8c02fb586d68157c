//! A cluster that is followed over HTTP: its releases, watches that are too old, an API server that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::Value;

use super::*;

/// For what is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer that comes when something happens, which it does not.
async fn silence() -> Response {
    std::future::pending().await
}

fn list(version: u32, items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code})
}

fn version(text: &str) -> Value {
    json!({
        "major": "1", "minor": "0", "gitVersion": text, "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
        "compiler": "", "platform": "",
    })
}

/// A cluster whose API server answers so; nothing: as one does that has nothing of it, and where nothing changes.
struct Played {
    settings: KubernetesSettings,
    _directory: tempfile::TempDir,
}

impl Played {
    async fn start(answer: impl Fn(&Uri) -> Option<Response> + Clone + Send + Sync + 'static) -> Self {
        let answer = move |uri: Uri| {
            let given = answer(&uri);
            async move {
                if let Some(given) = given {
                    return given;
                }
                if is_watch(&uri) {
                    return silence().await;
                }
                match uri.path() {
                    "/version" => Json(version("v1.33.0")),
                    path if path.starts_with("/apis/") && path.split('/').count() == 4 => {
                        Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "", "resources": []}))
                    }
                    _ => Json(list(7, &[])),
                }
                .into_response()
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {}}],
        });
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, file.to_string()).unwrap();
        let settings = KubernetesSettings { kubeconfig: Some(kubeconfig), ..KubernetesSettings::default() };
        Self { settings, _directory: directory }
    }

    /// Follows it for as long as somebody looks at what it says.
    async fn followed<T>(&self, look: impl AsyncFnOnce(&Voice, mpsc::Receiver<Word>) -> T) -> T {
        let mut followed = Kubernetes::new(self.settings.clone(), ParseOptions::default());
        let (voice, words) = Voice::of_a_test();
        let looked = tokio::time::timeout(PATIENCE, look(&voice, words));
        tokio::select! {
            ended = followed.follow(&voice) => panic!("{ended:?}"),
            looked = looked => looked.unwrap_or_else(|_| panic!("{:?}", voice.health.state())),
        }
    }

    /// What it says first once all is known, and of which kind.
    async fn first_news(&self) -> (String, Event) {
        self.followed(async |_, mut words| {
            while !matches!(words.recv().await, Some(Word::Whole) | None) {}
            match words.recv().await {
                Some(Word::Event(source, event)) => (source.part.clone(), event),
                other => panic!("{other:?}"),
            }
        })
        .await
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.contains("watch=true"))
}

#[tokio::test]
async fn the_oldest_release_of_a_cluster_is_that_of_its_api_server_or_of_a_node() {
    for (api, kubelets, oldest) in [
        ("v1.31.2", &["v1.31.2", "v1.28.9-eks-1", "v1.30.0"][..], "1.28"),
        ("v1.28.4", &["v1.28.4"], "1.28"),
        ("v1.33.0", &[], "1.33"),
        // Who is no kubelet says what it likes, and no sidecar runs on Windows.
        ("v1.33.0", &["virtual", "v1.33.1", "v1.27.3 windows"], "1.33"),
    ] {
        let node = |(n, kubelet): (usize, &&str)| {
            let (kubelet, system) = kubelet.split_once(' ').unwrap_or((kubelet, "linux"));
            json!({"metadata": {"name": format!("n{n}")}, "status": {"nodeInfo": {
                "kubeletVersion": kubelet, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "machineID": "", "operatingSystem": system, "osImage": "", "systemUUID": "",
            }}})
        };
        let nodes: Vec<Value> = kubelets.iter().enumerate().map(node).collect();
        let cluster = Played::start(move |uri| match uri.path() {
            "/version" => Some(Json(version(api)).into_response()),
            "/api/v1/nodes" if !is_watch(uri) => Some(Json(list(7, &nodes)).into_response()),
            _ => None,
        })
        .await;
        let oldest = oldest.parse().unwrap();
        cluster
            .followed(async |voice, _words| {
                let mut health = voice.health.subscribe();
                health.wait_for(|state| state.release == Some(oldest)).await.map(drop).unwrap();
            })
            .await;
    }
}

/// It is asked whether it is there.
const PINGED: &str = "ping";

/// An API server says it in a watch that it has begun, or instead of one.
#[tokio::test]
async fn a_watch_that_is_too_old_lists_anew_and_only_what_has_gone_goes() {
    let gone = || Json(status(410, "Expired"));
    too_old(move || Body::from(json!({"type": "ERROR", "object": gone().0}).to_string()).into_response())
        .await;
    too_old(move || (StatusCode::GONE, gone()).into_response()).await;
}

async fn too_old(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": format!("10.1.0.{}", name.len()), "conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    // Questions about Pods, and where each goes on from; and whether it is there.
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    let cluster = Played::start(move |uri| match uri.path() {
        "/version" => {
            seen.lock().push(PINGED.to_owned());
            None
        }
        "/api/v1/pods" => {
            let version = uri.query()?.split('&').find_map(|word| word.strip_prefix("resourceVersion="));
            let version = version.unwrap_or_default().to_owned();
            let mut seen = seen.lock();
            if !is_watch(uri) {
                let first = !seen.iter().any(|word| word == "list");
                seen.push("list".to_owned());
                let pods = if first { vec![pod("web-1"), pod("web-23")] } else { vec![pod("web-1")] };
                return Some(Json(list(if first { 7 } else { 9 }, &pods)).into_response());
            }
            seen.push(format!("watch from {version}"));
            if version != "7" {
                return None;
            }
            Some(answer())
        }
        "/api/v1/services" if !is_watch(uri) => {
            Some(Json(list(7, std::slice::from_ref(&service))).into_response())
        }
        _ => None,
    })
    .await;
    let said = cluster.first_news().await;
    // The first word after all was known: the one that is still there was never taken away.
    assert_eq!(said, (POD.to_owned(), Event::Remove(Key::Instance("web-23.shop".into()))));
    let asked = asked.lock().clone();
    let of_pods: Vec<&str> = asked.iter().map(String::as_str).filter(|word| *word != PINGED).collect();
    assert_eq!(of_pods[..3], ["list", "watch from 7", "list"], "{asked:?}");
    // It need not be asked once more whether it is there before it lists anew.
    let watched = asked.iter().position(|word| word == "watch from 7").unwrap();
    let listed = watched + asked[watched..].iter().position(|word| word == "list").unwrap();
    let pings = |words: &[String]| words.iter().filter(|word| *word == PINGED).count();
    assert!(pings(&asked[watched..listed]) == 0 || pings(&asked[..listed]) == 1, "{asked:?}");
}

/// A backup that is put back: watches would go on from a place that the storage has not reached, and hear nothing.
#[tokio::test]
async fn a_cluster_that_was_restored_is_listed_anew_though_its_watches_are_well() {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": format!("10.1.0.{}", name.len()), "conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    // Once it was listed, and said how far it had come.
    let (is_listed, is_asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let before = Arc::new((is_listed, is_asked));
    let cluster = Played::start(move |uri| {
        let (is_listed, is_asked) = &*before;
        let is_restored = is_listed.load(SeqCst) && is_asked.load(SeqCst);
        let version = if is_restored { 50 } else { 100 };
        match uri.path() {
            _ if is_watch(uri) => None,
            "/api/v1/pods" => {
                is_listed.store(true, SeqCst);
                let pods = if is_restored { vec![pod("web-1")] } else { vec![pod("web-1"), pod("web-23")] };
                Some(Json(list(version, &pods)).into_response())
            }
            "/api/v1/services" => {
                // How far it has come, not what there is.
                let is_question =
                    uri.query().is_some_and(|query| query.split('&').any(|word| word == "limit=1"));
                is_asked.fetch_or(is_question, SeqCst);
                Some(Json(list(version, &[])).into_response())
            }
            _ => None,
        }
    })
    .await;
    let said = cluster.first_news().await;
    assert_eq!(said, (POD.to_owned(), Event::Remove(Key::Instance("web-23.shop".into()))));
}

/// One kind fails, and is asked for less and less; the others are followed meanwhile.
#[tokio::test]
async fn an_api_server_that_fails_is_asked_after_a_pause_that_grows() {
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = asked.clone();
    let cluster = Played::start(move |uri| {
        if uri.path() != "/api/v1/nodes" || is_watch(uri) {
            return None;
        }
        let mut seen = seen.lock();
        seen.push(Instant::now());
        (seen.len() <= 2)
            .then(|| (StatusCode::INTERNAL_SERVER_ERROR, Json(status(500, "InternalError"))).into_response())
    })
    .await;
    let problems = cluster
        .followed(async |voice, mut words| {
            let mut health = voice.health.subscribe();
            let told = health.wait_for(|state| !state.problems.is_empty()).await.unwrap().problems.clone();
            while !matches!(words.recv().await, Some(Word::Whole) | None) {}
            told
        })
        .await;
    assert_eq!((problems.len(), problems[0].file.as_str()), (1, NODE), "{problems:?}");
    let asked = asked.lock().clone();
    assert_eq!(asked.len(), 3);
    let pauses = [asked[1] - asked[0], asked[2] - asked[1]];
    // Half a second and a second, and up to half of it more by chance.
    assert!(pauses[0] >= Duration::from_millis(500) && pauses[1] >= Duration::from_secs(1), "{pauses:?}");
}
