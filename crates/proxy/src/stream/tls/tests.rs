use outrigger_identity::{
    Authority, AuthorityOptions, ClientAuth, CredentialStore, PeerExpectation, TrustBundle, client_config,
    handover, server_config,
};
use outrigger_model::identity::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::sockets;

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload("cluster.local", "shop", account).unwrap()
}

fn credentials(authority: &Authority, account: &str) -> Arc<outrigger_identity::Credentials> {
    let issued = authority.issue_key_and_certificate(&id(account), None).unwrap();
    let store = CredentialStore::new(TrustBundle::empty());
    store.replace(Some(Arc::new(issued.certificate)), issued.bundle);
    store.load()
}

/// Configurations whose sessions are handed over to our record layer.
fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (mut client, mut server) = rustls_configs();
    handover::client(Arc::make_mut(&mut client));
    handover::server(Arc::make_mut(&mut server));
    (client, server)
}

/// Configurations whose sessions stay with rustls.
fn rustls_configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let authority = Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
    let expected = PeerExpectation::Exactly(id("stock"));
    let client = client_config(&credentials(&authority, "web"), expected, &[b"istio"]).unwrap();
    (client, server_config(&credentials(&authority, "stock"), &[b"istio"], ClientAuth::Required).unwrap())
}

fn name() -> ServerName<'static> {
    ServerName::try_from("stock.shop").unwrap()
}

async fn connect(config: Arc<ClientConfig>, tcp: TcpStream) -> io::Result<Tls> {
    Ok(Tls::connect(config, name(), tcp).await?.0)
}

async fn accept(config: Arc<ServerConfig>, tcp: TcpStream, prefix: &[u8]) -> io::Result<Tls> {
    Ok(Tls::accept(config, tcp, prefix).await?.0)
}

async fn pair_of(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Tls, Tls) {
    let (near, far) = sockets().await;
    let (near, far) = tokio::join!(connect(client, near), accept(server, far, b""));
    (near.unwrap(), far.unwrap())
}

async fn pair() -> (Tls, Tls) {
    let (client, server) = configs();
    pair_of(client, server).await
}

#[tokio::test]
async fn a_handshake_tells_who_and_what() {
    let ((client, server), (near, far)) = (configs(), sockets().await);
    let (near, far) = tokio::join!(Tls::connect(client, name(), near), Tls::accept(server, far, b""));
    let ((near, to), (far, from)) = (near.unwrap(), far.unwrap());
    assert_eq!((to.alpn.as_deref(), from.alpn.as_deref()), (Some(&b"istio"[..]), Some(&b"istio"[..])));
    for (tls, peer) in [(near, to), (far, from)] {
        assert!(!peer.certificates.is_empty());
        assert!(matches!(tls.layer, Layer::Ours(_)));
    }
}

#[tokio::test]
async fn bulk_goes_both_ways_at_once_and_the_farewell_ends_it() {
    // Our record layer and rustls's, in all combinations.
    for (ours_near, ours_far) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut client, mut server) = rustls_configs();
        if ours_near {
            handover::client(Arc::make_mut(&mut client));
        }
        if ours_far {
            handover::server(Arc::make_mut(&mut server));
        }
        let (near, far) = pair_of(client, server).await;
        assert_eq!(matches!(near.layer, Layer::Ours(_)), ours_near);
        assert_eq!(matches!(far.layer, Layer::Ours(_)), ours_far);
        bulk(near, far).await;
    }
}

async fn bulk(near: Tls, far: Tls) {
    let one_way = |tls: Tls, seed: u8| async move {
        let (mut reading, mut writing) = tokio::io::split(tls);
        let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8 ^ seed).collect();
        let (write, read) = tokio::join!(
            async {
                writing.write_all(&sent).await.unwrap();
                writing.shutdown().await
            },
            async {
                let mut got = Vec::new();
                reading.read_to_end(&mut got).await.map(|_| got)
            }
        );
        write.unwrap();
        read.unwrap()
    };
    let (near, far) = tokio::join!(one_way(near, 0), one_way(far, 0x55));
    assert!(near.iter().zip(0..3_000_000u32).all(|(byte, at)| *byte == (at % 251) as u8 ^ 0x55));
    assert!(far.iter().zip(0..3_000_000u32).all(|(byte, at)| *byte == (at % 251) as u8));
    assert_eq!((near.len(), far.len()), (3_000_000, 3_000_000));
}

#[tokio::test]
async fn a_small_reader_gets_all_of_a_record_and_then_no_buffer_is_held() {
    let (mut near, mut far) = pair().await;
    near.write_all(&[7; 5000]).await.unwrap();
    near.flush().await.unwrap();
    let mut got = 0;
    while got < 5000 {
        let mut small = [0; 700];
        let n = far.read(&mut small).await.unwrap();
        assert!(n > 0 && small[..n].iter().all(|byte| *byte == 7));
        got += n;
    }
    assert!(far.is_quiet() && far.incoming.is_none() && far.outgoing.is_none());
    assert_eq!((far.plain.capacity(), near.outgoing.is_none()), (0, true));
}

#[tokio::test]
async fn bytes_that_come_one_by_one_make_the_same_session() {
    let ((client, server), (near, mut relay_near), (mut relay_far, far)) =
        (configs(), sockets().await, sockets().await);
    let relay = async {
        let (mut near_read, mut near_write) = relay_near.split();
        let (mut far_read, mut far_write) = relay_far.split();
        tokio::join!(
            async {
                while let Ok(byte) = near_read.read_u8().await {
                    far_write.write_u8(byte).await.unwrap();
                    far_write.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
                far_write.shutdown().await.unwrap();
            },
            async { tokio::io::copy(&mut far_read, &mut near_write).await.unwrap() }
        );
    };
    let talk = async {
        let (near, far) = tokio::join!(connect(client, near), accept(server, far, b""));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.write_all(b"hello").await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        // Half-closed: the other direction goes on.
        far.write_all(b"and good bye").await.unwrap();
        far.shutdown().await.unwrap();
        text.clear();
        near.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "and good bye");
    };
    tokio::join!(relay, talk);
}

#[tokio::test]
async fn half_closed_is_said_inside_and_the_socket_ends_with_the_other_half() {
    let (mut near, mut far) = pair().await;
    std::future::poll_fn(|cx| near.poll_farewell(cx)).await.unwrap();
    assert_eq!(far.read(&mut [0; 10]).await.unwrap(), 0);
    let refused = near.write_all(b"more").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    far.write_all(b"late").await.unwrap();
    assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 4);
    assert_eq!(far.tcp().try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    near.shutdown().await.unwrap();
    far.tcp().readable().await.unwrap();
    assert_eq!(far.tcp().try_read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn an_end_without_farewell_is_an_error() {
    let (near, mut far) = pair().await;
    drop(near);
    let error = far.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn what_was_read_ahead_belongs_to_the_handshake() {
    let ((client, server), (near, mut far)) = (configs(), sockets().await);
    let accept = async {
        let mut prefix = [0; 40];
        far.read_exact(&mut prefix).await.unwrap();
        accept(server, far, &prefix).await
    };
    let (near, far) = tokio::join!(connect(client, near), accept);
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    far.write_all(b"x").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'x');
}

/// Passes on what client and server send, and all that comes from the client's Finished on at once; then what the server
/// answers.
async fn hold_back(mut near: TcpStream, mut far: TcpStream) {
    let mut bytes = vec![0; 16 * 1024];
    let n = near.read(&mut bytes).await.unwrap();
    far.write_all(&bytes[..n]).await.unwrap();
    let n = far.read(&mut bytes).await.unwrap();
    near.write_all(&bytes[..n]).await.unwrap();
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    far.write_all(&rest).await.unwrap();
    let _ = tokio::io::copy(&mut far, &mut near).await;
}

#[tokio::test]
async fn data_and_farewell_may_come_with_the_end_of_the_handshake() {
    let ((client, server), (near, relay_near), (relay_far, far)) =
        (configs(), sockets().await, sockets().await);
    let send = async {
        let mut near = connect(client, near).await.unwrap();
        near.write_all(b"all at once").await.unwrap();
        near.shutdown().await.unwrap();
        near
    };
    let receive = async {
        let mut text = String::new();
        accept(server, far, b"").await.unwrap().read_to_string(&mut text).await.unwrap();
        text
    };
    let (_near, (), text) = tokio::join!(send, hold_back(relay_near, relay_far), receive);
    assert_eq!(text, "all at once");
}

#[tokio::test]
async fn new_keys_may_come_with_the_end_of_the_handshake() {
    let ((client, server), (near, relay_near), (relay_far, far)) =
        (configs(), sockets().await, sockets().await);
    let talk = async {
        let connector = tokio_rustls::TlsConnector::from(client);
        let mut near = connector.connect(name(), near).await.unwrap();
        near.get_mut().1.refresh_traffic_keys().unwrap();
        near.write_all(b"under new keys").await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        near.read_to_string(&mut text).await.unwrap();
        text
    };
    let answer = async {
        let mut far = accept(server, far, b"").await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        far.write_all(text.to_uppercase().as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let (text, (), ()) = tokio::join!(talk, hold_back(relay_near, relay_far), answer);
    assert_eq!(text, "UNDER NEW KEYS");
}

#[tokio::test]
async fn a_session_that_has_failed_reads_and_writes_no_more() {
    let ((client, server), (near, mut relay_near), (mut relay_far, far)) =
        (configs(), sockets().await, sockets().await);
    let corrupts = std::cell::Cell::new(false);
    let relay = async {
        let (mut out, mut back) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
        loop {
            tokio::select! {
                n = relay_near.read(&mut out) => {
                    let n = n.unwrap();
                    // Behind a record's header.
                    out[6] ^= u8::from(corrupts.take());
                    relay_far.write_all(&out[..n]).await.unwrap();
                }
                n = relay_far.read(&mut back) => relay_near.write_all(&back[..n.unwrap()]).await.unwrap(),
            }
        }
    };
    let send = async {
        let mut near = connect(client, near).await.unwrap();
        near.write_all(b"hello").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'!');
        corrupts.set(true);
        near.write_all(b"first").await.unwrap();
        near.write_all(b"second").await.unwrap();
        std::future::pending::<()>().await;
    };
    let receive = async {
        let mut far = accept(server, far, b"").await.unwrap();
        let mut text = [0; 5];
        far.read_exact(&mut text).await.unwrap();
        far.write_all(b"!").await.unwrap();
        for _ in 0..3 {
            let error = far.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(!far.is_quiet());
        }
        assert_eq!(far.write(b"x").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    };
    tokio::select! { () = send => {}, () = relay => {}, () = receive => {} }
}

#[tokio::test]
async fn slices_leave_as_one_record_and_new_keys_of_the_peer_are_taken() {
    let ((client, server), (near, far)) = (configs(), sockets().await);
    let connector = tokio_rustls::TlsConnector::from(client);
    let (near, far) = tokio::join!(connector.connect(name(), near), accept(server, far, b""));
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let slices = [IoSlice::new(b"frame "), IoSlice::new(b""), IoSlice::new(b"head"), IoSlice::new(b" body")];
    let n = std::future::poll_fn(|cx| Pin::new(&mut far).poll_write_vectored(cx, &slices)).await.unwrap();
    assert_eq!(n, 15);
    let mut text = [0; 15];
    near.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"frame head body");
    for round in 0..3_u8 {
        near.get_mut().1.refresh_traffic_keys().unwrap();
        near.write_u8(round).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), round);
        // The answer to the key update goes before this.
        far.write_u8(round).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_peer_that_is_not_trusted_is_told() {
    let ((client, _), (_, other)) = (configs(), configs());
    let (near, far) = sockets().await;
    let (near, far) = tokio::join!(connect(client, near), accept(other, far, b""));
    let near = near.err().unwrap();
    assert_eq!(near.kind(), io::ErrorKind::InvalidData);
    // An alert, not a connection that just ended.
    let far = far.err().unwrap();
    assert!(far.to_string().contains("alert"), "{far}");
}
