//! A cluster, `outrigger install | kubectl apply`, and all that follows: the StatefulSet's Pods, real but for the container, serve by
//! their Service, call the API server as their own service account, and are called by it; a Pod of a labelled namespace is injected by them
//! and serves. What they may do they do, and nothing that they do is refused. `outrigger uninstall | kubectl delete` leaves the cluster as it was.
//! Once with the definitions of Istio and of the Gateway API beside it, so that all it may do is done; once without any.

use std::collections::BTreeSet;
use std::process::Command;

use outrigger_control::api::types::{Condition, RevocationRequest, TokenRequest};
use outrigger_control::client::Client;
use outrigger_tests::cluster::INSTALLED;

use super::*;

pub(super) const SYSTEM: &str = "outrigger-system";
pub(super) const REPLICAS: [&str; 2] = ["outrigger-control-0", "outrigger-control-1"];
/// One rule of each kind.
const EACH: &str = include_str!("each.yaml");

/// Who may do what: group, resource, name (`*`: any) and verb.
type Right = [String; 4];

/// A cluster in which it is installed.
pub(super) struct Installed {
    pub(super) place: Place,
    _services: Services,
}

/// An image of a program that ends at once, whatever is asked of it.
pub(super) const BROKEN: &str = "outrigger:broken";

pub(super) fn outrigger(words: &[&str]) -> String {
    let output = Command::new(BINARY).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Images as the manifest names them.
fn shipped() -> Images {
    let mut images = images();
    let proxy = images.remove("outrigger/proxy:test").unwrap();
    images.insert("outrigger-proxy:0.1.0", proxy);
    images.insert(
        "outrigger:0.1.0",
        Box::new(|words| {
            let mut words = words.to_vec();
            if words.first().is_some_and(|word| word == "cni") {
                // In the image it is beside the program.
                words.extend(["--binary", cni::PLUGIN].map(str::to_owned));
            }
            (PathBuf::from(BINARY), words)
        }),
    );
    images.insert(BROKEN, Box::new(|_| (PathBuf::from("/bin/false"), Vec::new())));
    images
}

impl Installed {
    /// With the definitions of others' kinds, so that all are watched.
    async fn start() -> Option<Self> {
        Self::start_beside(&[require::folder("istio-crds")?, require::folder("gateway-api-crds")?]).await
    }

    /// Into a cluster that has the definitions in these folders, and nothing else.
    pub(super) async fn start_beside(definitions: &[PathBuf]) -> Option<Self> {
        Self::start_as(definitions, "", &[], |_| None).await
    }

    /// The same after something else was applied, with these words for `outrigger install`, and with a network of Pods that the host of
    /// the node may have a say in.
    pub(super) async fn start_as(
        definitions: &[PathBuf],
        before: &str,
        words: &[&str],
        network: impl FnOnce(&Host) -> Option<Network>,
    ) -> Option<Self> {
        let programs = able()?;
        let net = Arc::new(Net::new());
        let master = net.host("master");
        let cluster = Cluster::start(programs, &master).await;
        cluster.serve_pods();
        let client = cluster.client().await;
        let services = Services::start(client.clone(), net.clone(), &master).await;
        let names = Some(services.names());
        let network = network(&master);
        let kubelet = master.run(Kubelet::start(NODE, "eu-1", client, net, shipped(), network, names)).await;
        for file in definitions.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
            cluster
                .kubectl(&["apply", "--server-side", "-f", &file.unwrap().path().to_string_lossy()])
                .unwrap();
        }
        if !before.is_empty() {
            cluster.apply(before);
        }
        let text = outrigger(&[&["install"], words].concat());
        let installed = cluster.kubectl_with(&text, &["apply", "--server-side"]);
        installed.unwrap_or_else(|error| panic!("{error}"));
        Some(Self { place: Place { kubelet, cluster }, _services: services })
    }

    /// Two Deployments of a new namespace, the one of which calls the other as who it is: its Pod.
    pub(super) async fn is_of_use(&self) -> String {
        let place = &self.place;
        place.cluster.apply(SHOP);
        eventually("the webhook is trusted", || async {
            place.cluster.try_apply(&deployment("web", "v1", 1))
        })
        .await;
        place.cluster.apply(&deployment("catalog", "v1", 1));
        let [web] = place.until_ready("web", 1).await.try_into().unwrap();
        place.until_ready("catalog", 1).await;
        eventually("web reaches the catalog as who it is", || async {
            match place.ask(&web, place.service("catalog", 80)).await {
                Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
                other => Err(format!("{other:?}\n{}", place.logs(&web))),
            }
        })
        .await;
        web
    }

    /// Waits until both are ready.
    pub(super) async fn serves(&self) {
        for replica in REPLICAS {
            eventually(&format!("{replica} is ready"), || async {
                let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
                let said = self.place.cluster.kubectl(&["-n", SYSTEM, "get", "pod", replica, "-o", path])?;
                match said.as_str() {
                    "True" => Ok(()),
                    said => Err(format!("{said:?} {}", self.place.kubelet.log(SYSTEM, replica, "control"))),
                }
            })
            .await;
        }
    }

    /// As an operator asks in the Pod: `kubectl exec … outrigger status`.
    pub(super) fn client(&self, replica: &str) -> Client {
        Client::socket(self.place.kubelet.volume(SYSTEM, replica, "data").join("outrigger.sock"))
    }

    /// Waits until each kind that has a status says one.
    async fn reports(&self) {
        let none = ["ReferenceGrant", "Service"];
        for document in EACH.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let kind = object["kind"].as_str().unwrap();
            if none.contains(&kind) {
                continue;
            }
            eventually(&format!("{kind} has a status"), || async {
                let said = ["-n", "shop", "get", kind, "each", "-o", "jsonpath={.status}"];
                let said = self.place.cluster.kubectl(&said)?;
                if said.contains("Accepted") { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        }
    }

    /// What its service account was granted.
    fn granted(&self) -> BTreeSet<Right> {
        let mut all = BTreeSet::new();
        for words in [&["get", "clusterrole"][..], &["-n", SYSTEM, "get", "role"]] {
            let role = self.place.cluster.kubectl(&[words, &["outrigger-control", "-o", "json"]].concat());
            let role: Value = serde_json::from_str(&role.unwrap()).unwrap();
            for rule in role["rules"].as_array().unwrap() {
                let words = |field: &str| -> Vec<String> {
                    let all = rule[field].as_array().into_iter().flatten();
                    all.map(|word| word.as_str().unwrap().to_owned()).collect()
                };
                let mut names = words("resourceNames");
                if names.is_empty() {
                    names.push("*".to_owned());
                }
                for group in words("apiGroups") {
                    for resource in words("resources") {
                        for name in &names {
                            all.extend(
                                words("verbs")
                                    .into_iter()
                                    .map(|verb| [group.clone(), resource.clone(), name.clone(), verb]),
                            );
                        }
                    }
                }
            }
        }
        all
    }

    /// What it has asked for, by the grant that it needed.
    fn asked(&self, granted: &BTreeSet<Right>) -> BTreeSet<Right> {
        let mut all = BTreeSet::new();
        for event in self.place.cluster.audit(INSTALLED) {
            assert_ne!(event["responseStatus"]["code"], 403, "{event:#}");
            let object = &event["objectRef"];
            let word = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
            let resource = match word("subresource").as_str() {
                "" => word("resource"),
                below => format!("{}/{below}", word("resource")),
            };
            // Without a resource it is a question that everybody may ask: versions, and which kinds there are.
            if resource.is_empty() {
                continue;
            }
            let right = |name: &str| {
                let verb = event["verb"].as_str().unwrap_or_default();
                [word("apiGroup"), resource.clone(), name.to_owned(), verb.to_owned()]
            };
            let named = right(&word("name"));
            all.insert(if granted.contains(&named) { named } else { right("*") });
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_installed_serves_injects_asks_for_no_more_than_it_may_and_goes() {
    let Some(installed) = Installed::start().await else { return };
    let place = &installed.place;
    installed.serves().await;
    let clients = REPLICAS.map(|replica| installed.client(replica));
    eventually("both know of each other, and one leads", || async {
        let status = clients[1].status().await.map_err(|error| error.to_string())?;
        let leads = status.replicas.iter().filter(|one| one.leads && one.error.is_none()).count();
        if status.replicas.len() == 2 && leads == 1 { Ok(()) } else { Err(format!("{:#?}", status.replicas)) }
    })
    .await;

    // The API server reaches the webhook by its Service, trusts it, and gets Pods back that serve.
    place.cluster.apply(SHOP);
    eventually("the webhook is trusted", || async { place.cluster.try_apply(&deployment("web", "v1", 1)) })
        .await;
    place.cluster.apply(&deployment("catalog", "v1", 2));
    let [web] = place.until_ready("web", 1).await.try_into().unwrap();
    place.until_ready("catalog", 2).await;
    let address = place.service("catalog", 80);
    let serves = async |what: &str| {
        eventually(what, || async {
            match place.ask(&web, address).await {
                Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
                other => Err(format!("{other:?}\n{}", place.logs(&web))),
            }
        })
        .await;
    };
    serves("web reaches the catalog as who it is").await;
    let init = ["-n", "shop", "get", "pod", &web, "-o", "jsonpath={.spec.initContainers[*].name}"];
    assert_eq!(place.cluster.kubectl(&init).unwrap(), "outrigger-init outrigger-proxy");
    for (who, client) in REPLICAS.iter().zip(&clients) {
        let status = client.status().await.unwrap();
        assert!(status.notices.is_empty() && status.proxies.len() == 3, "{who}: {status:#?}");
    }

    // Everything else that it does: rules of each kind and their status, one that is refused, what replicas share, an authority that changes.
    place.cluster.apply(EACH);
    let refused = place.cluster.try_apply(&EACH.replace("timeout: 8s", "timeout: soon")).unwrap_err();
    assert!(refused.contains("spec.timeout must be a duration"), "{refused}");
    installed.reports().await;
    serves("with a rule of each kind").await;
    let guest = ("shop".to_owned(), "guest".to_owned());
    let grant =
        TokenRequest { namespace: guest.0.clone(), service_account: guest.1.clone(), ..Default::default() };
    clients[0].create_token(&grant).await.unwrap();
    let whom =
        RevocationRequest { namespace: Some(guest.0), service_account: Some(guest.1), ..Default::default() };
    clients[1].revoke(&whom).await.unwrap();
    clients[0].rotate_root().await.unwrap();
    serves("with another root").await;
    eventually("the webhook is trusted under it", || async {
        place.cluster.try_apply(&deployment("late", "v1", 1))
    })
    .await;

    // The definitions of all kinds go, and each is asked for by name before its rules are forgotten.
    place.cluster.kubectl(&["delete", "crd", "--all", "--wait=false"]).unwrap();
    let granted = installed.granted();
    eventually("it has done all that it may", || async {
        let asked = installed.asked(&granted);
        let unused: Vec<&Right> = granted.difference(&asked).collect();
        if unused.is_empty() { Ok(()) } else { Err(format!("{unused:#?} were not asked for")) }
    })
    .await;
    let asked = installed.asked(&granted);
    assert_eq!(asked.difference(&granted).collect::<Vec<_>>(), Vec::<&Right>::new(), "by another's grant");

    taken_out(&installed).await;
}

/// A cluster that has never heard of Istio or of the Gateway API.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_cluster_is_all_that_it_needs() {
    let Some(installed) = Installed::start_beside(&[]).await else { return };
    let place = &installed.place;
    installed.serves().await;
    installed.is_of_use().await;

    // Our own kinds came along, and are in force; others' are unknown, and nobody misses them.
    let kinds = place.cluster.kubectl(&["get", "crd", "-o", "name"]).unwrap();
    assert!(!kinds.is_empty() && kinds.lines().all(|name| name.ends_with(".outrigger.io")), "{kinds}");
    let rules = EACH.split("\n---\n").find(|rule| rule.contains("kind: TrafficRules")).unwrap();
    place.cluster.apply(rules);
    eventually("the rules are in force", || async {
        let said = ["-n", "shop", "get", "trafficrules", "each", "-o", "jsonpath={.status.inForce}"];
        match place.cluster.kubectl(&said)? {
            said if said.starts_with("2 of 2 proxies at generation ") => Ok(()),
            said => Err(format!("{said:?}")),
        }
    })
    .await;
    for replica in REPLICAS {
        let status = installed.client(replica).status().await.unwrap();
        assert!(status.notices.is_empty() && status.proxies.len() == 2, "{replica}: {status:#?}");
        let rows: Vec<_> = status.registries.iter().map(|row| (row.name.as_str(), row.state)).collect();
        assert_eq!(rows, [("api", Condition::Connected), ("cluster", Condition::Connected)], "{replica}");
        assert!(status.registries.iter().all(|row| row.last_error.is_none()), "{:#?}", status.registries);
    }
    installed.asked(&installed.granted());
    taken_out(&installed).await;
    let left = place.cluster.kubectl(&["get", "crd", "-o", "name"]).unwrap();
    println!("definitions that are left: {left:?}");
}

/// It goes, and what runs goes on; Pods that come then have no sidecar, and nobody waits for one.
pub(super) async fn taken_out(installed: &Installed) {
    let place = &installed.place;
    let gone = place.cluster.kubectl_with(&outrigger(&["uninstall"]), &["delete", "--ignore-not-found"]);
    gone.unwrap_or_else(|error| panic!("{error}"));
    eventually("its Pods have ended", || async {
        let left = place.cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let kept = place.cluster.kubectl(&["-n", SYSTEM, "get", "secrets,pvc", "-o", "name"]).unwrap();
    assert!(kept.contains("secret/outrigger-authority"), "{kept}");
    // Nobody in this cluster could have made one.
    assert!(!kept.contains("persistentvolumeclaim/"), "{kept}");
    let [web] = place.ready("web").unwrap().try_into().unwrap();
    let answer = place.ask(&web, place.service("catalog", 80)).await;
    assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
    place.cluster.apply(&deployment("after", "v1", 1));
    let [after] = place.until_ready("after", 1).await.try_into().unwrap();
    let init = ["-n", "shop", "get", "pod", &after, "-o", "jsonpath={.spec.initContainers[*].name}"];
    assert_eq!(place.cluster.kubectl(&init).unwrap(), "");
}
