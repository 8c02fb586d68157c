//! Which nodes are looked at, and what each answer leads to. Knows no connection: questions go out, answers come in, what nodes say
//! comes out.
//!
//! ```text
//! PATH ──children──▶ PATH/SERVICE ──children──▶ PATH/SERVICE/ID ──data──▶ an instance (persistent: its children, too)
//! DUBBO ─children──▶ DUBBO/INTERFACE ─children─▶ …/providers ──children──▶ each name is an instance
//! ```
//!
//! A watch holds for one event, so each event leads to the question that sets the next one; what changed between is in its answer. A question
//! that is refused sets none, and nothing happens when it is permitted: it is asked again.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use super::wire::{In, code, event, is_ephemeral, meaning};
use super::{ZooKeeperSettings, layout};
use crate::registry::parts::Said;

/// Nodes that are looked at.
const MOST_NODES: usize = 250_000;
/// Below a path of the settings.
const DEEPEST: usize = 4;
/// Nodes that may not be read, asked again at once.
const AGAIN: usize = 1000;

/// What is asked of a node. Each sets a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    Children(String),
    Data(String),
    /// Whether it is there, when it was not.
    Exists(String),
}

/// What nodes say now, or that they say nothing any more.
pub(super) type News = Vec<(String, Option<Said>)>;

/// What a node is by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A path of the settings.
    Base,
    /// So deep below one.
    Node(usize),
    DubboBase,
    Interface,
    Providers,
    Provider,
    Other,
}

/// What is known of the nodes since the connection began.
pub(super) struct Tree {
    settings: Arc<ZooKeeperSettings>,
    origin: Arc<str>,
    /// Of each that was asked for its children.
    children: HashMap<String, BTreeSet<String>>,
    count: usize,
    /// What is wrong with nodes that say nothing themselves.
    pub(super) missing: BTreeSet<String>,
    pub(super) forbidden: BTreeSet<String>,
    /// One of these has changed, and was not told yet.
    pub(super) untold: bool,
    /// Which of the forbidden was asked again last.
    asked: String,
}

impl Tree {
    pub(super) fn new(settings: Arc<ZooKeeperSettings>, origin: Arc<str>) -> Self {
        let (missing, forbidden) = (BTreeSet::new(), BTreeSet::new());
        let (children, asked) = (HashMap::new(), String::new());
        Self { settings, origin, children, count: 0, missing, forbidden, untold: false, asked }
    }

    /// What is asked first.
    pub(super) fn begin(&self) -> Vec<Question> {
        let paths = self.settings.paths.iter().chain(&self.settings.dubbo);
        paths.map(|path| Question::Children(path.clone())).collect()
    }

    fn role(&self, path: &str) -> Role {
        let depth = |below: &str| below.matches('/').count();
        if let Some(below) = self.settings.paths.iter().find_map(|base| under(base, path)) {
            return if below.is_empty() { Role::Base } else { Role::Node(depth(below)) };
        }
        match self.settings.dubbo.as_ref().and_then(|base| under(base, path)).map(depth) {
            Some(0) => Role::DubboBase,
            Some(1) => Role::Interface,
            Some(2) if path.ends_with("/providers") => Role::Providers,
            Some(3) => Role::Provider,
            _ => Role::Other,
        }
    }

    /// What a node is asked at first.
    fn question(&self, path: String) -> Option<Question> {
        match self.role(&path) {
            Role::Node(1) | Role::Interface | Role::Providers => Some(Question::Children(path)),
            Role::Node(depth) if depth <= DEEPEST => Some(Question::Data(path)),
            _ => None,
        }
    }

    /// A node that is there.
    fn found(&self, path: String, news: &mut News) -> Option<Question> {
        if self.role(&path) == Role::Provider {
            let said = layout::provider(&path, &self.settings, &self.origin);
            news.push((path, said));
            return None;
        }
        self.question(path)
    }

    /// Asks nodes again that could not be read, some of them each time.
    pub(super) fn again(&mut self) -> Vec<Question> {
        let rest = self.forbidden.range::<String, _>((Excluded(&self.asked), Unbounded));
        let begun = self.forbidden.range::<String, _>((Unbounded, Included(&self.asked)));
        let all: Vec<String> = rest.chain(begun).take(AGAIN).cloned().collect();
        self.asked = all.last().cloned().unwrap_or_default();
        all.into_iter().filter_map(|path| self.question(path)).collect()
    }

    /// It and all below it have gone.
    fn gone(&mut self, path: &str, news: &mut News) {
        let mut all = vec![path.to_owned()];
        while let Some(path) = all.pop() {
            for child in self.children.remove(&path).into_iter().flatten() {
                self.count -= 1;
                all.push(format!("{path}/{child}"));
            }
            self.untold |= self.forbidden.remove(&path);
            news.push((path, None));
        }
        // One of the same name that is made at once is another.
        if let Some((parent, name)) = path.rsplit_once('/')
            && self.children.get_mut(parent).is_some_and(|all| all.remove(name))
        {
            self.count -= 1;
        }
    }

    /// What is asked because of an event.
    pub(super) fn event(&mut self, kind: i32, path: String, news: &mut News) -> Option<Question> {
        let role = self.role(&path);
        let lists =
            matches!(role, Role::Base | Role::DubboBase | Role::Interface | Role::Providers | Role::Node(1));
        match kind {
            event::DELETED => {
                self.gone(&path, news);
                // Those are there again without a word of anybody else.
                matches!(role, Role::Base | Role::DubboBase).then_some(Question::Exists(path))
            }
            event::CREATED | event::DATA if lists => Some(Question::Children(path)),
            event::CREATED | event::DATA => Some(Question::Data(path)),
            event::CHILDREN => Some(Question::Children(path)),
            _ => None,
        }
    }

    /// Takes an answer: what is asked next, and what nodes say now.
    ///
    /// # Errors
    /// When it cannot be read, or there is too much.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        answered: i32,
        body: &mut In,
        news: &mut News,
    ) -> Result<Vec<Question>, String> {
        let (Question::Children(path) | Question::Data(path) | Question::Exists(path)) = question;
        let role = self.role(path);
        let is_base = matches!(role, Role::Base | Role::DubboBase);
        match answered {
            code::OK => {}
            code::NO_NODE if is_base => {
                self.gone(path, news);
                self.untold |= self.missing.insert(path.clone());
                // The one sets the watch that the other cannot.
                let next = matches!(question, Question::Children(_)).then(|| Question::Exists(path.clone()));
                return Ok(next.into_iter().collect());
            }
            code::NO_NODE => {
                self.gone(path, news);
                return Ok(Vec::new());
            }
            _ if is_base => {
                let advice = "give the user (user, passwordFile) read on it";
                return Err(format!("{path:?} cannot be read: {} ({answered}); {advice}", meaning(answered)));
            }
            code::NO_AUTH => {
                // What it said before stays.
                self.untold |= self.forbidden.insert(path.clone());
                return Ok(Vec::new());
            }
            other => return Err(format!("{path:?} cannot be read: {} ({other})", meaning(other))),
        }
        self.untold |= self.missing.remove(path) | self.forbidden.remove(path);
        match question {
            Question::Exists(path) => Ok(vec![Question::Children(path.clone())]),
            Question::Data(path) => {
                let data = body.buffer()?;
                let stays = !is_ephemeral(body.owner()?);
                let below = self.below(path);
                let bare = data.is_empty() || (stays && !data.starts_with(b"{"));
                // A node that has others below it often has the address of whoever made it.
                let said = (!bare).then(|| layout::node(path, below, &data, &self.settings, &self.origin));
                news.push((path.clone(), said));
                let deeper = stays && !matches!(role, Role::Node(depth) if depth >= DEEPEST);
                Ok(deeper.then(|| Question::Children(path.clone())).into_iter().collect())
            }
            Question::Children(path) => {
                let mut now: BTreeSet<String> = body.texts()?.into_iter().collect();
                if role == Role::Interface {
                    now.retain(|name| name == "providers");
                }
                let before = self.children.remove(path).unwrap_or_default();
                self.count = self.count - before.len() + now.len();
                if self.count > MOST_NODES {
                    return Err(format!(
                        "there are more than {MOST_NODES} nodes under {path:?} and its like: is that the path of instances?"
                    ));
                }
                let base = path.trim_end_matches('/');
                for name in before.difference(&now) {
                    self.gone(&format!("{base}/{name}"), news);
                }
                let mut next = Vec::new();
                for name in now.difference(&before) {
                    next.extend(self.found(format!("{base}/{name}"), news));
                }
                self.children.insert(path.clone(), now);
                Ok(next)
            }
        }
    }

    /// A path below that of the settings.
    fn below<'a>(&self, path: &'a str) -> &'a str {
        self.settings.paths.iter().find_map(|base| under(base, path)).unwrap_or(path).trim_matches('/')
    }
}

/// What is left of a path below another, or of that itself; nothing where it is elsewhere.
fn under<'a>(base: &str, path: &'a str) -> Option<&'a str> {
    let below = path.strip_prefix(base.trim_end_matches('/'))?;
    (below.is_empty() || below.starts_with('/')).then_some(below)
}
