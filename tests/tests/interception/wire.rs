//! The stage itself: what a capture sees of programs without sidecars, and that nothing is left of a net.

use std::net::SocketAddr;

use outrigger_tests::app::{exchange, greeter};
use outrigger_tests::netns::Net;
use outrigger_tests::require;

use super::MARKER;

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_sees_plain_text_of_both_families_and_a_net_leaves_nothing() {
    if !require::netns() || require::tool("tcpdump").is_none() {
        return;
    }
    let net = Net::new();
    let (client, server) = (net.host("client"), net.host("server"));
    let capture = client.capture("tcp port 8080").await;
    for address in server.addresses() {
        let to = SocketAddr::new(address, 8080);
        server.run(greeter(to)).await;
        let before = capture.so_far().await;
        assert!(before.of_port(8080).all(|flow| flow.from != to), "nothing was sent yet");
        let request = format!("GET /{MARKER} HTTP/1.1\r\n\r\n");
        let talk = async move {
            // What comes back is no answer to HTTP: a greeting and an echo, until the test ends it.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(300), exchange(to, &request)).await;
        };
        client.run(talk).await;
        let wire = capture.so_far().await;
        assert!(wire.contains(MARKER));
        let error = wire.only_tls(8080).unwrap_err();
        assert!(error.contains(MARKER) || error.contains("hello"), "{error}");
        assert!(wire.of_port(8080).any(|flow| flow.from == to && flow.bytes.starts_with(b"hello\n")));
    }
    let mut sleeper = server.command("sleep").arg("1000").spawn().unwrap();
    drop((capture, client, server, net));
    assert!(!sleeper.wait().unwrap().success(), "what runs in a namespace ends with it");
    let own = format!("outrigger-test-{}-", std::process::id());
    // Other tests of this process have nets of their own: ask for this one's sleeper, and for names without a namespace.
    for entry in std::fs::read_dir("/etc/netns").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with(&own);
        assert!(!ours || std::path::Path::new("/run/netns").join(&name).exists(), "{name:?} is left behind");
    }
}
