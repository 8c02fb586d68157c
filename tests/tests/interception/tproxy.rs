//! `tproxy`: as `redirect`, and the application sees the client's own address.

use std::net::SocketAddr;

use outrigger_tests::app::teller;
use outrigger_tests::netns::workload::Workload;
use outrigger_tests::require;

use super::{MARKER, Pair, at, curl, hears, nginx};

#[tokio::test(flavor = "multi_thread")]
async fn tproxy_keeps_the_clients_address_for_http_and_for_servers_that_speak_first() {
    if require::tool("nginx").is_none() || require::tool("openssl").is_none() {
        return;
    }
    let tproxy = Workload { mode: "tproxy", ..Workload::default() };
    let Some(pair) = Pair::start(&[80, 7000], tproxy).await else { return };
    let client = &pair.client.host;
    let _nginx = nginx(&pair.mesh, &pair.server.host).await;
    for address in pair.server.host.addresses() {
        pair.server.host.run(teller(SocketAddr::new(address, 7000))).await;
    }
    let own = |address: std::net::IpAddr| if address.is_ipv4() { client.v4() } else { client.v6() };
    let capture = pair.capture().await;
    pair.crosses("curl to nginx", 80, async |address| {
        let body = curl(client, &["--data", MARKER, &format!("http://{}/x", at(address, 80))]).unwrap();
        assert_eq!(body, format!("{MARKER} POST /x for {}\n", own(address)));
    })
    .await;
    pair.crosses("a server that speaks first", 7000, async |address| {
        let to = SocketAddr::new(address, 7000);
        assert_eq!(hears(client, to).await.unwrap(), format!("hello {}\n{MARKER}", own(address)));
    })
    .await;
    let wire = capture.so_far().await;
    for port in [80, 7000] {
        wire.only_tls(port).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(!wire.contains(MARKER), "what the programs said is on the wire");
}
