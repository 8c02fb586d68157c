//! Two control planes that are one: the authority, revocations and join tokens in Secrets, a Lease for who writes. Sidecars are served by
//! either, and lose neither requests nor their peers when one of them ends, restarts, freezes, or cannot reach the API server.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outrigger_control::api::types::{RevocationRequest, StatusBody, TokenRequest};
use outrigger_identity::csr::client::request_certificate;
use outrigger_identity::{ControlPeer, ControlPlane, CredentialStore, JoinFile};
use outrigger_tests::way::Way;

use super::*;

mod compacted;
mod ends;
mod volumes;

const NAMES: [&str; 2] = ["outrigger-control-0", "outrigger-control-1"];
/// Of each replica: its ports begin with this, where those of one alone begin with 15.
const PORTS: [u16; 2] = [25_000, 35_000];

/// Whoever they are here may do with what replicas share what the manifest lets them do, and nothing else.
const SHARE: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: outrigger-control-of-the-test, namespace: outrigger-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: outrigger-control}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: mesh}]
";

/// A rule whose status is looked at; `{}` is a timeout.
const RULE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [catalog], http: [{timeout: {}, route: [{destination: {host: catalog}}]}]}
";

struct Pair {
    /// With the first replica as its mesh.
    stage: Stage,
    other: Mesh,
    /// By which each reaches the API server.
    ways: [Way; 2],
    _services: Vec<Way>,
}

impl Pair {
    async fn start() -> Option<Self> {
        let definitions = require::folder("istio-crds")?;
        let programs = able()?;
        let net = Arc::new(Net::new());
        let master = net.host("master");
        let cluster = Cluster::start(programs, &master).await;
        cluster.apply(&std::fs::read_to_string(MANIFEST).unwrap());
        cluster.apply(WE_ARE);
        cluster.apply(SHARE);
        for file in std::fs::read_dir(definitions).unwrap() {
            let file = file.unwrap().path();
            cluster.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]).unwrap();
        }
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).unwrap();
        for (webhook, paths) in WEBHOOKS.into_iter().zip(PATHS) {
            let to = |(place, path): (usize, &&str)| {
                let at = format!("/webhooks/{place}/clientConfig");
                json!({"op": "replace", "path": at, "value": {"url": format!("https://127.0.0.1:15017/{path}")}})
            };
            let urls = Value::from(paths.iter().enumerate().map(to).collect::<Vec<_>>()).to_string();
            cluster.kubectl(&[&["patch"], &webhook[..], &["--type=json", "-p", &urls]].concat()).unwrap();
        }
        let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let way = async |listen: SocketAddr, to: Vec<SocketAddr>| master.run(Way::open(listen, to)).await;
        let at = |port: u16| SocketAddr::new(master.v4(), port);
        let services = vec![
            way(at(15_012), PORTS.map(|base| at(base + 12)).to_vec()).await,
            way(here(15_017), PORTS.map(|base| here(base + 17)).to_vec()).await,
        ];
        let ways = [way(here(26_443), vec![here(6443)]).await, way(here(36_443), vec![here(6443)]).await];
        let kubeconfig = std::fs::read_to_string(cluster.path("mesh.kubeconfig")).unwrap();
        let settings = [0, 1].map(|which| {
            let base = PORTS[which];
            let file = cluster.path(&format!("{}.kubeconfig", NAMES[which]));
            std::fs::write(&file, kubeconfig.replace(":6443", &format!(":{}", base + 1443))).unwrap();
            cluster.apply(&slice(which, master.v4()));
            json!({
                "xdsAddress": at(base + 12), "metricsAddress": at(base + 14), "otlpAddress": at(base + 18),
                "queryAddress": at(base + 19),
                "registries": [{"name": "cluster", "kubernetes": {"kubeconfig": file}}],
                "injector": {
                    "address": here(base + 17), "image": "outrigger/proxy:test", "controlPlane": at(15_012),
                    "webhook": "outrigger-injector",
                },
                "replicas": {"name": NAMES[which], "namespace": "outrigger-system"},
            })
        });
        let [one, two] = settings;
        // Both at once: one of them makes what is shared.
        let (mesh, other) = tokio::join!(
            Mesh::start_on_with(BINARY, &master, one),
            Mesh::start_on_with(BINARY, &master, two)
        );
        let client = cluster.client().await;
        let kubelet = master.run(Kubelet::start(NODE, "eu-1", client, net, images(), None, None)).await;
        cluster.apply(SHOP);
        let pair = {
            let place = Place { kubelet, cluster };
            Self { stage: Stage { place, mesh, master, _services: None }, other, ways, _services: services }
        };
        pair.until_led().await;
        eventually("the webhooks are trusted", || async {
            let bundle = ["-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"];
            let found = pair.stage.cluster.kubectl(&[&["get"], &WEBHOOKS[0][..], &bundle].concat())?;
            if found.is_empty() { Err("it has none".to_owned()) } else { Ok(()) }
        })
        .await;
        Some(pair)
    }

    fn mesh(&self, which: usize) -> &Mesh {
        [&self.stage.mesh, &self.other][which]
    }

    fn mesh_mut(&mut self, which: usize) -> &mut Mesh {
        if which == 0 { &mut self.stage.mesh } else { &mut self.other }
    }

    /// Two applications, each of which is served by another replica, under STRICT.
    async fn shop(&self) -> String {
        self.stage.cluster.apply(STRICT);
        self.stage.cluster.apply(&deployment("web", "v1", 1));
        self.stage.cluster.apply(&deployment("catalog", "v1", 1));
        let [web] = self.stage.until_ready("web", 1).await.try_into().unwrap();
        self.stage.until_ready("catalog", 1).await;
        self.until_called(&web).await;
        web
    }

    /// Waits until web's requests cross with its identity.
    async fn until_called(&self, web: &str) {
        let address = self.stage.service("catalog", 80);
        eventually("web reaches the catalog", || async {
            match self.stage.ask(web, address).await {
                Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
                other => Err(format!("{other:?}\n{}", self.stage.logs(web))),
            }
        })
        .await;
    }

    /// Waits until one of them says that it leads, and which.
    async fn until_led(&self) -> usize {
        eventually("one leads", || async {
            let mut leaders = Vec::new();
            for (which, name) in NAMES.iter().enumerate() {
                let Ok(status) = self.mesh(which).client.status().await else { continue };
                let own = status.replicas.iter().find(|one| one.name == *name);
                leaders.extend(own.filter(|own| own.leads).map(|_| which));
            }
            match leaders.as_slice() {
                [one] => Ok(*one),
                other => Err(format!("{other:?} lead")),
            }
        })
        .await
    }

    async fn until_status(
        &self,
        which: usize,
        what: &str,
        wanted: impl Fn(&StatusBody) -> bool,
    ) -> StatusBody {
        eventually(what, || async {
            let status = self.mesh(which).client.status().await.map_err(|error| error.to_string())?;
            if wanted(&status) { Ok(status) } else { Err(format!("{status:#?}")) }
        })
        .await
    }

    /// Applies the rule with a timeout, and waits until its status says that so many have it.
    async fn until_told(&self, timeout: &str, words: &str) {
        self.stage.cluster.apply(&RULE.replace("{}", timeout));
        let path = r#"jsonpath={.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=="Reconciled")].message}"#;
        eventually(&format!("{timeout}: {words}"), || async {
            let said = self.stage.cluster.kubectl(&[
                "-n",
                "shop",
                "get",
                "virtualservice",
                "reviews",
                "-o",
                path,
            ])?;
            let mut parts = said.splitn(3, ' ');
            let (of, observed) = (parts.next(), parts.next());
            let message = parts.next().unwrap_or_default();
            // At the object's own generation: replicas have that in common.
            let whole = format!("{words} at generation {}", of.unwrap_or_default());
            if of == observed && message == whole { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    }
}

/// Where a replica is, as a Service's endpoints say it.
fn slice(which: usize, address: std::net::IpAddr) -> String {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": NAMES[which], "namespace": "outrigger-system",
            "labels": {"kubernetes.io/service-name": "outrigger-control"},
        },
        "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": NAMES[which]}}],
        "ports": [{"name": "tls-xds", "port": PORTS[which] + 12}],
    })
    .to_string()
}

/// Requests of one Pod, until they are stopped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    wrong: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    pub(super) fn start(client: Host, address: SocketAddr) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let wrong = tokio::spawn({
            let (stop, asked) = (stop.clone(), asked.clone());
            async move {
                client
                    .run(async move {
                        let mut wrong = Vec::new();
                        while !stop.load(SeqCst) {
                            let answer = app::get(address, "/", "").await;
                            asked.fetch_add(1, SeqCst);
                            if !answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
                                wrong.push(format!("{answer:?}"));
                            }
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        wrong
                    })
                    .await
            }
        });
        Self { stop, asked, wrong }
    }

    /// How many there were; none has failed.
    pub(super) async fn none_failed(self) -> u32 {
        self.stop.store(true, SeqCst);
        let wrong = self.wrong.await.unwrap();
        let asked = self.asked.load(SeqCst);
        assert!(asked > 50 && wrong.is_empty(), "{} of {asked}: {:?}", wrong.len(), wrong.first());
        asked
    }
}

fn whom(account: &str) -> RevocationRequest {
    RevocationRequest {
        namespace: Some("shop".into()),
        service_account: Some(account.into()),
        ..RevocationRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_control_planes_have_one_authority_one_list_of_the_revoked_and_one_count_of_proxies() {
    let Some(pair) = Pair::start().await else { return };
    let [one, two] = [0, 1].map(|which| pair.mesh(which).client.clone());
    assert_eq!(one.authority().await.unwrap().roots, two.authority().await.unwrap().roots);
    let web = pair.shop().await;

    // Either says of all of them where they are.
    for which in 0..2 {
        let status = pair.until_status(which, "both proxies are shown", |all| all.proxies.len() == 2).await;
        let at: BTreeSet<_> = status.proxies.iter().filter_map(|proxy| proxy.replica.as_deref()).collect();
        assert_eq!(at, BTreeSet::from(NAMES), "the Service gave each another");
        assert!(status.notices.is_empty() && status.missing.is_empty(), "{status:#?}");
        let names: Vec<_> = status.replicas.iter().map(|one| (one.name.as_str(), one.proxies)).collect();
        assert_eq!(names, [(NAMES[0], 1), (NAMES[1], 1)]);
    }
    pair.until_told("7s", "2 of 2 proxies").await;

    // What would be one's own is refused.
    let refused = one.apply(&RULE.replace("{}", "5s"), &Default::default()).await.unwrap_err();
    assert!(refused.to_string().contains("kubectl apply"), "{refused}");

    // Whoever is revoked at one has no peers at either.
    let begun = Instant::now();
    two.revoke(&whom("web")).await.unwrap();
    eventually("the other has heard of it", || async {
        let all = one.revoked().await.map_err(|error| error.to_string())?;
        if all.len() == 1 { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    eprintln!("a revocation was known at the other after {:?}", begun.elapsed());
    let address = pair.stage.service("catalog", 80);
    eventually("web is refused", || async {
        match pair.stage.ask(&web, address).await {
            Ok((200, text)) => Err(text),
            _ => Ok(()),
        }
    })
    .await;
    eprintln!("and in force at both sidecars after {:?}", begun.elapsed());
    one.reinstate(&whom("web")).await.unwrap();
    pair.until_called(&web).await;

    spent_once(&pair).await;
    rotated(&pair, &web).await;
    rights(&pair.stage.cluster);
}

/// Nothing that they asked was forbidden, and of what they may do with what they share nothing was not asked.
fn rights(cluster: &Cluster) {
    let audit = cluster.audit("mesh");
    let forbidden = |event: &&Value| event["responseStatus"]["code"] == 403;
    assert!(
        audit.len() > 100 && !audit.iter().any(|event| forbidden(&event)),
        "{:#?}",
        audit.iter().find(forbidden)
    );
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let asked: BTreeSet<(String, String)> = audit
        .iter()
        .map(|event| (word(&event["objectRef"]["resource"]), word(&event["verb"])))
        .filter(|(resource, _)| ["secrets", "leases"].contains(&resource.as_str()))
        .collect();
    let role = cluster.kubectl(&["-n", "outrigger-system", "get", "role", "outrigger-control", "-o", "json"]);
    let role: Value = serde_json::from_str(&role.unwrap()).unwrap();
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let verbs = rule["verbs"].as_array().unwrap().iter().map(word);
        granted.extend(verbs.map(|verb| (word(&rule["resources"][0]), verb)));
    }
    assert_eq!(asked, granted);
}

/// A join token for one certificate gets one, whoever is asked how often.
async fn spent_once(pair: &Pair) {
    let grant = TokenRequest {
        namespace: "shop".into(),
        service_account: "guest".into(),
        uses: Some(1),
        ..TokenRequest::default()
    };
    let join = pair.mesh(0).client.create_token(&grant).await.unwrap();
    eventually("the other knows the token", || async {
        let all = pair.mesh(1).client.tokens().await.map_err(|error| error.to_string())?;
        if all.is_empty() { Err("none") } else { Ok(()) }.map_err(str::to_owned)
    })
    .await;
    let host = &pair.stage.master;
    let asked = (0..8).map(|which| {
        let (join, address) = (join.clone(), SocketAddr::new(host.v4(), PORTS[which % 2] + 12));
        host.run(async move { redeem(&join, address).await })
    });
    let got: Vec<Result<(), String>> = futures_util::future::join_all(asked).await;
    let good = got.iter().filter(|one| one.is_ok()).count();
    assert_eq!(good, 1, "{got:?}");
}

pub(super) async fn redeem(join: &JoinFile, address: SocketAddr) -> Result<(), String> {
    let store = CredentialStore::new(join.bundle().map_err(|error| error.to_string())?);
    let peer = ControlPeer::outrigger(&join.trust_domain).map_err(|error| error.to_string())?;
    let control =
        ControlPlane::new(&[address.to_string()], peer, store).map_err(|error| error.to_string())?;
    let hour = Duration::from_secs(3600);
    let issued = request_certificate(control.channel(), &join.identity, hour, Some(&join.token)).await;
    issued.map(drop).map_err(|failure| failure.error.to_string())
}

/// What comes of a certificate that the join file's token has bought: another one?
pub(super) async fn renew(join: &JoinFile, address: SocketAddr) -> Result<(), String> {
    let store = CredentialStore::new(join.bundle().map_err(|error| error.to_string())?);
    let peer = ControlPeer::outrigger(&join.trust_domain).map_err(|error| error.to_string())?;
    let control =
        ControlPlane::new(&[address.to_string()], peer, store.clone()).map_err(|error| error.to_string())?;
    let hour = Duration::from_secs(3600);
    let bought =
        request_certificate(control.anonymous_channel(), &join.identity, hour, Some(&join.token)).await;
    let bought = bought.map_err(|failure| format!("not even the first: {}", failure.error))?;
    store.replace_certificate(Arc::new(bought.certificate));
    let issued = request_certificate(control.channel(), &join.identity, hour, None).await;
    issued.map(drop).map_err(|failure| failure.error.to_string())
}

/// A root that is rotated at one is the other's, too, and nobody loses a peer. Once the old one is forgotten, which is forced here, who has not
/// renewed is refused.
async fn rotated(pair: &Pair, web: &str) {
    let [one, two] = [0, 1].map(|which| pair.mesh(which).client.clone());
    let roots = one.rotate_root().await.unwrap().roots;
    assert_eq!(roots.len(), 2);
    eventually("the other signs with it", || async {
        let there = two.authority().await.map_err(|error| error.to_string())?.roots;
        if there == roots { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
    pair.until_called(web).await;
    two.forget_old_roots(true).await.unwrap_or_else(|error| panic!("{error}"));
    eventually("the old one is forgotten by both", || async {
        let there = one.authority().await.map_err(|error| error.to_string())?.roots;
        if there == roots[..1] { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
    // A Secret that somebody deletes is written again, with the same roots.
    pair.stage
        .cluster
        .kubectl(&["-n", "outrigger-system", "delete", "secret", "outrigger-authority"])
        .unwrap();
    eventually("the Secret is back", || async {
        pair.stage.cluster.kubectl(&["-n", "outrigger-system", "get", "secret", "outrigger-authority"])
    })
    .await;
    assert_eq!(one.authority().await.unwrap().roots, roots[..1]);
}
