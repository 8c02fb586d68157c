//! The table of registries through real sidecars: files in two rows beside the management API, and one of them in trouble.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, PORT};
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::web;

/// A registry file of one instance without a sidecar.
fn instance(id: &str, service: &str, address: SocketAddr) -> String {
    json!({ "instances": [{
        "id": id, "service": service, "namespace": "shop", "addresses": [address.ip()], "serviceAccount": service,
        "ports": [{ "number": address.port(), "protocol": "http" }], "sidecar": false,
    }] })
    .to_string()
}

/// Marks what it answers, so that it is seen to be in force.
const MARKED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock]
  http:
  - route: [{destination: {host: stock}, headers: {request: {set: {X-From-Rule: a-file}}}}]
";

/// Asks a server that speaks JSON over HTTP; the status, and the body.
pub async fn json_over_http(
    at: SocketAddr,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<(u16, String), String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let asked = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all((head + &body).as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = asked.await.map_err(|error| error.to_string())?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(text.clone())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(text.clone())?;
    match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => Ok((status, unchunked(body))),
        false => Ok((status, body.to_owned())),
    }
}

/// A body without the lengths of its chunks.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        whole.push_str(rest.get(..length).unwrap_or(rest));
        body = rest.get(length + 2..).unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    whole
}

pub async fn row(mesh: &Mesh, name: &str) -> RegistryBody {
    let status = mesh.client.status().await.unwrap();
    status.registries.into_iter().find(|row| row.name == name).unwrap()
}

pub async fn until(mesh: &Mesh, name: &str, what: &str, is: impl Fn(&RegistryBody) -> bool) {
    eventually(what, || async {
        let row = row(mesh, name).await;
        if is(&row) { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await;
}

/// The certificate of an authority that nobody here has heard of.
pub fn stranger() -> String {
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// One dies, and leaves within its check's time and what a crowded machine takes.
pub async fn leaves(mesh: &Mesh, name: &str, check: Duration, is: impl Fn(&RegistryBody) -> bool) {
    let begun = Instant::now();
    until(mesh, name, "who died has left", is).await;
    let took = begun.elapsed();
    println!("{name}: who died has left after {:.1} s, its check has {check:?}", took.as_secs_f64());
    assert!(took <= check + Duration::from_secs(10), "{took:?}");
}

pub async fn answer(entry: SocketAddr, text: &str) {
    eventually(&format!("an answer with {text}"), || async {
        match get(entry, "/", "").await {
            Ok((200, answer)) if answer.contains(text) => Ok(()),
            Ok((_, answer)) => Err(answer),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

/// Calls one after the other until it is told to stop, and counts those that fail; in the end how many there were.
pub fn under_load(
    entries: Vec<SocketAddr>,
) -> (Arc<AtomicBool>, Arc<AtomicU32>, tokio::task::JoinHandle<usize>) {
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (until, bad) = (stop.clone(), failed.clone());
    let load = tokio::spawn(async move {
        let mut served = 0;
        while !until.load(SeqCst) {
            match get(entries[served % entries.len()], "/", "").await {
                Ok((200, _)) => {}
                _ => drop(bad.fetch_add(1, SeqCst)),
            }
            served += 1;
        }
        served
    });
    (stop, failed, load)
}

async fn metric(mesh: &Mesh, series: &str) -> String {
    let (_, page) = get(mesh.address(1, 15014), "/metrics", "").await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("{series}: {page}")).trim().to_owned()
}

/// `outrigger status`: its exit code and what it says.
pub(crate) async fn status(mesh: &Mesh) -> (i32, String) {
    let mut command = std::process::Command::new(mesh.binary());
    command.arg("status").arg("--server").arg(mesh.path("control/outrigger.sock"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_in_trouble_keeps_what_it_said_and_takes_nothing_from_the_others() {
    let aside = tempfile::tempdir().unwrap();
    let file = |name: &str| aside.path().join(name);
    let mesh_files = json!({ "registries": [
        { "name": "first", "file": { "paths": [file("first")] } },
        { "name": "second", "file": { "paths": [file("second")] } },
    ] });
    std::fs::create_dir_all(file("first")).unwrap();
    std::fs::create_dir_all(file("second")).unwrap();
    let mesh = Mesh::start_with(BINARY, mesh_files).await;
    let (catalog, stock, other) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(catalog, "catalog").await;
    echo(stock, "stock").await;
    echo(other, "other").await;
    std::fs::write(file("first/catalog.json"), instance("catalog-1", "catalog", catalog)).unwrap();
    std::fs::write(file("second/stock.json"), instance("stock-1", "stock", stock)).unwrap();
    std::fs::write(file("second/rules.yaml"), MARKED).unwrap();
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[0], "X-App-Name: catalog\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    answer(web.outbound[1], "a-file\r\n").await;
    let well = row(&mesh, "second").await;
    assert_eq!((well.state, well.instances, well.rules), (Condition::Connected, 1, 1), "{well:?}");

    // Rubbish, and a directory that is gone: what they said before serves, and the other registry goes on.
    std::fs::write(file("second/stock.json"), "instances: [{").unwrap();
    until(&mesh, "second", "a bad file is told", |row| row.state == Condition::Degraded).await;
    std::fs::remove_dir_all(file("second")).unwrap();
    let gone = |row: &RegistryBody| row.last_error.as_ref().is_some_and(|error| error.contains("cannot be"));
    until(&mesh, "second", "a directory that is gone is told", gone).await;
    std::fs::write(file("first/catalog.json"), instance("catalog-1", "catalog", other)).unwrap();
    answer(web.outbound[0], "X-App-Name: other\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    answer(web.outbound[1], "a-file\r\n").await;
    let second = "{registry=\"second\",kind=\"file\"}";
    assert_eq!(metric(&mesh, &format!("outrigger_registry_instances{second}")).await, "1");
    assert_ne!(metric(&mesh, &format!("outrigger_registry_problems{second}")).await, "0");
    assert_eq!(metric(&mesh, "outrigger_registry_problems{registry=\"first\",kind=\"file\"}").await, "0");
    let (code, said) = status(&mesh).await;
    assert_eq!(code, 2, "{said}");
    let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("second ").contains("DEGRADED") && line("first ").contains("CONNECTED"), "{said}");
    assert!(line("REGISTRY second: ").contains("stays in force"), "{said}");

    // It comes back, and claims what the first has.
    std::fs::create_dir_all(file("second")).unwrap();
    std::fs::write(file("second/stock.json"), instance("catalog-1", "catalog", catalog)).unwrap();
    until(&mesh, "second", "what it has in vain is told", |row| row.shadowed_count == 1 && row.rules == 0)
        .await;
    let shadowed = row(&mesh, "second").await.shadowed;
    assert_eq!(shadowed[0].what, "catalog-1");
    assert!(shadowed[0].by.starts_with("registry \"first\""), "{shadowed:?}");
    answer(web.outbound[0], "X-App-Name: other\r\n").await;
    std::fs::remove_file(file("first/catalog.json")).unwrap();
    answer(web.outbound[0], "X-App-Name: catalog\r\n").await;
    assert_eq!(status(&mesh).await.0, 0);
}
