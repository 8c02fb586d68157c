//! What an operator sees when something is wrong: a disk that was full once, a sidecar that left, a change and who made it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use outrigger_control::api::types::{ApplyQuery, RulesQuery};
use outrigger_control::client::Client;
use outrigger_tests::app::get;
use outrigger_tests::mesh::{Mesh, Process, free_net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::json;

use crate::BINARY;
use crate::registries::status;
use crate::thin_thread::{STRICT, catalog};

/// A small file system; it goes with this.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "outrigger-test"])
            .arg(directory.path())
            .status();
        assert!(mounted.unwrap().success());
        Self(directory)
    }

    /// Writes until nothing more fits.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A rule of its own name with a comment of so many bytes.
fn rule(name: &str, bytes: usize) -> String {
    let comment: String = (0..bytes / 64).map(|n| format!("# {n:060}\n")).collect();
    format!(
        "{comment}apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: {name}}}}}, mtls: {{mode: STRICT}}}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_full_is_not_damage_and_needs_no_restart() {
    if !require::root() {
        return;
    }
    let (disk, net, aside) = (Disk::mount("8m"), free_net(), tempfile::tempdir().unwrap());
    let at = |port| SocketAddr::from(([127, net[0], net[1], 1], port));
    let settings = json!({
        "dataDir": disk.path().join("data"),
        "socket": aside.path().join("outrigger.sock"),
        "xdsAddress": at(15012), "metricsAddress": at(15014), "otlpAddress": at(4317), "queryAddress": at(16686),
        "parentPipe": true,
    });
    let file = aside.path().join("control.json");
    std::fs::write(&file, settings.to_string()).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["control-plane", "--config"]).arg(file);
    let control = Process::spawn(command, aside.path().join("control.log"));
    let client = Client::socket(aside.path().join("outrigger.sock"));
    eventually("the control plane answers", || client.status()).await;
    let apply = |name: &'static str, bytes| {
        let client = client.clone();
        async move { client.apply(&rule(name, bytes), &ApplyQuery::default()).await }
    };
    apply("before", 0).await.unwrap();
    let ready = || async { get(at(15014), "/ready", "").await.unwrap().0 };
    assert_eq!(ready().await, 200);

    let ballast = disk.fill();
    let mut said = Vec::new();
    // Free pages of the file may take the first ones.
    let names = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    for name in names {
        if let Err(error) = apply(name, 512 << 10).await {
            said.push(error.to_string());
        }
    }
    assert!(said.len() >= 3, "a full disk does not take them all: {said:?}");
    for error in &said {
        assert!(error.contains("nothing has changed and nothing is lost"), "{error}");
        assert!(!error.contains("damaged") && !error.contains("move it away"), "{error}");
    }
    assert_eq!(ready().await, 503, "not ready while writes fail");
    let notices = client.status().await.unwrap().notices;
    assert!(notices.iter().any(|notice| notice.contains("changes cannot be stored")), "{notices:?}");
    let rules = client.rules(&RulesQuery::default()).await.unwrap().len();
    assert_eq!(rules, 1 + names.len() - said.len(), "what was refused is not there");

    std::fs::remove_file(ballast).unwrap();
    eventually("it is ready again, by itself", || async {
        match ready().await {
            200 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    apply("after", 64 << 10).await.unwrap();
    assert_eq!(client.status().await.unwrap().notices, [""; 0]);
    assert_eq!(client.rules(&RulesQuery::default()).await.unwrap().len(), rules + 1);
    drop(control);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_left_is_listed_and_every_change_is_logged_with_who_and_which_version() {
    let mesh = Mesh::start(BINARY).await;
    let mut catalog = mesh.workload(&catalog("v1", 11)).await;
    assert_eq!(mesh.client.status().await.unwrap().missing, []);
    let barrier = eventually("its barriers are answered", || async {
        let status = mesh.client.status().await.map_err(|error| error.to_string())?;
        let types = &status.proxies[0].types;
        match types.get("Barrier") {
            Some(barrier) if barrier.acked == barrier.sent => Ok(barrier.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(barrier.acked > 0 && barrier.state == "SYNCED", "{barrier:?}");
    catalog.kill();
    let missing = eventually("it is missed", || async {
        let status = mesh.client.status().await.map_err(|error| error.to_string())?;
        status.missing.first().cloned().ok_or(format!("{status:?}"))
    })
    .await;
    assert_eq!((missing.instance.as_str(), missing.seen), ("catalog-v1", true));

    let query = ApplyQuery { author: Some("ann".into()), ..ApplyQuery::default() };
    mesh.client.apply(STRICT, &query).await.unwrap();
    mesh.client.delete("PeerAuthentication", "shop", "default", &ApplyQuery::default()).await.unwrap();
    let log = std::fs::read_to_string(mesh.path("control.log")).unwrap();
    let uid = rustix::process::getuid().as_raw();
    let line = |what: &str| {
        let found = log.lines().find(|line| line.contains(what) && line.contains("changed"));
        found.unwrap_or_else(|| panic!("no line of {what}: {log}")).to_owned()
    };
    let (created, deleted) =
        (line("PeerAuthentication/shop/default created"), line("PeerAuthentication/shop/default deleted"));
    assert!(created.contains("ann via ") && created.contains(&format!("uid {uid}")), "{created}");
    assert!(created.contains("version=1") && deleted.contains("version=2"), "{created}\n{deleted}");
    assert!(deleted.contains(&format!("uid {uid}")), "{deleted}");
    assert!(line("instance catalog-v1 registered").contains(&format!("uid {uid}")));
}

/// The library that gives a process another clock, beside the program of its package.
fn faketime() -> Option<std::path::PathBuf> {
    require::tool("faketime")?;
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let at = libraries.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    Some(at.into_iter().find(|path| path.exists()).expect("the package has its library"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_clock_is_two_days_ahead_says_who_is_not_there() {
    let Some(faketime) = faketime() else { return };
    let mut mesh = Mesh::start(BINARY).await;
    let _catalog = mesh.workload(&catalog("v1", 11)).await;
    assert_eq!(status(&mesh).await.0, 0);
    mesh.stop_control().await;
    // What it signs from now on nobody may use for two days, its own certificate first of all.
    let preload = format!("LD_PRELOAD={}", faketime.display());
    mesh.behind =
        ["env", &preload, "FAKETIME=+2d", "FAKETIME_DONT_FAKE_MONOTONIC=1"].map(str::to_owned).into();
    mesh.start_control().await;
    let said = eventually("its sidecar is missed", || async {
        let (code, said) = status(&mesh).await;
        if code == 0 { Err(said) } else { Ok(said) }
    })
    .await;
    println!("{said}");
    assert!(said.contains("catalog-v1"), "{said}");
}
