//! A control plane that sends rubbish: each sidecar says no by name, keeps what it has, and takes the next good word.

use outrigger_tests::app::{body, echo, get};
use outrigger_tests::fake_control::{FakeControl, Line, resource, response};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const NAME: &str = "outbound|8080||catalog.shop.svc.cluster.local";

/// A whole `Cluster`: its name, type ORIGINAL_DST, load balancing CLUSTER_PROVIDED.
fn whole(name: &str) -> Vec<u8> {
    [named(name), vec![0x10, 4, 0x30, 6]].concat()
}

/// A `Cluster` or `RouteConfiguration` that has nothing but its name (field 1 of both).
fn named(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x0a, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

async fn serves(web: &Sidecar, after: &str) {
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 200, "after {after}: {text}");
}

/// Waits until the sidecar says so of the cluster's endpoints: whether what serves is what was said last, and whether anybody stands for
/// it.
async fn endpoint_set(web: &Sidecar, state: &str, confirmed: bool) {
    eventually(&format!("the endpoint set is {state}, confirmed: {confirmed}"), || async {
        let page: serde_json::Value =
            serde_json::from_str(&body(&web.page("/clusters").await)).expect("JSON");
        let set = &page[NAME]["endpointSet"];
        let serves = set["serving"]["version"].is_string() && set["serving"]["seconds"].is_u64();
        let newer = set["newer"]["version"].is_string() == (state != "current");
        let said = set["unconfirmedSeconds"].is_null() == confirmed;
        if set["state"] == state && serves && newer && said { Ok(()) } else { Err(set.to_string()) }
    })
    .await;
}

/// Says each thing, and looks at the sidecar's answer and at the traffic.
async fn rubbish(line: &mut Line, web: &Sidecar) {
    let no = |answer: Option<String>, parts: &[&str]| {
        let text = answer.expect("a NACK");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let garbage = resource(NAME, CLUSTER, vec![0xff; 64]);
    line.say(response("malformed", CLUSTER, vec![garbage], &[])).await;
    no(line.answer("malformed").await, &[NAME]);
    serves(web, "malformed bytes").await;

    let twin = || resource(NAME, CLUSTER, whole(NAME));
    line.say(response("twins", CLUSTER, vec![twin(), twin()], &[])).await;
    no(line.answer("twins").await, &[NAME, "more than once"]);
    serves(web, "the same name twice").await;

    let other = resource(NAME, CLUSTER, whole("another"));
    line.say(response("misnamed", CLUSTER, vec![other], &[])).await;
    no(line.answer("misnamed").await, &[NAME, "must be the same"]);
    serves(web, "a resource under another's name").await;

    let wrong = resource(NAME, ROUTES, named(NAME));
    line.say(response("mistyped", CLUSTER, vec![wrong], &[])).await;
    no(line.answer("mistyped").await, &[NAME]);
    serves(web, "a resource of another type").await;

    line.say(response("unknown", "type.googleapis.com/no.such.Type", Vec::new(), &["x"])).await;
    no(line.answer("unknown").await, &["no.such.Type"]);
    serves(web, "an unknown type").await;

    line.say(response("gone", CLUSTER, Vec::new(), &["never-was"])).await;
    assert_eq!(line.answer("gone").await, None, "what never was may go");
    serves(web, "a removal of nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_from_a_control_plane_is_refused_by_name_and_the_last_good_state_serves() {
    let mut mesh = Mesh::start(BINARY).await;
    let mut catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    serves(&web, "nothing").await;

    let mut fake = FakeControl::usurp(&mut mesh).await;
    let mut line = fake.line().await;
    let mut second = fake.line().await;
    if !line.node().await.contains("web-v1") {
        std::mem::swap(&mut line, &mut second);
    }
    endpoint_set(&web, "current", true).await;
    rubbish(&mut line, &web).await;
    let garbage = resource(NAME, ENDPOINTS, vec![0xff; 64]);
    line.say(response("endpoints", ENDPOINTS, vec![garbage], &[])).await;
    assert!(line.answer("endpoints").await.is_some_and(|no| no.contains(NAME)));
    serves(&web, "malformed endpoints").await;
    endpoint_set(&web, "refused", true).await;
    let page = web.page("/stats/prometheus").await;
    assert!(page.lines().any(|line| line == r#"outrigger_xds_stale{type="Endpoints"} 1"#), "{page}");
    // The same to the other side, whose inbound must stay STRICT and open to web.
    rubbish(&mut second, &web).await;

    // Half a push, then silence for ever: the streams come back.
    line.say(response("half", CLUSTER, Vec::new(), &[])).await;
    line.drop_it().await;
    second.drop_it().await;
    drop(fake.line().await);
    serves(&web, "a broken stream").await;
    drop(fake);
    endpoint_set(&web, "refused", false).await;

    // A restart in the meantime serves from what was good, not from what was said since.
    catalog.kill();
    mesh.start_control().await;
    catalog.start(&mesh).await;
    serves(&web, "a restart of the peer").await;
    mesh.apply(MARKED).await;
    // The sidecar of web may only now come back to the real control plane: until then nobody waits for it.
    eventually("the real control plane's word is in force", || async {
        let (_, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if text.to_ascii_lowercase().contains("x-marked: yes") { Ok(()) } else { Err(text) }
    })
    .await;
    endpoint_set(&web, "current", true).await;
}

const MARKED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http: [{route: [{destination: {host: catalog}, headers: {request: {set: {X-Marked: \"yes\"}}}}]}]
";
