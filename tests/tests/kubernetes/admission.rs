//! What an API server has to say of injected Pods, and others that change them: another's webhook after ours, static Pods, Pods with resources of
//! their own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;

/// Where the other webhook is asked, on the host of the API server.
const ANOTHER: &str = "127.0.0.1:15099";

/// A Pod to which the other webhook adds.
const ADDED_TO: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "more", "namespace": "shop",
    "labels": {"app": "more", "another": "adds"}}, "spec": {"nodeName": "node-1", "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"], "ports": [{"containerPort": 8080}],
         "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}
]}}"#;

/// What a kubelet shows of a Pod that it has from a file of its node.
const STATIC: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static-node-1", "namespace": "shop", "labels": {"app": "static"},
    "annotations": {"kubernetes.io/config.mirror": "c0ffee", "kubernetes.io/config.source": "file"}}, "spec": {"nodeName": "node-1", "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
]}}"#;

/// One that says what all of its containers may use together, and less than a sidecar may by default.
const SHARING: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sharing", "namespace": "shop", "labels": {"app": "sharing"}},
    "spec": {"nodeName": "node-1", "resources": {"limits": {"cpu": "1", "memory": "512Mi"}}, "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"], "resources": {"requests": {"cpu": "1", "memory": "500Mi"}},
         "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
]}}"#;

/// The answer of a webhook that adds a container with a probe to whatever Pod it is shown.
fn added(review: &Value) -> Value {
    let container = json!({
        "name": "added", "image": "app", "args": ["serve", "8081"],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8081}, "periodSeconds": 1},
    });
    let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": container}]).to_string();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
        "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch),
    }})
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review = serde_json::from_slice(&body).unwrap_or_default();
    let answer = Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::from(added(&review).to_string())).expect("a response of our own"))
}

/// Another's webhook; by what it is trusted.
async fn another() -> String {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(ANOTHER).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    certificate.pem()
}

/// Asked after ours, which comes first by its name.
fn configuration(roots: &str) -> String {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "zz-another"},
        "webhooks": [{
            "name": "adds.another.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": format!("https://{ANOTHER}/"), "caBundle": STANDARD.encode(roots)},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "objectSelector": {"matchLabels": {"another": "adds"}},
        }],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_webhook_adds_to_a_pod_is_injected_too() {
    let Some(stage) = Stage::start().await else { return };
    stage.mesh.apply(STRICT).await;
    let roots = stage.master.run(another()).await;
    stage.cluster.apply(&configuration(&roots));
    eventually("the other webhook is asked", || async {
        let made = stage.cluster.kubectl_with(ADDED_TO, &["apply", "--dry-run=server", "-o", "json"])?;
        if made.contains(r#""name": "added""#) { Ok(()) } else { Err(made) }
    })
    .await;
    stage.cluster.apply(ADDED_TO);
    // Nobody outside of the mesh reaches a port of it under STRICT: a kubelet has its answer only where it asks the sidecar.
    stage.until_ready("more", 1).await;
    let pod = cni::pod(&stage, "more");
    let of = |list: &str, name: &str| {
        let all = pod["spec"][list].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {pod:#}")).clone()
    };
    let sidecar = of("initContainers", "outrigger-proxy");
    let bootstrap = sidecar["env"].as_array().unwrap().last().unwrap()["value"].as_str().unwrap();
    for name in ["app", "added"] {
        let asked = of("containers", name)["readinessProbe"]["httpGet"].clone();
        assert_eq!(
            (&asked["port"], &asked["path"]),
            (&json!(15021), &json!(format!("/app-health/{name}/readyz")))
        );
        assert!(bootstrap.contains(&format!("\"{name}/readyz\"")), "{bootstrap}");
    }
    let direct = SocketAddr::new(stage.host("more").v4(), 8081);
    let refused = stage.master.run(app::get(direct, "/", "")).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_and_pods_with_resources_of_their_own_are_what_an_api_server_takes() {
    let Some(stage) = Stage::start().await else { return };
    stage.cluster.apply(STATIC);
    stage.cluster.apply(SHARING);
    stage.until_ready("static", 1).await;
    let spec = cni::pod(&stage, "static-node-1")["spec"].to_string();
    assert!(!spec.contains("outrigger"), "{spec}");

    stage.until_ready("sharing", 1).await;
    let pod = cni::pod(&stage, "sharing");
    let sidecar = &pod["spec"]["initContainers"][1];
    assert_eq!(sidecar["name"], "outrigger-proxy");
    assert!(
        pod["spec"]["resources"]["limits"]["cpu"] == "1" && sidecar["resources"]["limits"]["cpu"].is_null(),
        "{pod:#}"
    );
}
