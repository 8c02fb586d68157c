//! A container that runs: its process, its hooks, its probes, and its end.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::TICK;
use super::action::{Action, Entry, Image, Process, Whose};
use super::container::Surroundings;
use super::mounts;
use super::probe::Checked;

/// At the end a container has at least so long between SIGTERM and SIGKILL, whatever its hook has used up.
const LEAST: Duration = Duration::from_secs(2);

/// A container that was started.
pub(super) struct Running {
    name: String,
    process: Process,
    /// To be found in `/proc` once what makes its file system is over.
    program: PathBuf,
    entry: Entry,
    post_start: Option<Action>,
    pre_stop: Option<Action>,
    startup: Option<Checked>,
    liveness: Option<Checked>,
    readiness: Option<Checked>,
    has_started: bool,
    pub(super) is_ready: bool,
    ended: Option<ExitStatus>,
}

/// What is to be done about a container.
pub(super) enum Health {
    Fine,
    /// It is to be ended, because.
    Failed(&'static str),
}

/// Sidecars end after the containers, and one after the other.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) ended: Arc<watch::Sender<usize>>,
    /// How many have to have ended before.
    pub(super) after: usize,
}

impl Running {
    pub(super) fn start(container: &Container, image: Image<'_>, around: &Surroundings) -> Self {
        let words = [&container.command, &container.args].into_iter().flatten().flatten().cloned();
        let (program, words) = image(&words.collect::<Vec<String>>());
        let environment = around.environment(container);
        let words: Vec<String> =
            words.iter().map(|word| super::container::expanded(word, &environment)).collect();
        let scratch = around.directory.join(format!("{}.root", container.name));
        std::fs::create_dir_all(&scratch).expect("a directory of our own");
        let sealed =
            container.security_context.as_ref().and_then(|context| context.read_only_root_filesystem);
        let mounts = around.mounts(container);
        let before = mounts::words(
            &around.pod.metadata.name.clone().unwrap_or_default(),
            &scratch,
            sealed.unwrap_or(false),
            around.in_node,
            &mounts,
        );
        let user = around.user(container).filter(|user| *user != 0).map(|user| user.to_string());
        let as_whom = move || -> Vec<String> {
            let words = user.as_deref().map(|user| ["--reuid", user, "--regid", user, "--clear-groups"]);
            words.into_iter().flatten().map(str::to_owned).collect()
        };
        let log = around.directory.join(format!("{}.log", container.name));
        let (host, kept) = (around.host.clone(), ["PATH", "OUTRIGGER_CI_RUN"]);
        let command = move |before: &[String], program: &PathBuf, words: &[String]| {
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            let as_whom = as_whom();
            let as_whom: Vec<&str> = as_whom.iter().map(String::as_str).collect();
            let mut command = host.command_with(&before, &as_whom, program);
            let kept = kept.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
            command.args(words).env_clear().envs(kept).envs(&environment);
            let out = File::options().create(true).append(true).open(&log).expect("a file of our own");
            let err = out.try_clone().expect("a file of our own");
            command.stdin(Stdio::null()).stdout(out).stderr(err);
            command
        };
        let program = around.opened(&program);
        let mut first = command(&before, &program, &words);
        let child = first.spawn().unwrap_or_else(|error| panic!("{first:?} does not start: {error}"));
        let pid = child.id().to_string();
        let entry = Entry(Arc::new(move |program: &PathBuf, words: &[String]| {
            let inside = ["nsenter", "--target", &pid, "--mount", "--uts"].map(str::to_owned);
            command(&inside, program, words)
        }));
        Self::of(container, image, around, Process(child), program, entry)
    }

    fn of(
        container: &Container,
        image: Image<'_>,
        around: &Surroundings,
        process: Process,
        program: PathBuf,
        entry: Entry,
    ) -> Self {
        let found = |words: &[String]| match words.first().and_then(|first| on_the_machine(first)) {
            Some(program) => (program, words[1..].to_vec()),
            // It is the image's own.
            None => {
                let (program, words) = image(words.get(1..).unwrap_or_default());
                (around.opened(&program), words)
            }
        };
        let whose = Whose { container, address: around.host.pod_addresses()[0], found: &found };
        let hooks = container.lifecycle.as_ref();
        let hook = |hook: Option<&LifecycleHandler>| hook.map(|hook| Action::of_hook(hook, &whose));
        Self {
            name: container.name.clone(),
            post_start: hook(hooks.and_then(|hooks| hooks.post_start.as_ref())),
            pre_stop: hook(hooks.and_then(|hooks| hooks.pre_stop.as_ref())),
            startup: container.startup_probe.as_ref().map(|probe| Checked::awaited(probe, &whose, &entry)),
            liveness: container.liveness_probe.as_ref().map(|probe| Checked::trusting(probe, &whose, &entry)),
            readiness: container
                .readiness_probe
                .as_ref()
                .map(|probe| Checked::awaited(probe, &whose, &entry)),
            process,
            program,
            entry,
            has_started: false,
            is_ready: false,
            ended: None,
        }
    }

    /// How it has ended, if it has.
    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.process.0.try_wait().expect("our own child");
        }
        self.ended
    }

    /// What is done as soon as it runs: nothing else of the Pod is started before.
    ///
    /// # Errors
    /// It did not work; the container has to end.
    pub(super) async fn after_start(&mut self, around: &Surroundings) -> Result<(), String> {
        let Some(action) = self.post_start.clone() else { return Ok(()) };
        // A runtime says that a container runs when its file system is there, and its program in it.
        let link = format!("/proc/{}/exe", self.process.0.id());
        while !std::fs::read_link(&link).is_ok_and(|exe| exe.file_name() == self.program.file_name()) {
            if self.exited().is_some() {
                return Ok(());
            }
            tokio::time::sleep(TICK).await;
        }
        around.note(&format!("{}: postStart begins", self.name));
        let entry = self.entry.clone();
        tokio::select! {
            done = action.done(&entry) => {
                around.note(&format!("{}: postStart {}", self.name, if done.is_ok() { "is done" } else { "has failed" }));
                done
            }
            () = async { while self.exited().is_none() { tokio::time::sleep(TICK).await } } => Ok(()),
        }
    }

    /// Asks what is to be asked.
    pub(super) async fn check(&mut self) -> Health {
        self.is_ready = false;
        if self.exited().is_some() {
            return Health::Fine;
        }
        if !self.has_started {
            self.has_started = match &mut self.startup {
                Some(startup) => startup.passes().await,
                None => true,
            };
            if self.startup.as_ref().is_some_and(Checked::has_failed) {
                return Health::Failed("startup");
            }
        }
        if !self.has_started {
            return Health::Fine;
        }
        if let Some(liveness) = &mut self.liveness
            && !liveness.passes().await
        {
            return Health::Failed("liveness");
        }
        self.is_ready = match &mut self.readiness {
            Some(readiness) => readiness.passes().await,
            None => true,
        };
        Health::Fine
    }

    /// Whether its startup probe has succeeded.
    pub(super) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Its hook, then SIGTERM, when its turn has come, then SIGKILL.
    pub(super) async fn end(&mut self, grace: Duration, turn: Option<Turn>, around: &Surroundings) {
        let deadline = Instant::now() + grace;
        if self.exited().is_none() {
            if let Some(action) = self.pre_stop.clone().filter(|_| !grace.is_zero()) {
                around.note(&format!("{}: preStop begins", self.name));
                let done = timeout(grace, action.done(&self.entry)).await;
                let done = done.is_ok_and(|done| done.is_ok());
                around.note(&format!(
                    "{}: preStop {}",
                    self.name,
                    if done { "is done" } else { "has failed" }
                ));
            }
            if let Some(turn) = &turn {
                let mut ended = turn.ended.subscribe();
                let _ = timeout_at(deadline, ended.wait_for(|ended| *ended >= turn.after)).await;
            }
            if self.exited().is_none() {
                let least = if grace.is_zero() { Duration::ZERO } else { LEAST };
                self.terminate(deadline.max(Instant::now() + least), around).await;
            }
        }
        if let Some(turn) = turn {
            turn.ended.send_modify(|ended| *ended += 1);
        }
    }

    async fn terminate(&mut self, deadline: Instant, around: &Surroundings) {
        around.note(&format!("{}: SIGTERM", self.name));
        if let Some(pid) = Pid::from_raw(self.process.0.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        while self.exited().is_none() {
            if Instant::now() >= deadline {
                around.note(&format!("{}: SIGKILL", self.name));
                let _ = self.process.0.kill();
                self.ended = self.process.0.wait().ok();
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        around.note(&format!("{}: has ended", self.name));
    }
}

/// How a container has ended, as its status has it.
pub(super) fn terminated(status: ExitStatus) -> Value {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let reason = if status.success() { "Completed" } else { "Error" };
    let mut said = json!({"exitCode": code, "reason": reason});
    if let Some(signal) = status.signal() {
        said["signal"] = signal.into();
    }
    json!({"terminated": said})
}

/// Containers have the machine's own programs, too.
fn on_the_machine(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // A name with a slash stands for itself.
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
