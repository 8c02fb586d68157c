//! Unmodified programs through two sidecars, each over IPv4 and IPv6, each with its port's protocol left to detection; a capture on the
//! wire has nothing but TLS.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use outrigger_tests::mesh::Process;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use super::{MARKER, OWN_NAME, Pair, at, curl, nginx, python, serve};
use outrigger_tests::netns::capture::Capture;
use outrigger_tests::netns::workload::Workload;

/// A user without a home; databases refuse to run as root.
const NOBODY: u32 = 65534;

impl Pair {
    /// Nothing of what the programs said is on the wire, and on their ports there is nothing but TLS.
    async fn nothing_in_plain_text(&self, capture: &Capture, ports: &[u16], words: &[&str]) {
        let wire = capture.so_far().await;
        for port in ports {
            let records = wire.only_tls(*port).unwrap_or_else(|error| panic!("{error}"));
            let flows: Vec<_> = wire.of_port(*port).collect();
            for address in self.server.host.addresses() {
                assert!(
                    flows.iter().any(|flow| flow.to.ip() == address),
                    "nothing went to {address} port {port}"
                );
            }
            println!("port {port}: {} connections, {records} TLS records, nothing else", flows.len() / 2);
        }
        for word in words {
            assert!(!wire.contains(word), "{word} is on the wire in plain text");
        }
    }

    async fn serve_python(&self, role: &str, port: u16) -> Process {
        let (python, script) = python().expect("the test has asked for it");
        let mut command = self.server.host.command(python);
        command.arg(script).args([role, "::", &port.to_string(), ""]);
        serve(&self.mesh, &self.server.host, role, command, port).await
    }

    /// A directory that a database may have for its own.
    fn database(&self, name: &str) -> String {
        let directory = self.mesh.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
        directory.display().to_string()
    }

    async fn serve_mariadb(&self, install: &Path, mariadbd: &Path) -> Process {
        let (server, own) = (&self.server.host, self.database("mariadb"));
        // Its own folder for temporary tables as well: two servers take the same names there.
        let (data, temporary) = (format!("--datadir={own}"), format!("--tmpdir={own}"));
        let mut command = server.command_as(NOBODY, install);
        command.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            &data,
            &temporary,
        ]);
        made(command);
        let mut command = server.command_as(NOBODY, mariadbd);
        command.args(["--no-defaults", "--skip-grant-tables", "--skip-name-resolve"]);
        command.args(["--bind-address=*", "--port=3306", &data, &temporary]);
        command.args([format!("--socket={own}/socket"), format!("--pid-file={own}/pid")]);
        serve(&self.mesh, server, "mariadb", command, 3306).await
    }

    async fn serve_postgresql(&self, initdb: &Path, postgres: &Path) -> Process {
        let (server, own) = (&self.server.host, self.database("postgresql"));
        let mut command = server.command_as(NOBODY, initdb);
        command.args(["-D", &own, "-A", "trust", "-U", "shop", "--no-sync", "--no-locale", "-E", "UTF8"]);
        made(command);
        let rules = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
        std::fs::write(format!("{own}/pg_hba.conf"), rules).unwrap();
        let mut command = server.command_as(NOBODY, postgres);
        command.args(["-D", &own, "-p", "5432", "-c", "listen_addresses=*", "-c", "fsync=off"]);
        command.args(["-c", &format!("unix_socket_directories={own}")]);
        serve(&self.mesh, server, "postgresql", command, 5432).await
    }

    fn python_client(&self, role: &str, address: IpAddr, port: u16) {
        let (python, script) = python().expect("the test has asked for it");
        let args = [&script.display().to_string(), role, &address.to_string(), &port.to_string(), MARKER];
        let said = self.client.host.ask(&python, &args).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(said, format!("{role} fine\n"));
    }
}

/// Runs what prepares a database.
fn made(mut command: Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

async fn web_programs(mode: &'static str) {
    let wanted = [require::tool("nginx"), require::tool("openssl"), python().map(|(python, _)| python)];
    if wanted.iter().any(Option::is_none) {
        return;
    }
    let Some(pair) = Pair::start(&[80, 443, 8765, 50051], Workload { mode, ..Workload::default() }).await
    else {
        return;
    };
    let _nginx = nginx(&pair.mesh, &pair.server.host).await;
    let (_ws, _grpc) =
        tokio::join!(pair.serve_python("ws_server", 8765), pair.serve_python("grpc_server", 50051));
    let capture = pair.capture().await;
    let client = &pair.client.host;
    pair.crosses("curl to nginx", 80, async |address| {
        let url = format!("http://{}/{MARKER}", at(address, 80));
        let body = curl(client, &["--data", MARKER, &url]).unwrap();
        assert!(body.starts_with(&format!("{MARKER} POST /{MARKER} for ")), "{body}");
    })
    .await;
    pair.crosses("curl to nginx with TLS of its own", 443, async |address| {
        let certificate = pair.mesh.path("nginx-server/cert.pem").display().to_string();
        let (url, there) = (format!("https://{OWN_NAME}/x"), format!("{OWN_NAME}:443:{}", at(address, 443)));
        let body = curl(client, &["--cacert", &certificate, "--connect-to", &there, &url]).unwrap();
        assert!(body.starts_with(&format!("{MARKER} GET /x for ")), "{body}");
    })
    .await;
    pair.crosses("WebSocket", 8765, async |address| pair.python_client("ws_client", address, 8765)).await;
    pair.crosses("gRPC", 50051, async |address| pair.python_client("grpc_client", address, 50051)).await;
    pair.nothing_in_plain_text(&capture, &[80, 443, 8765, 50051], &[MARKER, OWN_NAME]).await;
}

async fn databases(mode: &'static str) {
    let names = [
        "mariadbd",
        "mariadb-install-db",
        "mariadb",
        "postgres",
        "initdb",
        "psql",
        "redis-server",
        "redis-cli",
    ];
    let Some(tools) = names.iter().map(|name| require::tool(name)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let [mariadbd, install, mariadb, postgres, initdb, psql, redis, redis_cli] = &tools[..] else {
        unreachable!()
    };
    let Some(pair) = Pair::start(&[3306, 5432, 6379], Workload { mode, ..Workload::default() }).await else {
        return;
    };
    let (client, server) = (&pair.client.host, &pair.server.host);
    let _maria = pair.serve_mariadb(install, mariadbd).await;
    let _postgres = pair.serve_postgresql(initdb, postgres).await;
    let mut command = server.command(redis);
    command.args(["--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""]);
    let _redis = serve(&pair.mesh, server, "redis", command, 6379).await;

    let capture = pair.capture().await;
    pair.crosses("MariaDB", 3306, async |address| {
        let host = format!("--host={address}");
        let sql = format!(
            "create database if not exists sea; create or replace table sea.shanties (name text); \
             insert into sea.shanties values ('{MARKER}'); select name from sea.shanties; select length(repeat(name, 20000)), \
             repeat(name, 20000) like '%{MARKER}' from sea.shanties"
        );
        let said = client.ask(mariadb, &["--no-defaults", "--protocol=tcp", "-N", "-B", &host, "-e", &sql]).unwrap();
        assert_eq!(said, format!("{MARKER}\n{}\t1\n", MARKER.len() * 20000));
    })
    .await;
    pair.crosses("PostgreSQL", 5432, async |address| {
        let place = format!("host={address} port=5432 user=shop dbname=postgres");
        let sql = format!("select repeat('{MARKER}', 2)");
        let said = client.ask(psql, &["-X", "-A", "-t", "-d", &place, "-c", &sql]).unwrap();
        assert_eq!(said, format!("{MARKER}{MARKER}\n"));
    })
    .await;
    pair.crosses("Redis", 6379, async |address| {
        let host = address.to_string();
        assert_eq!(client.ask(redis_cli, &["-h", &host, "set", "shanty", MARKER]).unwrap(), "OK\n");
        assert_eq!(client.ask(redis_cli, &["-h", &host, "get", "shanty"]).unwrap(), format!("{MARKER}\n"));
    })
    .await;
    pair.nothing_in_plain_text(&capture, &[3306, 5432, 6379], &[MARKER]).await;
}

async fn brokers(mode: &'static str) {
    let names = ["nats-server", "mosquitto", "mosquitto_pub", "mosquitto_sub"];
    let Some(tools) = names.iter().map(|name| require::tool(name)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let ([nats, mosquitto, publish, subscribe], Some(_)) = (&tools[..], python()) else { return };
    let Some(pair) = Pair::start(&[25, 1883, 4222], Workload { mode, ..Workload::default() }).await else {
        return;
    };
    let (client, server) = (&pair.client.host, &pair.server.host);
    let mut command = server.command(nats);
    command.args(["--addr", "::", "--port", "4222"]);
    let _nats = serve(&pair.mesh, server, "nats", command, 4222).await;
    let config = pair.mesh.path("mosquitto.conf");
    std::fs::write(&config, "listener 1883\nallow_anonymous true\nuser root\n").unwrap();
    let mut command = server.command(mosquitto);
    command.arg("-c").arg(config);
    let _mosquitto = serve(&pair.mesh, server, "mosquitto", command, 1883).await;
    let smtp = pair.serve_python("smtp_server", 25).await;

    let capture = pair.capture().await;
    pair.crosses("NATS", 4222, async |address| pair.python_client("nats", address, 4222)).await;
    pair.crosses("Mosquitto", 1883, async |address| {
        let host = address.to_string();
        let say = |text: &str, retained: &[&str]| {
            client
                .ask(publish, &[&["-h", &host, "-t", "fleet/north/position", "-m", text], retained].concat())
                .unwrap();
        };
        say(&format!("{MARKER} retained"), &["-r"]);
        let mut command = client.command(subscribe);
        command.args(["-h", &host, "-t", "fleet/+/position"]);
        let subscriber = Process::spawn(command, pair.mesh.path("subscriber.log"));
        let hears = async |text: String| {
            eventually("the subscriber hears", || async {
                if subscriber.log().contains(&text) { Ok(()) } else { Err(subscriber.log()) }
            })
            .await;
        };
        hears(format!("{MARKER} retained\n")).await;
        say(&format!("{MARKER} live"), &[]);
        hears(format!("{MARKER} live\n")).await;
    })
    .await;
    let letter = pair.mesh.path("letter");
    pair.crosses("SMTP", 25, async |address| {
        let text = format!("Subject: to {address}\r\n\r\n{MARKER}\r\n");
        std::fs::write(&letter, text).unwrap();
        let (url, file) = (format!("smtp://{}", at(address, 25)), letter.display().to_string());
        let mail = ["--mail-from", "a@a.example", "--mail-rcpt", "b@b.example", "--upload-file", &file, &url];
        curl(client, &mail).unwrap();
        eventually("the letter has arrived", || async {
            let log = smtp.log();
            let there = log.contains(&format!("to {address}")) && log.contains(MARKER);
            if there { Ok(()) } else { Err(log) }
        })
        .await;
    })
    .await;
    pair.nothing_in_plain_text(&capture, &[25, 1883, 4222], &[MARKER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_grpc_websocket_and_tls_of_their_own_cross_two_sidecars_by_redirect() {
    web_programs("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_postgresql_and_redis_cross_two_sidecars_by_redirect() {
    databases("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_mosquitto_and_smtp_cross_two_sidecars_by_redirect() {
    brokers("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_grpc_websocket_and_tls_of_their_own_cross_two_sidecars_by_tproxy() {
    web_programs("tproxy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_postgresql_and_redis_cross_two_sidecars_by_tproxy() {
    databases("tproxy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_mosquitto_and_smtp_cross_two_sidecars_by_tproxy() {
    brokers("tproxy").await;
}
