//! What a runtime says to a plugin and is answered, as the CNI specification has it (1.1.0; containernetworking/cni, SPEC.md).

use serde::Deserialize;
use serde_json::{Value, json};

/// Versions of the specification that are spoken: those that know chains.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// Error codes: those of the specification, and from 100 on our own.
pub mod code {
    /// The version of the configuration is not spoken, or does not know the command.
    pub const VERSION: u32 = 1;
    /// The network namespace is not there.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Standard input cannot be read.
    pub const INPUT: u32 = 5;
    /// It is no JSON.
    pub const DECODE: u32 = 6;
    /// The configuration cannot be worked with.
    pub const CONFIGURATION: u32 = 7;
    /// It may work later.
    pub const TRY_AGAIN: u32 = 11;
    /// Pods cannot be added now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The rules could not be made.
    pub const RULES: u32 = 100;
    /// The rules are not there.
    pub const NO_RULES: u32 = 101;
}

/// An answer that is no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind.
    pub code: u32,
    /// In a line.
    pub msg: String,
    /// What to do about it.
    pub details: String,
}

impl Error {
    /// One with nothing more to say.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As a runtime reads it.
    pub fn json(&self, version: &str) -> Value {
        let mut error = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            error["details"] = self.details.as_str().into();
        }
        error
    }
}

/// The variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// What to do.
    pub command: String,
    /// The container's id in the runtime.
    pub container: String,
    /// Path of the network namespace.
    pub netns: String,
    /// Name of the interface in it.
    pub interface: String,
    /// `A=B;C=D`.
    pub args: String,
}

impl Environment {
    /// Those of a process.
    pub fn read(of: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| of(name).unwrap_or_default();
        Self {
            command: of("CNI_COMMAND"),
            container: of("CNI_CONTAINERID"),
            netns: of("CNI_NETNS"),
            interface: of("CNI_IFNAME"),
            args: of("CNI_ARGS"),
        }
    }

    /// That what the command needs is there, and can be what it stands for.
    ///
    /// # Errors
    /// Names the variable.
    pub fn check(&self, netns: bool) -> Result<(), Error> {
        let wrong = |name: &str, what: &str| Err(Error::new(code::ENVIRONMENT, format!("{name}: {what}")));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !self.container.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !self.container.chars().all(plain)
        {
            return wrong(
                "CNI_CONTAINERID",
                "the id of a container is wanted: letters, digits, and _ . - between them",
            );
        }
        let odd = |c: char| c.is_whitespace() || matches!(c, '/' | ':');
        if !(1..=15).contains(&self.interface.len())
            || matches!(self.interface.as_str(), "." | "..")
            || self.interface.contains(odd)
        {
            return wrong("CNI_IFNAME", "the name of an interface is wanted: 1 to 15 letters");
        }
        if netns && !self.netns.starts_with('/') {
            return wrong("CNI_NETNS", "the path of a network namespace is wanted");
        }
        Ok(())
    }

    /// Of [`Environment::args`]; what is not `NAME=VALUE` is nothing.
    pub fn arg(&self, name: &str) -> Option<&str> {
        let pairs = self.args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value).next()
    }
}

/// The plugin's configuration, as a runtime hands it over: its entry in the list, and what the runtime adds. What else is in it is others'.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Of the specification.
    pub cni_version: Option<String>,
    /// The network's.
    pub name: String,
    /// What the plugin before has made. Of [`Environment::command`] ADD and CHECK.
    pub prev_result: Option<Value>,
    /// What the runtime adds by capability.
    pub runtime_config: Option<RuntimeConfig>,
    /// Where the agent listens.
    pub socket: Option<String>,
    /// Namespaces whose Pods are never looked at.
    pub exclude_namespaces: Vec<String>,
}

/// Capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// `dns`: the Pod's, as its kubelet has made it.
    pub dns: Option<Dns>,
}

impl RuntimeConfig {
    /// The Pod's name servers.
    pub fn name_servers(&self) -> &[String] {
        self.dns.as_ref().and_then(|dns| dns.servers.as_deref()).unwrap_or_default()
    }
}

/// A Pod's DNS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers. containerd writes Go's names, and null for none.
    #[serde(alias = "Servers")]
    pub servers: Option<Vec<String>>,
}

impl Config {
    /// Reads it. The version that was said comes with an error, too, if there was one.
    ///
    /// # Errors
    /// It is none, or of a version that is not spoken.
    pub fn read(text: &[u8]) -> Result<Self, (Option<String>, Error)> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            (
                None,
                Error::new(code::DECODE, format!("the configuration on standard input is no JSON: {error}")),
            )
        })?;
        let said = value["cniVersion"].as_str().map(str::to_owned);
        Self::deserialize(value).map_err(|error| {
            (said, Error::new(code::CONFIGURATION, format!("the configuration on standard input: {error}")))
        })
    }

    /// The version that is spoken.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn version(&self) -> Result<&'static str, Error> {
        // As the specification says of who names none.
        let said = self.cni_version.as_deref().filter(|said| !said.is_empty()).unwrap_or("0.1.0");
        VERSIONS.into_iter().find(|known| *known == said).ok_or_else(|| {
            Error::new(code::VERSION, format!("cniVersion: \"{said}\" is not spoken"))
                .hint(format!("spoken are {}", VERSIONS.join(", ")))
        })
    }
}
