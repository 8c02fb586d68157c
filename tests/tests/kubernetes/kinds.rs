//! Rules as custom resources: Istio's, the Gateway API's and our own, defined by their real definitions. What is applied with kubectl reaches
//! sidecars, what is deleted leaves them, and a definition that is removed takes its rules along.

use outrigger_control::api::types::{Condition, RulesQuery};

use super::*;
use crate::registries::{row, until};

mod bookinfo;

const BOOKINFO: &str = include_str!("bookinfo.yaml");
const OURS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/crds.yaml");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");

/// A tester sees the second version, as in Bookinfo's `virtual-service-reviews-test-v2`.
const TEST_V2: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

/// A route for a Service that is there, to one that is not.
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 80}]
  rules: [{backendRefs: [{name: elsewhere, port: 80}]}]
";

/// A page with a duration that is none.
const BAD: &str =
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: reviews, namespace: shop},
    spec: {service: reviews, timeout: soon}}";

/// One version of `reviews`.
fn version(version: &str) -> String {
    let all = deployment("reviews", version, 1);
    let (rest, workload) = all.rsplit_once("---\n").unwrap();
    let mut workload: Value = serde_json::from_str(workload).unwrap();
    workload["metadata"]["name"] = format!("reviews-{version}").into();
    workload["spec"]["selector"]["matchLabels"]["version"] = version.into();
    format!("{rest}---\n{workload}\n")
}

/// Defines what these files define, and waits until the API server serves it.
fn define(stage: &Stage, files: &[PathBuf]) {
    for file in files {
        stage.cluster.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]).unwrap();
    }
    stage.cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).unwrap();
}

fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The objects of a file, as the API server has them.
fn applied(stage: &Stage, file: &std::path::Path) -> Vec<String> {
    let found = stage.cluster.kubectl(&["get", "-f", &file.to_string_lossy(), "-o", "json"]).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let items = found["items"].as_array().cloned().unwrap_or_else(|| vec![found]);
    let word = |item: &Value, path: &str| item.pointer(path).and_then(Value::as_str).unwrap().to_owned();
    let id = |item| {
        format!(
            "{} {}/{}",
            word(item, "/kind"),
            word(item, "/metadata/namespace"),
            word(item, "/metadata/name")
        )
    };
    items.iter().map(id).collect()
}

/// Keys of the rules that the mesh has, without Services.
async fn rules(mesh: &Mesh) -> Result<Vec<String>, String> {
    let all = mesh.client.rules(&RulesQuery::default()).await.map_err(|error| error.to_string())?;
    let others = all.into_iter().filter(|rule| rule.kind != "Service");
    Ok(others.map(|rule| format!("{} {}/{}", rule.kind, rule.namespace, rule.name)).collect())
}

async fn until_rules(stage: &Stage, what: &str, wanted: &[&str]) {
    eventually(what, || async {
        let rules = rules(&stage.mesh).await?;
        if rules == wanted { Ok(()) } else { Err(format!("{rules:?}")) }
    })
    .await;
}

impl Stage {
    /// Waits until the object `reviews` of this kind says so there, or something that begins so.
    async fn until_says(&self, kind: &str, path: &str, wanted: &str) {
        eventually(&format!("{kind} says {wanted}"), || async {
            let output = format!("jsonpath={path}");
            let said = self.cluster.kubectl(&["-n", "shop", "get", kind, "reviews", "-o", &output])?;
            if said.starts_with(wanted) {
                return Ok(());
            }
            let whole = self.cluster.kubectl(&["-n", "shop", "get", kind, "reviews", "-o", "yaml"])?;
            Err(format!("{said:?}\n{whole}"))
        })
        .await;
    }

    /// Asks so often, with these headers, until only these versions of `reviews` have answered.
    async fn until_only(&self, client: &str, what: &str, headers: &'static str, wanted: &[&str]) {
        let address = self.service("reviews", 80);
        eventually(what, || async {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..12 {
                let (status, text) = self
                    .host(client)
                    .run(app::get(address, "/", headers))
                    .await
                    .map_err(|error| error.to_string())?;
                let known = ["v1", "v2", "v3"]
                    .into_iter()
                    .find(|version| text.contains(&format!("reviews-{version}")));
                seen.insert(known.ok_or_else(|| format!("{status} {text}\n{}", self.logs(client)))?);
            }
            if seen.iter().eq(wanted) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_kubectl_applies_reach_sidecars_and_a_definition_that_goes_takes_its_own() {
    let (Some(istio), Some(gateway)) = (require::folder("istio-crds"), require::folder("gateway-api-crds"))
    else {
        return;
    };
    let Some(mut stage) = Stage::start().await else { return };
    stage.cluster.apply(&deployment("web", "v1", 1));
    for name in ["v1", "v2", "v3"] {
        stage.cluster.apply(&version(name));
    }
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    stage.until_ready("reviews", 3).await;
    stage.until_only(&web, "all versions answer", "", &["v1", "v2", "v3"]).await;

    // Kinds that are defined while the control plane runs.
    define(&stage, &[files(&istio), files(&gateway), vec![OURS.into()]].concat());
    stage.cluster.apply(BOOKINFO);
    stage.until_only(&web, "the first version answers", "end-user: jason\r\n", &["v1"]).await;
    // What becomes of it stands in its status, as Istio's is.
    let reconciled = r#"{.status.conditions[?(@.type=="Reconciled")].status}"#;
    stage.until_says("virtualservice", reconciled, "True").await;
    let words = r#"{.status.conditions[?(@.type=="Reconciled")].message}"#;
    stage.until_says("virtualservice", words, "4 of 4 proxies at generation ").await;
    stage.until_says("destinationrule", reconciled, "True").await;
    stage.until_says("virtualservice", "{.status.observedGeneration}", "1").await;
    stage.cluster.apply(TEST_V2);
    stage.until_says("virtualservice", "{.status.observedGeneration}", "2").await;
    stage.until_only(&web, "a tester sees the second", "end-user: jason\r\n", &["v2"]).await;
    stage.until_only(&web, "others do not", "", &["v1"]).await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "virtualservice,destinationrule", "reviews"]).unwrap();
    stage.until_only(&web, "all versions answer again", "", &["v1", "v2", "v3"]).await;

    // A rule that cannot be is refused by its field, one that may be mended is warned about, and a deletion never fails.
    let refused = stage.cluster.try_apply(BAD).unwrap_err();
    assert!(refused.contains("spec.timeout must be a duration"), "{refused}");
    let warned = stage
        .cluster
        .kubectl_with(TEST_V2, &["apply", "--dry-run=server", "--warnings-as-errors"])
        .unwrap_err();
    assert!(warned.contains("Warning: spec.http[0].route[0].destination.subset"), "{warned}");

    unread(&stage).await;
    examples(&stage, &web).await;
    statuses(&mut stage).await;
    unjudged(&mut stage).await;
    definitions(&mut stage).await;
}

/// What of a rule has no effect is told when it is applied, and stands in its status; of a kind that nobody reads it is told when it is applied.
async fn unread(stage: &Stage) {
    let warned = |text: &str| {
        let words = ["apply", "--dry-run=server", "--warnings-as-errors"];
        stage.cluster.kubectl_with(text, &words).unwrap_err()
    };
    let half = TEST_V2.replace("  hosts:", "  gateways: [mesh, front]\n  hosts:").replace(", subset: v2", "");
    let half = half.replace(", subset: v1", "");
    let words =
        "spec.gateways is not implemented by Outrigger: there are no gateways, only \"mesh\" is served";
    assert!(warned(&half).contains(&format!("Warning: {words}")), "{}", warned(&half));
    stage.cluster.apply(&half);
    let accepted = r#"{.status.conditions[?(@.type=="Accepted")].message}"#;
    stage.until_says("virtualservice", accepted, words).await;
    stage.until_says("virtualservice", r#"{.status.conditions[?(@.type=="Accepted")].status}"#, "True").await;
    stage.until_says("virtualservice", "{.status.validationMessages[0].type.code}", "OUT0005").await;
    stage.cluster.apply(&half.replace(", front", ""));
    stage
        .until_says("virtualservice", r#"{.status.conditions[?(@.type=="Accepted")].reason}"#, "Accepted")
        .await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "virtualservice", "reviews"]).unwrap();

    for (version, kind, spec, words) in [
        (
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "{}",
            "EnvoyFilter patches Envoy's own configuration",
        ),
        (
            "extensions.istio.io/v1alpha1",
            "WasmPlugin",
            "{url: 'oci://a/b'}",
            "WasmPlugin needs a WebAssembly host",
        ),
        ("telemetry.istio.io/v1", "Telemetry", "{}", "Telemetry is not implemented by Outrigger yet"),
        (
            "networking.istio.io/v1",
            "Gateway",
            "{servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}",
            "Gateway is not implemented by Outrigger yet",
        ),
    ] {
        let text = format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: other, namespace: shop}}, spec: {spec}}}"
        );
        assert!(warned(&text).contains(&format!("Warning: {words}")), "{kind}: {}", warned(&text));
        // It may be there for somebody else.
        stage.cluster.apply(&text);
        stage.cluster.kubectl_with(&text, &["delete"]).unwrap();
    }
}

/// Every example is taken by the API server, by its definitions, and by the mesh, without a complaint.
async fn examples(stage: &Stage, web: &str) {
    for file in files(EXAMPLES.as_ref()) {
        let text = std::fs::read_to_string(&file).unwrap();
        stage.cluster.apply(&text);
        let mut wanted = applied(stage, &file);
        // Certificates of a cluster's ConfigMaps are not read.
        wanted.retain(|rule| !rule.starts_with("ConfigMap "));
        wanted.sort();
        until_rules(
            stage,
            &file.display().to_string(),
            &wanted.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
        // A watch that the API server has ended, which it does when definitions come, is a complaint of a moment.
        eventually(&format!("{}: no complaint", file.display()), || async {
            row(&stage.mesh, "cluster").await.last_error.map_or(Ok(()), Err)
        })
        .await;
        if file.ends_with("traffic-rules.yaml") {
            stage.until_only(web, "a page of our own routes", "end-user: tester\r\n", &["v3"]).await;
            stage.until_says("trules", "{.status.inForce}", "4 of 4 proxies at generation ").await;
            let columns = stage.cluster.kubectl(&["-n", "shop", "get", "trules"]).unwrap();
            assert!(columns.contains("IN FORCE") && columns.contains("4 of 4 proxies"), "{columns}");
        }
        stage.cluster.kubectl(&["delete", "-f", &file.to_string_lossy()]).unwrap();
        until_rules(stage, "the example has gone", &[]).await;
    }
}

/// A route of the Gateway API has a status for each of its parents.
async fn statuses(stage: &mut Stage) {
    stage.cluster.apply(ROUTE);
    for (condition, status) in [("Accepted", "True"), ("ResolvedRefs", "False")] {
        let ours = r#"{.status.parents[?(@.controllerName=="outrigger.io/control-plane")]"#;
        let path = format!(r#"{ours}.conditions[?(@.type=="{condition}")].status}}"#);
        stage.until_says("httproute", &path, status).await;
    }
    let path = r#"{.status.parents[0].conditions[?(@.type=="outrigger.io/InForce")].message}"#;
    stage.until_says("httproute", path, "4 of 4 proxies at generation ").await;
    // One of connections beside it has no effect until it goes.
    stage.cluster.apply(&ROUTE.replace("HTTPRoute", "TCPRoute"));
    let path = r#"{.status.parents[0].conditions[?(@.type=="Accepted")].reason}"#;
    stage.until_says("tcproute", path, "Conflicted").await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "httproute", "reviews"]).unwrap();
    stage.until_says("tcproute", path, "Accepted").await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "tcproute", "reviews"]).unwrap();

    // While nobody judges them rules are stored as they are. What cannot be read is not in force, and its status says why.
    let good = BAD.replace("soon", "9s");
    stage.cluster.apply(&good);
    stage.until_says("trules", "{.status.inForce}", "4 of 4 proxies at generation ").await;
    stage.mesh.kill_control();
    stage.cluster.apply(BAD);
    stage.mesh.start_control().await;
    let why = r#"{.status.conditions[?(@.type=="Accepted")].message}"#;
    stage.until_says("trules", why, "spec.timeout must be a duration").await;
    stage.until_says("trules", "{.status.observedGeneration}", "2").await;
    eventually("an Event says it", || async {
        let path = r#"jsonpath={.items[?(@.reason=="Invalid")].note}"#;
        let said = ["-n", "shop", "get", "events.events.k8s.io", "-o", path];
        let said = stage.cluster.kubectl(&said)?;
        if said.contains("spec.timeout must be a duration") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    stage.cluster.apply(&good);
    stage.until_says("trules", r#"{.status.conditions[?(@.type=="Accepted")].status}"#, "True").await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "trules", "reviews"]).unwrap();
}

/// What becomes of rules while nobody judges them.
fn failure_policy(stage: &Stage, policy: &str) {
    // The first entry is that of rules that are stored.
    let patch = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": policy}]).to_string();
    stage.cluster.kubectl(&[&["patch"], &WEBHOOKS[1][..], &["--type=json", "-p", &patch]].concat()).unwrap();
}

/// With `Fail` no rule is stored that nobody has judged. Each can be deleted all the same: a namespace goes, and what its owner takes along.
async fn unjudged(stage: &mut Stage) {
    stage.cluster.apply(&BAD.replace("soon", "9s"));
    failure_policy(stage, "Fail");
    stage.mesh.kill_control();
    eventually("no rule is stored that nobody has judged", || async {
        let tried = format!("tried={}", fastrand::u32(..));
        match stage.cluster.kubectl(&["-n", "shop", "label", "trules", "reviews", &tried, "--overwrite"]) {
            Err(why) if why.contains("rules.validate.outrigger.io") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "trules", "reviews"]).unwrap();
    failure_policy(stage, "Ignore");
    stage.mesh.start_control().await;
}

/// A definition that is removed takes its rules, and no others; an API server that is away takes none.
async fn definitions(stage: &mut Stage) {
    let page = std::fs::read_to_string(format!("{EXAMPLES}/traffic-rules.yaml")).unwrap();
    let (ours, theirs) = ("TrafficRules shop/reviews", "DestinationRule shop/reviews");
    stage.cluster.apply(&page);
    stage.cluster.apply(BOOKINFO.split("---").next().unwrap());
    until_rules(stage, "both are there", &[theirs, ours]).await;
    stage.cluster.kill_api();
    until(&stage.mesh, "cluster", "it is away", |row| row.state == Condition::Away).await;
    assert_eq!(rules(&stage.mesh).await.unwrap(), [theirs, ours]);
    stage.cluster.start_api().await;
    until(&stage.mesh, "cluster", "it is back", |row| row.state == Condition::Connected).await;
    assert_eq!(rules(&stage.mesh).await.unwrap(), [theirs, ours]);
    stage.cluster.kubectl(&["delete", "crd", "trafficrules.outrigger.io"]).unwrap();
    until_rules(stage, "its rules have gone with it", &[theirs]).await;
    define(stage, &[OURS.into()]);
    stage.cluster.apply(&page);
    until_rules(stage, "it is found anew", &[theirs, ours]).await;
}
