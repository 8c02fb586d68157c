//! The commands. The plugin stands behind those that make a Pod's network, and changes nothing of what they have said.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::ask::{self, PROTOCOL, Question, SOCKET, Wanted};
use crate::spec::{Config, Environment, Error, NEWEST, VERSIONS, code};

/// Of a configuration.
pub const MOST: u64 = 4 * 1024 * 1024;

/// Does what a runtime asks for: what it is answered, and whether that is good.
pub fn run(environment: &Environment, input: io::Result<&[u8]>) -> (String, bool) {
    let read = input
        .map_err(|error| (None, Error::new(code::INPUT, format!("standard input cannot be read: {error}"))))
        .and_then(Config::read);
    let (config, said) = match read {
        Ok(config) => (Ok(config.clone()), config.cni_version),
        Err((said, error)) => (Err(error), said),
    };
    match config.and_then(|config| command(environment, &config)) {
        Ok(None) => (String::new(), true),
        Ok(Some(result)) => (format!("{result}\n"), true),
        Err(error) => {
            let version =
                VERSIONS.into_iter().find(|known| Some(*known) == said.as_deref()).unwrap_or(NEWEST);
            (format!("{}\n", error.json(version)), false)
        }
    }
}

fn command(environment: &Environment, config: &Config) -> Result<Option<Value>, Error> {
    let since = |first: &str| {
        let version = config.version()?;
        if VERSIONS.iter().position(|known| *known == version)
            < VERSIONS.iter().position(|known| *known == first)
        {
            let msg = format!("{} is not known to cniVersion {version}", environment.command);
            return Err(Error::new(code::VERSION, msg).hint(format!("it came with {first}")));
        }
        Ok(())
    };
    match environment.command.as_str() {
        "ADD" => {
            since(VERSIONS[0])?;
            environment.check(true)?;
            add(environment, config).map(Some)
        }
        "CHECK" => {
            since("0.4.0")?;
            environment.check(true)?;
            check(environment, config).map(|()| None)
        }
        // The rules go with the namespace that they are in, and a Pod that ends must not wait for anybody.
        "DEL" => {
            since(VERSIONS[0])?;
            environment.check(false).map(|()| None)
        }
        // For the same reason nothing is ever left over.
        "GC" => since("1.1.0").map(|()| None),
        "STATUS" => {
            since("1.1.0")?;
            let question = Question::new(Wanted::Status, environment, config);
            match ask::ask(socket(config), &question) {
                Ok(_) => Ok(None),
                Err(error) => Err(Error { code: code::NOT_AVAILABLE, ..error }),
            }
        }
        "VERSION" => {
            let version = config.cni_version.as_deref().unwrap_or(NEWEST);
            Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})))
        }
        other => Err(Error::new(code::ENVIRONMENT, format!("CNI_COMMAND: \"{other}\" is not known"))),
    }
}

fn add(environment: &Environment, config: &Config) -> Result<Value, Error> {
    let result = previous(config)?;
    if let Some(question) = about(Wanted::Add, environment, config) {
        exists(environment)?;
        ask::ask(socket(config), &question)?;
    }
    Ok(result)
}

fn check(environment: &Environment, config: &Config) -> Result<(), Error> {
    previous(config)?;
    if let Some(question) = about(Wanted::Check, environment, config) {
        exists(environment)?;
        ask::ask(socket(config), &question)?;
    }
    Ok(())
}

/// What the plugin before has made: with no network there is nothing to intercept.
fn previous(config: &Config) -> Result<Value, Error> {
    config.prev_result.clone().ok_or_else(|| {
        Error::new(
            code::CONFIGURATION,
            "prevResult: is missing; this plugin stands behind the one that makes the network",
        )
        .hint("put it at the end of `plugins` in a .conflist")
    })
}

fn exists(environment: &Environment) -> Result<(), Error> {
    match Path::new(&environment.netns).try_exists() {
        Ok(false) => Err(Error::new(
            code::UNKNOWN_CONTAINER,
            format!("CNI_NETNS: there is no network namespace {}", environment.netns),
        )),
        // What may not be looked at the agent may.
        _ => Ok(()),
    }
}

/// What there is to ask; `None`: of this container nothing.
fn about(wanted: Wanted, environment: &Environment, config: &Config) -> Option<Question> {
    let question = Question::new(wanted, environment, config);
    let is_pod = !question.pod.is_empty() && !question.namespace.is_empty();
    (is_pod && !config.exclude_namespaces.contains(&question.namespace)).then_some(question)
}

impl Question {
    fn new(wanted: Wanted, environment: &Environment, config: &Config) -> Self {
        let arg = |name: &str| environment.arg(name).map(str::to_owned);
        Self {
            protocol: PROTOCOL,
            wanted,
            namespace: arg("K8S_POD_NAMESPACE").unwrap_or_default(),
            pod: arg("K8S_POD_NAME").unwrap_or_default(),
            uid: arg("K8S_POD_UID"),
            netns: environment.netns.clone(),
            name_servers: config
                .runtime_config
                .as_ref()
                .map(|said| said.name_servers().to_vec())
                .unwrap_or_default(),
        }
    }
}

fn socket(config: &Config) -> &Path {
    Path::new(config.socket.as_deref().unwrap_or(SOCKET))
}

#[cfg(test)]
mod tests;
