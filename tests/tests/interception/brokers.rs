//! Message brokers through two sidecars, by name: Kafka, RabbitMQ and NATS JetStream with the clients that people use. Nobody says what their
//! ports speak, and what they say comes as it was sent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_control::instance::Protocol;
use outrigger_tests::mesh::Process;
use outrigger_tests::netns::Host;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use super::names::pair;
use super::{MARKER, Pair, serve};

const NATS: u16 = 4222;
const RABBITMQ: u16 = 5672;
const KAFKA: u16 = 9092;
const PORTS: [(u16, Protocol); 3] =
    [(NATS, Protocol::Auto), (RABBITMQ, Protocol::Auto), (KAFKA, Protocol::Auto)];
const NAME: &str = "server.shop";
/// The server itself; what is on the path becomes another user first.
const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The programs of the servers, and Python with its clients.
struct Programs {
    nats: PathBuf,
    java: PathBuf,
    jars: PathBuf,
    python: PathBuf,
}

impl Programs {
    fn find() -> Option<Self> {
        let (java, jars) = require::java("kafka")?;
        require::tool("rabbitmq-server")?;
        let (nats, python) = (require::tool("nats-server")?, require::tool("python")?);
        Some(Self { nats, java, jars, python })
    }

    async fn nats(&self, pair: &Pair) -> Process {
        let mut command = pair.server.host.command(&self.nats);
        command.args(["--addr", "::", "--port", "4222", "--jetstream", "--store_dir"]);
        command.arg(pair.mesh.path("nats"));
        serve(&pair.mesh, &pair.server.host, "nats", command, NATS).await
    }

    /// Kafka, one node, which sends its clients to the name that the mesh has for it.
    async fn kafka(&self, pair: &Pair) -> Process {
        let (host, own) = (&pair.server.host, pair.mesh.path("kafka"));
        std::fs::create_dir(&own).unwrap();
        let settings = own.join("server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n\
             listeners=PLAINTEXT://:{KAFKA},CONTROLLER://127.0.0.1:9093\nadvertised.listeners=PLAINTEXT://{NAME}:{KAFKA}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\nlog.dirs={}\n\
             offsets.topic.num.partitions=1\noffsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n",
            own.join("log").display()
        );
        std::fs::write(&settings, text).unwrap();
        let java = |class: &str, args: &[&str]| {
            let mut command = host.command(&self.java);
            command.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
            command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]);
            command.arg(format!("{}/*", self.jars.display())).arg(class).args(args);
            command
        };
        let format = ["format", "--ignore-formatted", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"];
        let mut command = java("kafka.tools.StorageTool", &format);
        let formatted = command.arg(&settings).output().unwrap();
        assert!(formatted.status.success(), "{formatted:?}");
        let mut command = java("kafka.Kafka", &[]);
        command.arg(&settings);
        serve(&pair.mesh, host, "kafka", command, KAFKA).await
    }

    /// RabbitMQ; what maps its Erlang ports outlives it, and ends with the namespace.
    async fn rabbitmq(&self, pair: &Pair) -> Process {
        let (host, own) = (&pair.server.host, pair.mesh.path("rabbitmq"));
        std::fs::create_dir(&own).unwrap();
        let config = "listeners.tcp.1 = :::5672\nloopback_users = none\nlog.console = true\nlog.console.level = warning\n\
             log.file = false\nvm_memory_high_watermark.absolute = 512MB\n";
        std::fs::write(own.join("rabbitmq.conf"), config).unwrap();
        std::fs::write(own.join("enabled_plugins"), "[].").unwrap();
        let mut command = host.command(RABBITMQ_SERVER);
        command.env("HOME", &own).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command
            .env("RABBITMQ_NODENAME", "broker@localhost")
            .env("RABBITMQ_CONFIG_FILE", own.join("rabbitmq"));
        command.env("RABBITMQ_MNESIA_BASE", own.join("mnesia")).env("RABBITMQ_LOG_BASE", own.join("log"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", own.join("enabled_plugins"));
        let arguments = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1";
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments);
        serve(&pair.mesh, host, "rabbitmq", command, RABBITMQ).await
    }

    fn ask(&self, client: &Host, role: &str, port: u16) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interception/brokers.py");
        let args = [&script.display().to_string(), role, NAME, &port.to_string(), MARKER];
        let said = client.ask_for(&self.python, &args, Duration::from_secs(60));
        assert_eq!(said.unwrap_or_else(|error| panic!("{error}")), format!("{role} fine\n"));
    }
}

/// What the server's sidecar counts of the client: connections, and requests, of which there are none.
async fn counted(pair: &Pair) -> (f64, f64) {
    let of = async |metric| {
        let samples = pair.server.metric(metric).await;
        let ours = samples.iter().filter(|(series, _)| {
            series.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"")
                && series.contains("mutual_tls")
        });
        ours.map(|(_, value)| value).sum::<f64>()
    };
    (of("istio_tcp_connections_opened_total").await, of("istio_requests_total").await)
}

async fn brokers_are_called_by_name(mode: &str) {
    let Some(programs) = Programs::find() else { return };
    let Some((pair, _world)) = pair(mode, &PORTS).await else { return };
    let (_nats, _rabbitmq, _kafka) =
        tokio::join!(programs.nats(&pair), programs.rabbitmq(&pair), programs.kafka(&pair));
    let capture = pair.capture().await;
    for (role, port) in [("kafka", KAFKA), ("rabbitmq", RABBITMQ), ("jetstream", NATS)] {
        let before = counted(&pair).await.0;
        tokio::task::block_in_place(|| programs.ask(&pair.client.host, role, port));
        eventually(&format!("{role} is counted"), || async {
            let (connections, requests) = counted(&pair).await;
            assert_eq!(requests, 0.0, "{role} was taken for HTTP");
            if connections > before { Ok(()) } else { Err(format!("{connections} connections")) }
        })
        .await;
        println!("{role}: two sidecars, mTLS, by name");
    }
    let wire = capture.so_far().await;
    for (port, _) in PORTS {
        wire.only_tls(port).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(!wire.contains(MARKER), "what the programs said is on the wire");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_rabbitmq_and_jetstream_cross_two_sidecars_by_redirect() {
    brokers_are_called_by_name("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_rabbitmq_and_jetstream_cross_two_sidecars_by_tproxy() {
    brokers_are_called_by_name("tproxy").await;
}
