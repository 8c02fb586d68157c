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
