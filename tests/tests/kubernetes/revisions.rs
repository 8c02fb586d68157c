//! A new release beside the old one: a second revision in the same namespace, with the same authority. Namespaces move to it one by one, and back,
//! under load.

use outrigger_tests::cluster::INSTALLED;

use super::installed::{Installed, REPLICAS, SYSTEM, outrigger};
use super::replicas::Load;
use super::*;

const CANARY: &str = "outrigger-control-canary-0";
/// By a revision, which can be another.
const NAMED: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {outrigger.io/rev: default}}
";
/// A rule whose status counts proxies.
const RULES: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec: {service: catalog, timeout: 9s}
";

impl Installed {
    /// Has the namespace be of a revision, and the Pods of an application made anew by it.
    async fn moves(&self, app: &str, count: usize, revision: &str) {
        let kubectl = |words: &[&str]| self.place.cluster.kubectl(words).unwrap();
        kubectl(&["label", "namespace", "shop", &format!("outrigger.io/rev={revision}"), "--overwrite"]);
        let deployment = format!("deployment/{app}");
        kubectl(&["-n", "shop", "rollout", "restart", &deployment]);
        eventually(&format!("all of {app} is of revision {revision}"), || async {
            let path = r#"jsonpath={.items[*].metadata.labels.outrigger\.io/rev}"#;
            let selector = format!("app={app}");
            let words = ["-n", "shop", "get", "pods", "-l", &selector, "-o", path];
            let found = self.place.cluster.kubectl(&words)?;
            let ready = self.place.ready(app)?.len();
            let revisions: Vec<&str> = found.split_whitespace().collect();
            let moved = revisions.iter().all(|one| *one == revision);
            match moved && revisions.len() == count && ready == count {
                true => Ok(()),
                false => Err(format!("{found} {ready}")),
            }
        })
        .await;
    }
}

/// Where an installation of this revision stands.
fn installation(revision: &str) -> String {
    outrigger(&["install", "--revision", revision, "--set", "replicas=1", "--crds", "none"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_revision_takes_namespaces_over_and_gives_them_back_without_a_request_lost() {
    let Some(installed) = Installed::start_beside(&[]).await else { return };
    let place = &installed.place;
    installed.serves().await;
    place.cluster.apply(NAMED);
    eventually("the webhook is trusted", || async { place.cluster.try_apply(&deployment("web", "v1", 1)) })
        .await;
    place.cluster.apply(&deployment("catalog", "v1", 2));
    place.cluster.apply(RULES);
    let [web] = place.until_ready("web", 1).await.try_into().unwrap();
    place.until_ready("catalog", 2).await;
    let address = place.service("catalog", 80);
    let crosses = async |client: &str, account: &str| {
        let who = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        eventually(&format!("{client} reaches the catalog as who it is"), || async {
            match place.ask(client, address).await {
                Ok((200, text)) if text.contains(&who) => Ok(()),
                other => Err(format!("{other:?}\n{}", place.logs(client))),
            }
        })
        .await;
    };
    crosses(&web, "web").await;

    beside(&installed).await;

    // Pods of the new revision are called by those of the old one, and none of the requests is lost.
    let load = Load::start(place.host(&web), address);
    installed.moves("catalog", 2, "canary").await;
    crosses(&web, "web").await;
    eventually("all proxies are counted once, those of both revisions", || async {
        let path = "jsonpath={.status.inForce}";
        let said = place.cluster.kubectl(&["-n", "shop", "get", "trafficrules", "catalog", "-o", path])?;
        if said.starts_with("3 of 3 proxies") { Ok(()) } else { Err(said) }
    })
    .await;
    // One of the new revision calls, too, and is one of four.
    place.cluster.apply(&deployment("buyer", "v1", 1));
    let [buyer] = place.until_ready("buyer", 1).await.try_into().unwrap();
    let revision =
        ["-n", "shop", "get", "pod", &buyer, "-o", r"jsonpath={.metadata.labels.outrigger\.io/rev}"];
    assert_eq!(place.cluster.kubectl(&revision).unwrap(), "canary");
    crosses(&buyer, "buyer").await;
    for client in [REPLICAS[0], CANARY] {
        let status = installed.client(client).status().await.unwrap();
        assert!(status.notices.is_empty() && status.proxies.len() == 4, "{client}: {status:#?}");
    }

    // Back again, and the second revision goes: nothing of the first goes with it.
    installed.moves("catalog", 2, "default").await;
    installed.moves("buyer", 1, "default").await;
    goes(&installed).await;
    place.cluster.apply(&deployment("late", "v1", 1));
    place.until_ready("late", 1).await;
    crosses(&web, "web").await;
    println!("{} requests, none failed", load.none_failed().await);
}

/// It stands beside, and has the authority of the first: API servers trust its webhooks, and all control planes know each other.
async fn beside(installed: &Installed) {
    let place = &installed.place;
    place.cluster.kubectl_with(&installation("canary"), &["apply", "--server-side"]).unwrap();
    eventually("the second revision is ready", || async {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        match place.cluster.kubectl(&["-n", SYSTEM, "get", "pod", CANARY, "-o", path])?.as_str() {
            "True" => Ok(()),
            said => Err(format!("{said:?} {}", place.kubelet.log(SYSTEM, CANARY, "control"))),
        }
    })
    .await;
    eventually("all control planes know each other, and one leads", || async {
        let status = installed.client(CANARY).status().await.map_err(|error| error.to_string())?;
        let answer = status.replicas.iter().filter(|one| one.error.is_none()).count();
        let lead = status.replicas.iter().filter(|one| one.leads).count();
        if (answer, lead) == (3, 1) { Ok(()) } else { Err(format!("{:#?}", status.replicas)) }
    })
    .await;
    eventually("its webhook is trusted", || async {
        let bundle = "jsonpath={.webhooks[*].clientConfig.caBundle}";
        let words = ["get", "mutatingwebhookconfiguration", "outrigger-injector-canary", "-o", bundle];
        match place.cluster.kubectl(&words)? {
            found if found.split_whitespace().count() == 3 => Ok(()),
            found => Err(found),
        }
    })
    .await;
}

/// The second revision is taken out, and one of the first leads. It was never refused anything.
async fn goes(installed: &Installed) {
    let place = &installed.place;
    let asked = place.cluster.audit(&format!("{INSTALLED}-canary"));
    let refused: Vec<&Value> = asked.iter().filter(|event| event["responseStatus"]["code"] == 403).collect();
    assert!(!asked.is_empty() && refused.is_empty(), "{refused:#?}");
    let gone = outrigger(&["uninstall", "--revision", "canary"]);
    place.cluster.kubectl_with(&gone, &["delete", "--ignore-not-found"]).unwrap();
    eventually("its Pod has ended", || async {
        let left = place.cluster.kubectl(&[
            "-n",
            SYSTEM,
            "get",
            "pod",
            CANARY,
            "--ignore-not-found",
            "-o",
            "name",
        ])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    eventually("one of the first revision leads", || async {
        let status = installed.client(REPLICAS[0]).status().await.map_err(|error| error.to_string())?;
        let names: Vec<&str> = status.replicas.iter().map(|one| one.name.as_str()).collect();
        let leads = status.replicas.iter().any(|one| one.leads && one.error.is_none());
        if names == REPLICAS && leads { Ok(()) } else { Err(format!("{:#?}", status.replicas)) }
    })
    .await;
}
