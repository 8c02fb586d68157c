//! The command line as a user meets it, against a real control plane.

use std::io::Write;
use std::process::{Command, Stdio};

use outrigger_tests::mesh::Mesh;

use crate::BINARY;
use crate::thin_thread::STRICT;

/// Output of the command, which must succeed, after it has read `input`.
fn outrigger(mesh: &Mesh, args: &[&str], input: &str) -> String {
    let server = format!("unix:{}", mesh.path("control/outrigger.sock").display());
    let mut command = Command::new(BINARY);
    command.args(args).args(["--server", &server]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Without a namespace: it gets one by `-n`.
const BARE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog}
spec: {host: catalog}
";

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_get_prints_as_yaml_make_the_same_rules_again() {
    let mesh = Mesh::start(BINARY).await;
    outrigger(&mesh, &["apply", "-f", "-"], STRICT);
    outrigger(&mesh, &["apply", "-f", "-", "-n", "shop"], BARE);
    let names = outrigger(&mesh, &["get", "-o", "name"], "");
    assert_eq!(names, "DestinationRule shop/catalog\nPeerAuthentication shop/default\n");
    let saved = outrigger(&mesh, &["get", "-o", "yaml"], "");
    assert!(saved.contains(STRICT), "what names its namespace is as it was written: {saved}");

    outrigger(&mesh, &["delete", "DestinationRule", "catalog", "-n", "shop"], "");
    outrigger(&mesh, &["delete", "PeerAuthentication", "default", "-n", "shop"], "");
    assert_eq!(outrigger(&mesh, &["get", "-o", "name"], ""), "");
    outrigger(&mesh, &["apply", "-f", "-"], &saved);
    assert_eq!(outrigger(&mesh, &["get", "-o", "name"], ""), names);
    let again = outrigger(&mesh, &["get", "DestinationRule", "catalog", "-n", "shop", "-o", "yaml"], "");
    assert!(saved.contains(&again), "{again}");
}

/// What the command says when it fails.
fn refused(mesh: &Mesh, args: &[&str]) -> String {
    let server = format!("unix:{}", mesh.path("control/outrigger.sock").display());
    let output = Command::new(BINARY).args(args).args(["--server", &server]).output().unwrap();
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_registered_taken_out_and_ended_by_hand() {
    let mesh = Mesh::start(BINARY).await;
    let register = ["instance", "register", "c1", "-n", "shop", "--service", "catalog"];
    let more =
        ["--address", "10.0.0.7", "--port", "8080/http", "--label", "tier=front", "--ttl", "30", "--wait"];
    let said = outrigger(&mesh, &[&register[..], &more[..]].concat(), "");
    assert_eq!(said, "c1 registered as shop/catalog\n");
    let state = || outrigger(&mesh, &["instance", "get", "c1", "-o", "json"], "");
    assert!(state().contains("\"running\"") && state().contains("\"tier\": \"front\""), "{}", state());
    outrigger(&mesh, &["instance", "heartbeat", "c1"], "");
    assert_eq!(outrigger(&mesh, &["instance", "drain", "c1"], ""), "c1 is maintenance\n");
    let listed = outrigger(&mesh, &["instance", "list", "--service", "catalog"], "");
    assert!(listed.contains("10.0.0.7") && listed.contains("maintenance"), "{listed}");
    assert!(!outrigger(&mesh, &["instance", "list", "-n", "bank"], "").contains("c1"));
    assert_eq!(outrigger(&mesh, &["instance", "drain", "c1", "--undo"], ""), "c1 is running\n");

    // What is printed is taken back as it was.
    let printed = outrigger(&mesh, &["instance", "list", "-o", "yaml"], "");
    outrigger(&mesh, &["instance", "deregister", "c1"], "");
    for verb in ["get", "heartbeat", "drain", "deregister"] {
        let error = refused(&mesh, &["instance", verb, "c1"]);
        assert!(error.contains("there is no instance \"c1\""), "{verb}: {error}");
    }
    outrigger(&mesh, &["instance", "register", "-f", "-"], &printed);
    assert_eq!(outrigger(&mesh, &["instance", "list", "-o", "yaml"], ""), printed);

    let again = ["instance", "register", "w1", "--service", "web", "--address", "10.0.0.7", "--port", "8080"];
    let error = refused(&mesh, &again);
    assert!(error.contains("10.0.0.7 port 8080 is held by instance \"c1\""), "{error}");
    assert!(refused(&mesh, &["instance", "register", "w1"]).contains("--service"));
    let nobodys = ["instance", "register", "w1", "--service", "Web", "--address", "10.0.0.8"];
    assert!(refused(&mesh, &nobodys).contains("lower-case"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_listed_described_and_let_go_by_hand() {
    let mesh = Mesh::start(BINARY).await;
    let at = ["--address", "127.0.0.21", "--port", "8080/http"];
    let register = ["instance", "register", "catalog-1", "-n", "shop", "--service", "catalog"];
    outrigger(&mesh, &[&register[..], &at].concat(), "");
    let pay = ["service", "register", "pay", "-n", "shop", "--host", "pay.example.com", "--port", "443/tls"];
    let printed = outrigger(&mesh, &[&pay[..], &["--print"]].concat(), "");
    assert!(
        printed.contains("kind: \"ServiceEntry\"") && printed.contains("resolution: \"DNS\""),
        "{printed}"
    );
    assert!(!outrigger(&mesh, &["service", "list"], "").contains("pay.example.com"), "it was only printed");
    assert!(outrigger(&mesh, &pay, "").contains("ServiceEntry shop/pay version 1"));
    let listed = outrigger(&mesh, &["service", "list", "-n", "shop"], "");
    let line = |name: &str| listed.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(
        line("pay.example.com").contains("443/tls") && line("pay").contains("ServiceEntry shop/pay"),
        "{listed}"
    );
    assert!(line("catalog.shop.svc").contains("8080/http"), "{listed}");
    for named in ["catalog", "catalog.shop", "shop/catalog", "catalog.shop.svc.cluster.local"] {
        let shown = outrigger(&mesh, &["service", "get", named], "");
        assert!(shown.contains("catalog-1 (running)") && shown.contains("virtual address"), "{shown}");
    }
    let none = refused(&mesh, &["service", "get", "catlog"]);
    assert!(none.contains("no service \"catlog\"") && none.contains("service list"), "{none}");
    let by_instances = refused(&mesh, &["service", "deregister", "catalog", "-n", "shop"]);
    assert!(by_instances.contains("instance list --service catalog -n shop"), "{by_instances}");
    let wrong = refused(&mesh, &["service", "register", "x", "--host", "*", "--port", "80"]);
    assert!(wrong.contains("every host"), "{wrong}");
    outrigger(&mesh, &["service", "deregister", "pay", "-n", "shop", "--wait"], "");
    assert!(!outrigger(&mesh, &["service", "list"], "").contains("pay.example.com"));
}

/// What `analyze` says of a text, and its exit code.
fn analyzed(text: &str, args: &[&str]) -> (String, i32) {
    let mut command = Command::new(BINARY);
    command.args(["analyze", "-f", "-"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (said, output.status.code().unwrap())
}

#[test]
fn analyze_leaves_as_istioctl_does() {
    let rule = |host: &str, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec:\n  hosts: [{host}]\n  \
             http:\n  - {more}route: [{{destination: {{host: reviews}}}}]\n"
        )
    };
    let (good, warned, wrong) =
        (rule("a", ""), rule("a", "match: [{statPrefix: x}]\n    "), rule("a..b", ""));
    let told = rule("a", "match: [{uri: {prefix: /a}}, {uri: {prefix: /a}}]\n    ");
    let (nobody, none) = ("kind: Nobody\napiVersion: v1\n", "a: [\n");
    for (text, args, code) in [
        (good.as_str(), &[][..], 0),
        (&warned, &[], 0),
        (&warned, &["--failure-threshold", "Warning"], 79),
        (&told, &["--failure-threshold", "warning"], 0),
        (&told, &["--failure-threshold", "INFO", "-o", "json"], 79),
        (&wrong, &[], 79),
        (none, &[], 65),
        (nobody, &[], 65),
        (nobody, &["--ignore-unknown"], 0),
        (&format!("{nobody}---\n{wrong}"), &[], 79),
        (&wrong, &["-S", "IST0106=VirtualService *.shop"], 0),
        (&wrong, &["-S", "IST0106=VirtualService *.bank", "--suppress", "IST0109=*"], 79),
        (&good, &["-S", "IST0106"], 64),
    ] {
        let (said, left) = analyzed(text, args);
        assert_eq!(left, code, "{args:?}\n{text}\n{said}");
    }
    let (said, _) = analyzed(&warned, &["--output-threshold", "error"]);
    assert!(said.contains("no findings") && !said.contains("OUT0005"), "{said}");
    assert!(analyzed(&warned, &["-S", "IST9=*"]).0.contains("IST9 is no code of a finding"));
    let bare =
        good.replace(", namespace: shop", "").replace("hosts: [a]", "hosts: [a]\n  exportTo: [x, '-']");
    let twice = format!("{bare}---\n{}", good.replace("name: a", "name: b"));
    assert!(analyzed(&twice, &["-n", "shop", "-o", "yaml"]).0.contains("IST0109"), "one namespace, one host");
}
