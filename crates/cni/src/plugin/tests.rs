use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;

use super::*;

fn environment(command: &str) -> Environment {
    let all = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        // There is one of every process.
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1"),
    ];
    Environment::read(|name| {
        all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn config(version: &str, socket: &Path) -> Value {
    json!({
        "cniVersion": version, "name": "pods", "type": "outrigger-cni", "socket": socket, "excludeNamespaces": ["kube-system"],
        "prevResult": {"cniVersion": version, "ips": [{"address": "10.0.0.7/24"}], "of-another": {"kept": [1, 2.5, null]}},
        "runtimeConfig": {"dns": {"servers": ["10.96.0.10"]}},
    })
}

fn called(environment: &Environment, config: &Value) -> Result<Value, Value> {
    let (text, done) = run(environment, Ok(config.to_string().as_bytes()));
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    if done { Ok(value) } else { Err(value) }
}

/// Answers one question, and gives it back.
fn agent(directory: &Path, answer: &'static str) -> (PathBuf, JoinHandle<Value>) {
    let path = directory.join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    });
    (path, asked)
}

/// Nobody listens there.
const NOBODY: &str = "/nowhere/agent.sock";

#[test]
fn a_pod_is_asked_for_and_what_others_have_said_passes_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, asked) = agent(directory.path(), "\"intercepted\"\n");
    let config = config("1.0.0", &socket);
    assert_eq!(called(&environment("ADD"), &config), Ok(config["prevResult"].clone()));
    assert_eq!(
        asked.join().unwrap(),
        json!({"protocol": 1, "wanted": "add", "namespace": "shop", "pod": "web-1", "uid": "u-1", "netns": "/proc/self/ns/net",
               "name_servers": ["10.96.0.10"]})
    );
}

#[test]
fn who_is_no_pod_or_in_a_namespace_that_is_left_out_waits_for_nobody() {
    let config = config("1.0.0", Path::new(NOBODY));
    for args in ["", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns-1"] {
        let mut environment = environment("ADD");
        environment.args = args.to_owned();
        assert_eq!(called(&environment, &config), Ok(config["prevResult"].clone()), "{args}");
        environment.command = "CHECK".to_owned();
        assert_eq!(called(&environment, &config), Ok(Value::Null), "{args}");
    }
}

#[test]
fn what_the_agent_refuses_is_refused_with_its_code() {
    for (command, answer, code) in [
        ("ADD", r#"{"failed": {"code": 11, "msg": "no such Pod"}}"#, 11),
        ("CHECK", r#"{"failed": {"code": 101, "msg": "no rules"}}"#, 101),
        ("STATUS", r#"{"failed": {"code": 11, "msg": "no API server"}}"#, 50),
        ("ADD", "what?", 11),
        ("ADD", "", 11),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (socket, asked) = agent(directory.path(), answer);
        let error = called(&environment(command), &config("1.1.0", &socket)).unwrap_err();
        assert_eq!(
            (&error["code"], &error["cniVersion"]),
            (&json!(code), &json!("1.1.0")),
            "{command}: {error}"
        );
        asked.join().unwrap();
    }
}

#[test]
fn without_an_agent_no_pod_is_added_and_each_can_end() {
    let config = config("1.1.0", Path::new(NOBODY));
    let error = called(&environment("STATUS"), &config).unwrap_err();
    assert_eq!(error["code"], code::NOT_AVAILABLE);
    assert!(error["msg"].as_str().unwrap().contains(NOBODY), "{error}");
    for command in ["DEL", "GC"] {
        assert_eq!(called(&environment(command), &config), Ok(Value::Null));
    }
    let mut gone = environment("DEL");
    gone.netns = String::new();
    assert_eq!(called(&gone, &config), Ok(Value::Null), "its namespace may be gone before");
}

#[test]
fn versions_are_told_and_held_to() {
    let all =
        json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(
        called(&Environment { command: "VERSION".into(), ..<_>::default() }, &json!({"cniVersion": "1.0.0"})),
        Ok(all)
    );
    for (command, version, code) in [
        ("ADD", "0.2.0", code::VERSION),
        ("ADD", "2.0.0", code::VERSION),
        ("CHECK", "0.3.1", code::VERSION),
        ("GC", "1.0.0", code::VERSION),
        ("STATUS", "1.0.0", code::VERSION),
        ("PREPARE", "1.1.0", code::ENVIRONMENT),
    ] {
        let error = called(&environment(command), &config(version, Path::new(NOBODY))).unwrap_err();
        assert_eq!(error["code"], code, "{command} {version}: {error}");
    }
    let mut none = config("", Path::new(NOBODY));
    none.as_object_mut().unwrap().remove("cniVersion");
    let error = called(&environment("ADD"), &none).unwrap_err();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &json!(NEWEST)));
}

#[test]
fn what_cannot_be_worked_with_is_said_with_the_codes_of_the_specification() {
    let good = config("1.0.0", Path::new(NOBODY));
    let with = |change: fn(&mut Environment)| {
        let mut environment = environment("ADD");
        change(&mut environment);
        called(&environment, &good).unwrap_err()
    };
    let mut alone = good.clone();
    alone.as_object_mut().unwrap().remove("prevResult");
    for (error, code, name) in [
        (with(|all| all.netns = "/run/netns/nobody-has-made-this".into()), 3, "nobody-has-made-this"),
        (with(|all| all.netns = String::new()), 4, "CNI_NETNS"),
        (with(|all| all.container = "../escape".into()), 4, "CNI_CONTAINERID"),
        (with(|all| all.container = String::new()), 4, "CNI_CONTAINERID"),
        (with(|all| all.interface = "much-too-long-for-one".into()), 4, "CNI_IFNAME"),
        (with(|all| all.interface = "et/0".into()), 4, "CNI_IFNAME"),
        (called(&environment("ADD"), &alone).unwrap_err(), 7, "prevResult"),
        (called(&environment("CHECK"), &alone).unwrap_err(), 7, "prevResult"),
        (
            called(&environment("ADD"), &json!({"cniVersion": "1.0.0", "socket": 7})).unwrap_err(),
            7,
            "standard input",
        ),
    ] {
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(name), "{error}");
        assert_eq!(error["cniVersion"], "1.0.0", "{error}");
    }
    for (input, code) in [(Ok(&b"no json"[..]), 6), (Ok(&b""[..]), 6), (Err(io::Error::other("cut")), 5)] {
        let (text, done) = run(&environment("ADD"), input);
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(!done && error["code"] == code, "{error}");
    }
}

/// By Go's own names, and null where there is none: its structure has no others.
#[test]
fn name_servers_are_read_as_containerd_writes_them() {
    for (said, servers) in [
        (json!({"dns": {"Servers": ["10.0.0.1"], "Searches": null, "Options": null}}), &["10.0.0.1"][..]),
        (json!({"dns": {"servers": ["10.0.0.2"]}, "portMappings": null}), &["10.0.0.2"]),
        (json!({"dns": {"Servers": null}}), &[]),
        (json!({"dns": null}), &[]),
        (Value::Null, &[]),
    ] {
        let text =
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "outrigger-cni", "runtimeConfig": said});
        let config = Config::read(text.to_string().as_bytes()).unwrap();
        let found = config.runtime_config.unwrap_or_default();
        assert_eq!(found.name_servers(), servers, "{text}");
    }
}
