//! What an operator is told of a data directory that is not the mesh's, of who is missing, and of who was turned away.

use std::sync::Arc;

use outrigger_identity::connect::{PeerExpectation, client_config};
use outrigger_identity::{Authority, AuthorityOptions, Credentials};
use outrigger_model::identity::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::inject::InjectSettings;
use crate::instance::{Instance, Protocol, sample};
use crate::store::memory::Memory;
use crate::{ControlPlane, Running, Settings};

async fn start(dir: &std::path::Path) -> Running {
    ControlPlane::start(Settings::ephemeral(dir)).await.unwrap()
}

#[tokio::test]
async fn a_data_directory_of_another_trust_domain_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path()).await.stop().await;
    let other = Settings { trust_domain: "other.example".into(), ..Settings::ephemeral(dir.path()) };
    let error = ControlPlane::start(other).await.err().expect("it does not start").to_string();
    for part in ["cluster.local", "other.example", "Set trustDomain back"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    start(dir.path()).await.stop().await;
}

#[tokio::test]
async fn whatever_store_it_is_given_is_used_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Memory::default());
    let on = || {
        ControlPlane::start_with(
            Settings::ephemeral(dir.path()),
            None,
            Some(store.clone()),
            Handle::current(),
        )
    };
    let running = on().await.unwrap();
    let web = sample("web-1", "web", "v1", "127.0.0.5", 80, Protocol::Http);
    running.client().register(&web).await.unwrap();
    let generation = running.keeper().published().generation();
    running.stop().await;
    assert!(!dir.path().join("outrigger.redb").exists());
    let running = on().await.unwrap();
    let instances = running.client().instances().await.unwrap();
    assert_eq!(instances.iter().map(|body| &*body.registry).collect::<Vec<_>>(), ["api"]);
    assert!(running.keeper().published().generation() > generation);
    running.stop().await;
}

#[tokio::test]
async fn a_lost_authority_is_said_and_one_that_was_kept_is_not() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path()).await.stop().await;
    let running = start(dir.path()).await;
    assert_eq!(running.client().status().await.unwrap().notices, [""; 0], "a restart is nothing to speak of");
    running.stop().await;
    std::fs::remove_dir_all(dir.path().join("ca")).unwrap();
    let running = start(dir.path()).await;
    let notices = running.client().status().await.unwrap().notices;
    assert!(notices.len() == 1 && notices[0].contains("is not the one that the sidecars"), "{notices:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_registered_instance_without_its_sidecar_is_missing_and_one_that_needs_none_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    let client = running.client();
    let web = sample("web-1", "web", "v1", "127.0.0.5", 80, Protocol::Http);
    client.register(&web).await.unwrap();
    let bare =
        Instance { id: "db-1".into(), sidecar: false, addresses: vec!["127.0.0.6".parse().unwrap()], ..web };
    client.register(&bare).await.unwrap();
    let missing = client.status().await.unwrap().missing;
    let missing: Vec<_> = missing.iter().map(|m| (m.instance.as_str(), m.service.as_str(), m.seen)).collect();
    assert_eq!(missing, [("web-1", "shop/web", false)]);
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_turned_away_where_the_operator_looks() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    // As after a lost authority: good once, and of the same trust domain.
    let lost = Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
    let web = SpiffeId::workload("cluster.local", "shop", "web").unwrap();
    let issued = lost.issue_key_and_certificate(&web, None).unwrap();
    let credentials = Credentials::new(Some(Arc::new(issued.certificate)), running.authority().bundle());
    let anybody = PeerExpectation::TrustDomain("cluster.local".into());
    let tls = TlsConnector::from(client_config(&credentials, anybody, &[b"h2"]).unwrap());
    let tcp = tokio::net::TcpStream::connect(running.addresses.xds).await.unwrap();
    if let Ok(mut io) = tls.connect("control".try_into().unwrap(), tcp).await {
        // In TLS 1.3 a client hears of its certificate's refusal with the first read.
        let _ = io.read_to_end(&mut Vec::new()).await;
    }
    let rejections = running.client().status().await.unwrap().rejections;
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    let first = &rejections[0];
    assert_eq!((first.what.as_str(), first.from.as_str(), first.count), ("certificate", "127.0.0.1", 1));
    assert!(
        first.reason.contains("sa/web") && first.reason.contains("does not chain to a root"),
        "{first:?}"
    );
    running.stop().await;
}

/// Verifies as an API server does: a chain to the bundle, and the name of the Service.
#[tokio::test]
async fn an_api_server_trusts_the_injector_by_the_name_of_its_service() {
    let dir = tempfile::tempdir().unwrap();
    let injector = InjectSettings {
        address: "127.0.0.1:0".parse().unwrap(),
        image: "outrigger-proxy:test".into(),
        control_plane: "outrigger-control.mesh.svc:15012".into(),
        ..InjectSettings::default()
    };
    let settings = Settings { injector: Some(injector), ..Settings::ephemeral(dir.path()) };
    let running = ControlPlane::start(settings).await.unwrap();
    let mut roots = RootCertStore::empty();
    for root in running.authority().bundle().roots("cluster.local") {
        roots.add(root.clone().into_owned()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let address = running.addresses.injector.unwrap();
    let ask = |name: &'static str| {
        let tls = tls.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let mut io =
                tls.connect(name.try_into().unwrap(), tcp).await.map_err(|error| error.to_string())?;
            let head = "POST /inject HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
            io.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            io.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(answer)
        }
    };
    let answer = ask("outrigger-control.mesh.svc").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("no AdmissionReview"), "{answer}");
    assert!(ask("elsewhere.mesh.svc").await.unwrap_err().contains("certificate"));
    running.stop().await;
}
