//! Answers what the plugin asks: looks a Pod up and makes its rules, or says that they are there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use outrigger_cni::ask::{Answer, MOST, PROTOCOL, Question, Wanted};
use outrigger_cni::spec::code;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Agent;
use super::netns::{self, Ended, Netns, Trouble};
use super::pod::{Verdict, verdict};
use super::repair::remember;
use crate::inject::MIRROR;

/// Questions at a time: a node starts a crowd of Pods at once. The others wait for their turn.
const MANY: usize = 32;
/// For a question, and for an answer to be taken.
const TALK: Duration = Duration::from_secs(5);
/// For the API server.
const PATIENCE: Duration = Duration::from_secs(10);
/// For an answer, with all that it takes: the plugin waits for little longer.
const ANSWER: Duration = Duration::from_secs(35);

/// A socket that only root reaches. What a dead agent has left behind is replaced.
pub(super) async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    let directory = path.parent().with_context(|| format!("the socket {shown} has no directory"))?;
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("the directory of the socket {shown} cannot be made"))?;
    if UnixStream::connect(path).await.is_ok() {
        bail!("another agent answers on the socket {shown}");
    }
    if path.symlink_metadata().is_ok() {
        std::fs::remove_file(path).with_context(|| format!("the old socket {shown} cannot be removed"))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("the socket {shown} cannot be made"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("the socket {shown} cannot be closed to others"))?;
    Ok(listener)
}

/// Serves; ends with the process.
pub(super) async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(MANY));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Err(error) = talk(&agent, stream).await {
                        tracing::warn!(%error, "the plugin could not be answered");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the plugin cannot be heard");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn talk(agent: &Agent, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(TALK, BufReader::new(read.take(MOST)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Question>(&line) {
        Ok(question) if question.protocol == PROTOCOL => agent.answer(question).await,
        Ok(question) => again(format!(
            "the plugin speaks protocol {} and the agent {PROTOCOL}: one of them is being replaced",
            question.protocol
        )),
        Err(error) => again(format!("the question cannot be read: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(TALK, write.write_all(&line)).await?
}

fn failed(code: u32, msg: impl Into<String>) -> Answer {
    Answer::Failed { code, msg: msg.into() }
}

fn again(msg: impl Into<String>) -> Answer {
    failed(code::TRY_AGAIN, msg)
}

impl Agent {
    async fn answer(&self, question: Question) -> Answer {
        let found = async {
            match question.wanted {
                Wanted::Status => self.status().await,
                Wanted::Add | Wanted::Check => match self.look_up(&question).await {
                    Ok(Verdict::LeftAlone(why)) => Answer::LeftAlone(why.to_owned()),
                    Ok(Verdict::Intercept(options)) => self.intercepted(&question, options).await,
                    Err(answer) => answer,
                },
            }
        };
        let answer = timeout(ANSWER, found).await;
        let answer = answer.unwrap_or_else(|_| {
            again(format!("there was no answer within {ANSWER:?}: the node has too much to do"))
        });
        let Question { wanted, namespace, pod, .. } = &question;
        match &answer {
            Answer::Failed { code, msg } => tracing::warn!(?wanted, namespace, pod, code, "{msg}"),
            Answer::Intercepted => tracing::info!(?wanted, namespace, pod, "intercepted"),
            Answer::LeftAlone(why) => tracing::debug!(?wanted, namespace, pod, why, "left alone"),
            Answer::Ready => {}
        }
        self.counts.add(question.wanted, &answer);
        answer
    }

    async fn status(&self) -> Answer {
        match timeout(PATIENCE, self.client.apiserver_version()).await {
            Ok(Ok(_)) => Answer::Ready,
            Ok(Err(error)) => again(format!("the API server cannot be asked: {error}")),
            Err(_) => again(format!("the API server did not answer within {PATIENCE:?}")),
        }
    }

    /// Without its Pod nobody knows whether there are to be rules, so nothing goes on without.
    async fn look_up(&self, question: &Question) -> Result<Verdict, Answer> {
        let Question { namespace, pod: name, .. } = question;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = match timeout(PATIENCE, api.get(name)).await {
            Ok(Ok(pod)) => pod,
            Ok(Err(kube::Error::Api(status))) => {
                return Err(again(format!(
                    "Pod {namespace}/{name}: the API server answers {} {}",
                    status.code, status.message
                )));
            }
            Ok(Err(error)) => {
                return Err(again(format!(
                    "Pod {namespace}/{name}: the API server cannot be asked: {error}"
                )));
            }
            Err(_) => {
                return Err(again(format!(
                    "Pod {namespace}/{name}: the API server did not answer within {PATIENCE:?}"
                )));
            }
        };
        // The API server has only an image of it, under another uid.
        if pod.annotations().contains_key(MIRROR) {
            return Ok(Verdict::LeftAlone(
                "its kubelet has it from a file, and no injector gives it a sidecar",
            ));
        }
        if question.uid.is_some() && question.uid != pod.uid() {
            return Err(again(format!(
                "Pod {namespace}/{name} is another one at the API server, with the uid {:?}",
                pod.uid()
            )));
        }
        verdict(&pod).map_err(|why| failed(code::RULES, format!("Pod {namespace}/{name}: {why}")))
    }

    async fn intercepted(&self, question: &Question, options: Vec<String>) -> Answer {
        let netns = Netns::At(question.netns.as_str().into());
        let done = match question.wanted {
            Wanted::Add => {
                let done = self.apply(netns, options, &question.name_servers).await;
                if done.is_ok() {
                    remember(&self.made, question.uid.clone());
                }
                done
            }
            _ => self.show(netns).await,
        };
        match done {
            Ok(true) => Answer::Intercepted,
            Ok(false) => {
                failed(code::NO_RULES, format!("{}: the rules of interception are not there", question.netns))
            }
            Err(Trouble::Gone(why)) => failed(code::UNKNOWN_CONTAINER, why),
            Err(Trouble::Other(why)) => failed(code::RULES, why),
        }
    }

    /// Makes the rules in a namespace, by the same program and with the same options as the container that this stands in for.
    pub(super) async fn apply(
        &self,
        netns: Netns,
        options: Vec<String>,
        name_servers: &[String],
    ) -> Result<bool, Trouble> {
        let mut words = ["intercept", "apply"].map(str::to_owned).to_vec();
        // Those of the Pod; else, as the program does by itself, those of the agent, which are the cluster's.
        let servers: Vec<&str> = name_servers
            .iter()
            .map(String::as_str)
            .filter(|one| one.parse::<std::net::IpAddr>().is_ok())
            .collect();
        if options.iter().any(|word| word == "--dns") && !servers.is_empty() {
            words.push(format!("--dns-servers={}", servers.join(",")));
        }
        words.extend(options);
        let ended = self.run(netns, words).await?;
        match ended.status.success() {
            true => Ok(true),
            false => {
                Err(Trouble::Other(format!("the rules were not made: {} ({})", ended.said, ended.status)))
            }
        }
    }

    async fn run(&self, netns: Netns, words: Vec<String>) -> Result<Ended, Trouble> {
        let permit = self.programs.clone().acquire_owned().await;
        let permit = permit.map_err(|error| Trouble::Other(error.to_string()))?;
        netns::run(netns, self.program.clone(), words, permit).await
    }

    pub(super) async fn show(&self, netns: Netns) -> Result<bool, Trouble> {
        let words = ["intercept", "show"].map(str::to_owned).to_vec();
        let ended = self.run(netns, words).await?;
        match ended.status.code() {
            Some(0) => Ok(true),
            // Its word for no rules; an error says more.
            Some(1) if ended.said.contains("no interception") => Ok(false),
            _ => Err(Trouble::Other(format!(
                "the rules cannot be looked at: {} ({})",
                ended.said, ended.status
            ))),
        }
    }
}
