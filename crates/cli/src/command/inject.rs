//! `inject` and `uninject`: what the webhook does, with files and without a cluster.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use outrigger_control::Settings;
use outrigger_control::inject::workload::{Kind, called, kind};
use outrigger_control::inject::{
    InjectSettings, Injection, Mesh, Namespace, Release, Subject, inject, taken_back, uninject, yaml,
};
use outrigger_identity::TrustBundle;
use serde_json::Value;

use super::Server;
use super::rules::read;
use crate::print::lines;

/// Put sidecars into what makes Pods, in YAML.
#[derive(Debug, clap::Args)]
pub(crate) struct Inject {
    #[command(flatten)]
    input: Input,
    /// What is applied by now, as `kubectl get -o yaml` prints it: hooks keep their secret paths, so that what has not changed rolls nothing
    /// out; - is standard input
    #[arg(long, value_name = "FILE")]
    like: Option<PathBuf>,
    /// The injector's settings: a file of them alone, or the control plane's with a section `injector`
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The sidecar's image
    #[arg(long)]
    image: Option<String>,
    /// The control plane as sidecars reach it, `host:port`
    #[arg(long, value_name = "ADDRESS")]
    control_plane: Option<String>,
    /// The revision that sidecars are of
    #[arg(long)]
    revision: Option<String>,
    /// The oldest Kubernetes that there is in the cluster, API server or node, such as `1.28`: before 1.29 sidecars are plain containers
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<Release>,
    /// The mesh's trust domain [default: the control plane's, else cluster.local]
    #[arg(long)]
    trust_domain: Option<String>,
    /// Root certificates in PEM [default: the control plane's, asked at its socket]
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// Take sidecars out again that `inject` has put in.
#[derive(Debug, clap::Args)]
pub(crate) struct Uninject {
    #[command(flatten)]
    input: Input,
}

#[derive(Debug, clap::Args)]
struct Input {
    /// Files of YAML or JSON; - is standard input
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Show what would change instead of the result
    #[arg(long)]
    diff: bool,
}

impl Inject {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let (settings, mesh) = self.told().await?;
        let kubernetes = self.kubernetes_version;
        let like = self.applied()?;
        self.input.each(&|pod, place| {
            let namespace = Namespace::enabled(place.namespace, settings.revision.as_deref());
            let workload = place.workload;
            let subject =
                Subject { pod, namespace: &namespace, workload, kubernetes, by_hand: true, earlier: None };
            injected_like(like.as_ref(), place, (&settings, &mesh), subject)
        })
    }

    /// What is applied by now, if that is said.
    fn applied(&self) -> anyhow::Result<Option<Applied>> {
        let Some(path) = &self.like else { return Ok(None) };
        let standard = Path::new("-");
        if path == standard && self.input.files.iter().any(|file| file == standard) {
            bail!("standard input is read once: of --file and --like one has to be a file");
        }
        self.input.applied(&path.display().to_string(), &read(path)?).map(Some)
    }

    async fn told(&self) -> anyhow::Result<(InjectSettings, Mesh)> {
        let (mut settings, mut trust_domain, domain) = match &self.settings {
            Some(path) => read_settings(path)?,
            None => (InjectSettings::default(), None, Settings::default().domain),
        };
        settings.image = self.image.clone().unwrap_or(settings.image);
        settings.control_plane = self.control_plane.clone().unwrap_or(settings.control_plane);
        settings.revision = self.revision.clone().or(settings.revision);
        settings.validate().map_err(|error| anyhow!("{error}; name it by a flag or in --settings"))?;
        trust_domain = self.trust_domain.clone().or(trust_domain);
        let (trust_domain, roots) = match &self.roots {
            Some(path) => (trust_domain.unwrap_or_else(|| Settings::default().trust_domain), read(path)?),
            None => {
                let client = self
                    .server
                    .client()
                    .context("--roots names no file, and no control plane can be asked")?;
                let bundle = client.trust_bundle().await?;
                (trust_domain.unwrap_or(bundle.trust_domain), bundle.roots)
            }
        };
        TrustBundle::from_pem(&trust_domain, &roots).context("the roots")?;
        Ok((settings, Mesh { trust_domain, domain, roots }))
    }
}

impl Uninject {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        self.input.each(&removed)
    }
}

fn injected(settings: &InjectSettings, mesh: &Mesh, subject: Subject<'_>) -> anyhow::Result<Done> {
    Ok(match inject(subject, settings, mesh)? {
        Injection::Injected { pod, warnings } => Done { pod: Some(*pod), said: warnings },
        Injection::LeftAlone(why) => Done { pod: None, said: vec![format!("left alone: {why}")] },
    })
}

/// The same as what is applied by now, where that is said.
fn injected_like(
    applied: Option<&Applied>,
    place: Place<'_>,
    (settings, mesh): (&InjectSettings, &Mesh),
    subject: Subject<'_>,
) -> anyhow::Result<Done> {
    let earlier = applied.and_then(|all| all.get(&place.key()));
    let mut done = injected(settings, mesh, Subject { earlier, ..subject })?;
    let is_new = !has_hooks(subject.pod) && done.pod.as_ref().is_some_and(has_hooks);
    if applied.is_some() && earlier.is_none() && is_new {
        done.said.push(format!(
            "--like has nothing of it in namespace {} (-n says which): its hooks get new paths",
            place.namespace
        ));
    }
    Ok(done)
}

/// Whether it has a hook with a secret path.
fn has_hooks(pod: &Value) -> bool {
    let text = pod.to_string();
    ["/prestopz/", "/poststartz/"].iter().any(|part| text.contains(part))
}

fn removed(pod: &Value, _: Place<'_>) -> anyhow::Result<Done> {
    let undone = uninject(pod)?;
    let said = match &undone {
        None => vec!["left alone: nothing was injected".to_owned()],
        Some(_) => taken_back(pod),
    };
    Ok(Done { pod: undone, said })
}

/// Of a file of the injector's settings, or of the control plane's: those, its trust domain and its DNS domain.
fn read_settings(path: &Path) -> anyhow::Result<(InjectSettings, Option<String>, String)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole: Value = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    if whole.get("injector").is_some() {
        let all = Settings::read(path)?;
        let injector = all.injector.unwrap_or_default();
        return Ok((injector, Some(all.trust_domain), all.domain));
    }
    let settings = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    Ok((settings, None, Settings::default().domain))
}

/// What came of a Pod or a template; without one it stays as it is.
struct Done {
    pod: Option<Value>,
    said: Vec<String>,
}

/// Whose Pod or template it is.
#[derive(Clone, Copy)]
struct Place<'p> {
    /// As in `Deployment web`.
    called: &'p str,
    namespace: &'p str,
    /// The name of what makes Pods.
    workload: Option<&'p str>,
}

impl Place<'_> {
    fn key(&self) -> (String, String) {
        (self.namespace.to_owned(), self.called.to_owned())
    }
}

/// Pods and templates, by namespace and by what their objects are called.
type Applied = BTreeMap<(String, String), Value>;

type Change<'c> = &'c dyn Fn(&Value, Place<'_>) -> anyhow::Result<Done>;

impl Input {
    /// Prints all documents, those with Pods as the change makes them; what is said of them goes to standard error.
    fn each(&self, change: Change<'_>) -> anyhow::Result<ExitCode> {
        let (mut out, mut said) = (String::new(), Vec::new());
        for file in &self.files {
            self.file(&file.display().to_string(), &read(file)?, change, &mut out, &mut said)?;
        }
        said.iter().for_each(|words| eprintln!("{words}"));
        print!("{out}");
        Ok(ExitCode::SUCCESS)
    }

    /// The Pods and templates of a text.
    fn applied(&self, name: &str, text: &str) -> anyhow::Result<Applied> {
        let all = RefCell::new(Applied::new());
        let note: Change<'_> = &|pod, place| {
            all.borrow_mut().insert(place.key(), pod.clone());
            Ok(Done { pod: None, said: Vec::new() })
        };
        self.file(name, text, note, &mut String::new(), &mut Vec::new())?;
        Ok(all.take())
    }

    fn file(
        &self,
        name: &str,
        text: &str,
        change: Change<'_>,
        out: &mut String,
        said: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        for (line, document) in documents(text) {
            let place = || format!("{name}:{line}");
            let before: Value = serde_saphyr::from_str(document).with_context(place)?;
            let mut after = before.clone();
            let words = self.document(&mut after, change).with_context(place)?;
            said.extend(words.iter().map(|words| format!("{name}:{line}: {words}")));
            let same = after == before;
            if self.diff {
                if !same {
                    out.push_str(&format!("--- {name}:{line} {}\n", called(&before)));
                    out.push_str(&lines::diff(&yaml(&before)?, &yaml(&after)?));
                }
                continue;
            }
            if !out.is_empty() {
                out.push_str("---\n");
            }
            // As it was written, comments included.
            out.push_str(&if same { document.to_owned() } else { yaml(&after)? });
            if !out.ends_with('\n') {
                out.push('\n');
            }
        }
        Ok(())
    }

    fn document(&self, document: &mut Value, change: Change<'_>) -> anyhow::Result<Vec<String>> {
        let place = match kind(document) {
            Kind::Other => return Ok(Vec::new()),
            Kind::List => {
                let mut said = Vec::new();
                for item in document["items"].as_array_mut().into_iter().flatten() {
                    said.extend(self.document(item, change)?);
                }
                return Ok(said);
            }
            Kind::Pod => "",
            Kind::Template(place) => place,
        };
        let shown = called(document);
        let namespace = document["metadata"]["namespace"].as_str().unwrap_or(&self.namespace).to_owned();
        let workload = document["metadata"]["name"].as_str().map(str::to_owned).filter(|_| !place.is_empty());
        let Some(pod) = document.pointer_mut(place) else { bail!("{shown} has no {place}") };
        let place = Place { called: &shown, namespace: &namespace, workload: workload.as_deref() };
        let done = change(pod, place).with_context(|| shown.clone())?;
        if let Some(changed) = done.pod {
            *pod = changed;
        }
        Ok(done.said.into_iter().map(|words| format!("{shown}: {words}")).collect())
    }
}

/// The documents of a stream with the lines that they begin in; what has nothing but comments is none. A line that begins
/// with `---` is a boundary wherever it stands (YAML 1.2, 9.1.2).
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut start, mut first, mut at) = (0, 1, 0);
    let mut push = |line: usize, document| {
        let speaks = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let lines = str::lines(document);
        if lines.clone().any(speaks) {
            found.push((line, document));
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare == "..." || bare.starts_with("--- ") {
            push(first, &text[start..at]);
            // What stands behind the dashes belongs to the document.
            start = at + bare.find(' ').unwrap_or(line.len());
            first = number + if start == at + line.len() { 2 } else { 1 };
        }
        at += line.len();
    }
    push(first, &text[start..]);
    found
}

#[cfg(test)]
mod tests;
