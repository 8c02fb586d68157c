//! A real Prometheus asks injected Pods where their annotations send it, and has the application's metrics and the sidecar's from one page: in
//! the text format where the application has that alone, else in OpenMetrics, which it asks for.

use std::path::Path;

use outrigger_tests::mesh::Process;

use super::*;

/// Where it listens, on the host of the API server.
const PROMETHEUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 19_090);

/// A Pod whose metrics are at a port and a path of their own.
fn metered(name: &str, env: &[&str]) -> String {
    let env = env.iter().map(|name| json!({"name": name, "value": "yes"}));
    let mut all = vec![json!({"name": "METRICS", "value": "9090"}), json!({"name": "NAME", "value": name})];
    all.extend(env);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}, "annotations": {
            "prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/own/metrics",
        }},
        "spec": {"nodeName": NODE, "containers": [{
            "name": "app", "image": "app", "args": ["serve", "8080"], "env": all,
            "ports": [{"containerPort": 8080}, {"containerPort": 9090}],
            "readinessProbe": {"tcpSocket": {"port": 9090}, "periodSeconds": 1},
        }]},
    })
    .to_string()
}

/// Targets as the annotations of these Pods say. (A Prometheus of Debian is built without a way to find them itself.)
fn configuration(stage: &Stage, pods: &[&str]) -> Value {
    let target = |name: &&str| {
        let annotations = cni::pod(stage, name)["metadata"]["annotations"].clone();
        let said = |what: &str| annotations[format!("prometheus.io/{what}")].as_str().unwrap().to_owned();
        assert_eq!(said("scrape"), "true");
        let address = format!("{}:{}", stage.host(name).v4(), said("port"));
        let targets = json!([{"targets": [address], "labels": {"pod": name}}]);
        json!({"job_name": name, "metrics_path": said("path"), "static_configs": targets})
    };
    let all: Vec<Value> = pods.iter().map(target).collect();
    json!({"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": all})
}

/// A running Prometheus.
struct Prometheus {
    host: Host,
    process: Process,
}

impl Prometheus {
    fn start(program: &Path, stage: &Stage, configuration: &Value) -> Self {
        let file = stage.cluster.path("prometheus.yaml");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let mut command = stage.master.command(program);
        command.current_dir(stage.cluster.path("")).arg("--config.file").arg(file);
        command.args(["--storage.tsdb.path", "prometheus", "--web.listen-address", &PROMETHEUS.to_string()]);
        command.arg("--enable-feature=exemplar-storage");
        let process = Process::spawn(command, stage.cluster.path("prometheus.log"));
        Self { host: stage.master.clone(), process }
    }

    /// What its API says to a question.
    async fn ask(&self, path: &str, query: &str) -> Result<Value, String> {
        let encoded: Vec<String> = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/{path}?query={}", encoded.concat());
        let (_, text) = self
            .host
            .run(async move { app::get(PROMETHEUS, &path, "").await })
            .await
            .map_err(|error| format!("{error}\n{}", self.process.log()))?;
        let answer: Value =
            serde_json::from_str(&app::body(&text)).map_err(|error| format!("{error}: {text}"))?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].clone()),
            false => Err(text),
        }
    }

    /// Waits until a question has this one number for an answer.
    async fn until(&self, query: &str, value: &str) {
        eventually(&format!("{query} is {value}"), || async {
            let data = self.ask("query", query).await?;
            match data["result"].as_array().map(Vec::as_slice) {
                Some([one]) if one["value"][1] == value => Ok(()),
                _ => Err(data.to_string()),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_has_the_metrics_of_the_application_and_of_its_sidecar() {
    let Some(program) = require::tool("prometheus") else { return };
    let Some(stage) = Stage::start().await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(&metered("plain", &[]));
    stage.cluster.apply(&metered("open", &["OPEN_METRICS"]));
    for name in ["plain", "open"] {
        stage.until_ready(name, 1).await;
        // No Prometheus reaches it where it is.
        let own = SocketAddr::new(stage.host(name).v4(), 9090);
        let direct = stage.master.run(app::get(own, "/own/metrics", "")).await;
        assert!(direct.is_err(), "{direct:?}");
    }
    // Requests that the sidecars count: three to each, from the other.
    for (from, to) in [("plain", "open"), ("open", "plain")] {
        let address = SocketAddr::new(stage.host(to).v4(), 8080);
        eventually("one reaches the other", || async {
            match stage.ask(from, address).await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}\n{}", stage.logs(from))),
            }
        })
        .await;
        for _ in 0..2 {
            let answer = stage.ask(from, address).await;
            assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
        }
    }

    let prometheus = Prometheus::start(&program, &stage, &configuration(&stage, &["plain", "open"]));
    for name in ["plain", "open"] {
        let of = |series: &str, labels: &str| format!("{series}{{pod=\"{name}\"{labels}}}");
        // There is nothing on its page that cannot be read.
        prometheus.until(&of("up", ""), "1").await;
        prometheus.until(&of("outrigger_app_metrics_up", ""), "1").await;
        prometheus.until(&of("app_up", &format!(",name=\"{name}\"")), "1").await;
        prometheus.until(&of("app_orders_total", ""), "3").await;
        // No question has a deadline, so none was served that its client had given up: three, and no fourth.
        let counted = of("istio_requests_total", ",reporter=\"destination\",response_code=\"200\"");
        prometheus.until(&format!("sum({counted})"), "3").await;
        // Whose name is the sidecar's, that is the sidecar's.
        prometheus.until(&format!("count({})", of("istio_build", "")), "1").await;
        prometheus.until(&of("istio_build", ",component=\"proxy\""), "1").await;
        prometheus.until(&format!("count({})", of("outrigger_process_start_time_seconds", "")), "1").await;
    }

    // Exemplars are in OpenMetrics alone, so that is what it has read of who has it.
    let exemplars = eventually("it has the application's exemplar", || async {
        let data = prometheus.ask("query_exemplars", "app_orders_total").await;
        data.and_then(|data| if data == json!([]) { Err("there is none".to_owned()) } else { Ok(data) })
    })
    .await;
    let [one] = exemplars.as_array().unwrap().as_slice() else { panic!("{exemplars}") };
    assert_eq!(one["seriesLabels"]["pod"], "open", "{exemplars}");
    assert_eq!(one["exemplars"][0]["labels"], json!({"trace_id": app::EXEMPLAR}), "{exemplars}");
    // Who does not read it has the same in the old format.
    let port = cni::pod(&stage, "open")["metadata"]["annotations"]["prometheus.io/port"].clone();
    let sidecar = SocketAddr::new(stage.host("open").v4(), port.as_str().unwrap().parse().unwrap());
    let text = "Accept: text/plain;version=0.0.4\r\n";
    let (status, page) = stage.master.run(app::get(sidecar, "/stats/prometheus", text)).await.unwrap();
    assert!(status == 200 && page.contains("\napp_orders_total 3\n"), "{status} {page}");
    assert!(!page.contains("# EOF") && !page.contains(app::EXEMPLAR), "{page}");
}
