//! The network of Pods, as a container runtime has it made: the first configuration by name, each plugin of its list in turn, each with
//! what the one before has said.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::mounts::{self, Mount};
use crate::netns::Host;

/// The plugin that stands for whatever gives Pods of a cluster their network; here that is the [`Host`], which is made already.
pub const HOST: &str = "host-of-the-test";

/// Where plugins and their configuration are.
#[derive(Clone)]
pub struct Network {
    /// `/etc/cni/net.d` of a node.
    pub configurations: PathBuf,
    /// `/opt/cni/bin` of a node.
    pub plugins: PathBuf,
    /// Absent: all Pods have a network of their own, and none has files of the node.
    pub node: Option<Node>,
}

/// A node whose network and files Pods may have.
#[derive(Clone)]
pub struct Node {
    /// Where those Pods run.
    pub host: Host,
    /// What the node has in `/run`, but for network namespaces. All else of it is where it is said to be.
    pub run: PathBuf,
}

impl Node {
    /// Where a file of the node is.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        let path = Path::new(path);
        path.strip_prefix("/run").map_or_else(|_| path.to_owned(), |below| self.run.join(below))
    }

    /// A program that finds what the node has in `/run`.
    fn program(&self, scratch: &Path, program: &Path) -> Result<Command, String> {
        let wrong = |error: std::io::Error| format!("{}: {error}", self.run.display());
        let mut mounts = Vec::new();
        for entry in std::fs::read_dir(&self.run).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let to = format!("/run/{}", entry.file_name().to_string_lossy());
            mounts.push(Mount { from: entry.path(), to, read_only: false });
        }
        let mut command = Command::new("unshare");
        command.arg("--mount").args(mounts::words("node", scratch, false, false, &mounts)).arg(program);
        Ok(command)
    }
}

/// For whom a plugin is called.
pub struct Attachment<'a> {
    /// Where.
    pub host: &'a Host,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Attachment<'_> {
    /// As a runtime says whose container it is.
    pub fn of<'a>(host: &'a Host, namespace: &str, pod: &str, uid: &str) -> Attachment<'a> {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID={uid}"
        );
        Attachment { host, args }
    }
}

impl Network {
    /// The list that counts.
    ///
    /// # Errors
    /// There is none.
    pub fn list(&self) -> Result<Value, String> {
        let entries = std::fs::read_dir(&self.configurations).map_err(|error| error.to_string())?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "conf" || end == "conflist"));
        paths.sort();
        let first = paths.first().ok_or("there is no network configuration")?;
        let text = std::fs::read(first).map_err(|error| error.to_string())?;
        let one: Value =
            serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", first.display()))?;
        Ok(match one["plugins"].is_array() {
            true => one,
            false => json!({"cniVersion": one["cniVersion"], "name": one["name"], "plugins": [one]}),
        })
    }

    /// Calls all plugins: ADD and CHECK from the first to the last, DEL back.
    ///
    /// # Errors
    /// What the first that failed has said.
    pub fn call(&self, command: &str, to: &Attachment<'_>) -> Result<Value, Value> {
        let list = self.list()?;
        let mut plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        if command == "DEL" {
            plugins.reverse();
        }
        let address = to.host.v4();
        let made = json!({
            "cniVersion": list["cniVersion"], "interfaces": [{"name": "eth0", "sandbox": to.host.netns()}],
            "ips": [{"address": format!("{address}/24"), "interface": 0}], "dns": {},
        });
        let mut result = made.clone();
        for mut plugin in plugins {
            if plugin["type"] == HOST {
                continue;
            }
            plugin["cniVersion"] = list["cniVersion"].clone();
            plugin["name"] = list["name"].clone();
            plugin["prevResult"] = result.clone();
            if plugin["capabilities"]["dns"] == true {
                plugin["runtimeConfig"] = json!({"dns": {"servers": ["10.96.0.10"]}});
            }
            let kind = plugin["type"].as_str().unwrap_or_default().to_owned();
            let said = self.run(&kind, command, to, &plugin)?;
            if command == "ADD" {
                result = said;
            }
        }
        Ok(result)
    }

    /// One plugin.
    ///
    /// # Errors
    /// What it has said.
    pub fn run(
        &self,
        kind: &str,
        command: &str,
        to: &Attachment<'_>,
        config: &Value,
    ) -> Result<Value, Value> {
        let program = self.plugins.join(kind);
        // Where the node's root is put together, for as long as the program runs.
        let mut scratch = None;
        let mut process = match &self.node {
            Some(node) => {
                let scratch = scratch.insert(tempfile::tempdir().map_err(|error| error.to_string())?);
                let inside = scratch.path().join("root");
                std::fs::create_dir(&inside).map_err(|error| error.to_string())?;
                node.program(&inside, &program)?
            }
            None => Command::new(program),
        };
        process
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c0ffee")
            .env("CNI_IFNAME", "eth0");
        process.env("CNI_NETNS", to.host.netns()).env("CNI_ARGS", &to.args).env("CNI_PATH", &self.plugins);
        let piped = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().map_err(|error| format!("{kind} does not start: {error}"))?;
        let mut stdin = child.stdin.take().ok_or("it has no standard input")?;
        stdin.write_all(config.to_string().as_bytes()).map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        if output.status.success() { Ok(said) } else { Err(said) }
    }
}
