//! The demo as a process: its shop's traces in a real Jaeger, and that nothing of it outlives it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use outrigger_tests::jaeger::{Jaeger, Places};
use outrigger_tests::mesh::free_net;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::BINARY;

/// A running demo.
struct Demo {
    child: Child,
    out: BufReader<ChildStdout>,
    /// What it printed so far.
    text: String,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("demo").args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, text: String::new() }
    }

    /// Reads on until a line holds `what`; that line.
    fn until(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the demo ended: {}", self.text);
            self.text.push_str(&line);
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The part of its addresses that no other program has, like `127.3.4.`.
    fn net(&mut self) -> String {
        let line = self.until("control plane 127.");
        let address = line.split_whitespace().find(|word| word.starts_with("127.")).unwrap();
        address.rsplit_once('.').unwrap().0.to_owned() + "."
    }

    /// Where its files are.
    fn directory(&mut self) -> String {
        let line = self.until("--server unix:");
        let path = line.trim().rsplit_once("unix:").unwrap().1;
        path.strip_suffix("/control/outrigger.sock").unwrap().to_owned()
    }
}

/// Processes whose command line names one of these.
fn processes(named: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if named.iter().any(|name| line.contains(name)) {
            found.push(line);
        }
    }
    found
}

async fn all_gone(named: &[&str]) {
    eventually("every process of the demo is gone", || async {
        let left = processes(named);
        if left.is_empty() { Ok(()) } else { Err(format!("{} left: {left:?}", left.len())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_killed_demo_and_its_mesh_takes_rules_before() {
    let mut demo = Demo::start(&["--keep", "--steps", "none"]);
    let net = demo.net();
    let directory = demo.directory();
    demo.until("staying up");
    assert!(processes(&[&net, &directory]).len() >= 19, "control plane, sidecars, applications");

    let server = format!("unix:{directory}/control/outrigger.sock");
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/demo/canary.yaml");
    let apply = ["apply", "-f", rules, "--wait", "--server", &server];
    let Output { status, stdout, stderr } = Command::new(BINARY).args(apply).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(status.success() && text.contains("10/10"), "{text}");

    demo.signal(Signal::KILL);
    all_gone(&[&net, &directory]).await;
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_ends_all_and_removes_its_files() {
    let mut demo = Demo::start(&["--keep", "--steps", "none"]);
    let net = demo.net();
    let directory = demo.directory();
    demo.until("staying up");
    demo.signal(Signal::INT);
    assert_eq!(demo.child.wait().unwrap().code(), Some(130));
    all_gone(&[&net, &directory]).await;
    assert!(!std::fs::exists(directory).unwrap());
}

/// Network namespaces of a demo, by the name that it prints.
fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_runs_on_intercepted_hosts_whose_applications_know_nothing_of_the_mesh() {
    if !require::netns() || ["nft", "setpriv", "curl"].iter().any(|name| require::tool(name).is_none()) {
        return;
    }
    let mut demo = Demo::start(&["--intercept", "--keep", "--steps", "none"]);
    demo.until("pricing.shop server");
    let shop = demo.until("ip netns exec");
    let words: Vec<&str> = shop.split_whitespace().skip_while(|word| *word != "ip").collect();
    let prefix = words[3].rsplit_once('-').unwrap().0.to_owned() + "-";
    let directory = demo.directory();
    demo.until("staying up");
    assert_eq!(namespaces(&prefix).len(), 11, "a host for each workload, one for the control plane");
    // What a person would type: a name, and no proxy anywhere in sight.
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.contains("pricing") && answer.contains("catalog"), "{answer}");

    demo.signal(Signal::KILL);
    all_gone(&[&prefix, &directory]).await;
    eventually("the namespaces are gone", || async {
        let left = namespaces(&prefix);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let _ = std::fs::remove_dir_all(directory);
}

#[test]
fn a_demo_that_ends_names_no_place_that_is_gone_and_claims_no_effect_that_it_did_not_look_for() {
    let output = Command::new(BINARY).args(["demo", "--steps", "none"]).output().unwrap();
    let (said, beside) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && beside.contains("warming up"), "{said}{beside}");
    assert!(said.contains("no step was taken") && !said.contains("seen"), "{said}");
    assert!(!said.contains("--server unix:") && !said.contains("/metrics"), "{said}");
}

#[test]
fn an_unknown_step_is_refused_with_the_names_that_there_are() {
    let output = Command::new(BINARY).args(["demo", "--steps", "canari"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("no step `canari`") && text.contains("header-route"),
        "{text}"
    );
}

/// A span as `service kind`, and the id of what is above it.
struct Hop<'t> {
    name: String,
    above: Option<&'t str>,
    resent: bool,
}

fn hops(trace: &Value) -> BTreeMap<&str, Hop<'_>> {
    let spans = trace["spans"].as_array().unwrap();
    let hop = |span: &'_ Value| {
        let tag = |key: &str| span["tags"].as_array().unwrap().iter().find(|tag| tag["key"] == key).cloned();
        let service = &trace["processes"][span["processID"].as_str().unwrap()]["serviceName"];
        let service = service.as_str().unwrap().split('.').next().unwrap().to_owned();
        let kind = tag("span.kind").map_or(String::new(), |tag| tag["value"].as_str().unwrap().to_owned());
        (format!("{service} {kind}"), tag("http.request.resend_count").is_some())
    };
    let mut found = BTreeMap::new();
    for span in spans {
        let (name, resent) = hop(span);
        let above = span["references"][0]["spanID"].as_str();
        found.insert(span["spanID"].as_str().unwrap(), Hop { name, above, resent });
    }
    found
}

/// Each kind of hop under what it must be under: the load's sidecar begins, everybody passes the context on.
const TREE: [(&str, &str); 7] = [
    ("web server", "load client"),
    ("web client", "web server"),
    ("catalog server", "web client"),
    ("catalog client", "catalog server"),
    ("pricing server", "catalog client"),
    ("reviews server", "web client"),
    ("load client", ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_leaves_whole_traces_with_their_attempts_in_a_real_jaeger() {
    let Some(program) = require::tool("jaeger") else { return };
    let directory = tempfile::tempdir().unwrap();
    let [x, y] = free_net();
    let at = |port| SocketAddr::from((Ipv4Addr::new(127, x, y, 40), port));
    let places = Places { otlp: at(4317), query: at(16686), query_grpc: at(16685) };
    let jaeger = Jaeger::start(&program, directory.path(), places).await;
    let mut demo =
        Demo::start(&["--keep", "--steps", "retries", "--otlp", &format!("http://{}", places.otlp)]);
    demo.until("staying up");

    // Every hop is there, and what each attempt met: sidecars send their spans each in its own time.
    let whole = |trace: &Value| {
        let hops = hops(trace);
        let names: BTreeSet<&str> = hops.values().map(|hop| hop.name.as_str()).collect();
        let met = |id: &str| hops.values().any(|hop| hop.above == Some(id));
        let hangs = |hop: &Hop<'_>| hop.above.is_none_or(|above| hops.contains_key(above));
        TREE.iter().all(|(name, _)| names.contains(name))
            && hops.values().all(hangs)
            && hops.iter().all(|(id, hop)| !hop.name.ends_with(" client") || met(id))
    };
    let (first, retried) = eventually("whole traces in Jaeger, one with a second attempt", || async {
        let traces = jaeger.query("/api/traces?service=web.shop&limit=1500").await?;
        let found: Vec<Value> = traces.into_iter().filter(whole).collect();
        let retried = found.iter().find(|trace| hops(trace).values().any(|hop| hop.resent)).cloned();
        match (found.first().cloned(), retried) {
            (Some(first), Some(retried)) => Ok((first, retried)),
            (first, _) => Err(format!("whole ones: {}, of them retried: none", u32::from(first.is_some()))),
        }
    })
    .await;
    for trace in [&first, &retried] {
        let hops = hops(trace);
        for hop in hops.values() {
            let above =
                hop.above.map_or("", |above| hops.get(above).map_or("nobody", |hop| hop.name.as_str()));
            assert!(TREE.contains(&(hop.name.as_str(), above)), "{} under {above:?}: {trace}", hop.name);
        }
    }
    let hops = hops(&retried);
    let again = hops.iter().find(|(_, hop)| hop.resent).unwrap();
    let siblings = hops.values().filter(|hop| hop.above == again.1.above && hop.name == again.1.name).count();
    assert!(siblings >= 2, "each attempt is a span of its own under the same parent: {retried}");
    let below = hops.values().filter(|hop| hop.above == Some(again.0)).count();
    assert_eq!(below, 1, "and arrived at the server as one: {retried}");
    // A killed demo cannot remove its files.
    demo.signal(Signal::INT);
    assert_eq!(demo.child.wait().unwrap().code(), Some(130));
}
