//! The records on disk, JSON. Fields are only ever added, with a default, within one format number.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use outrigger_model::identity::SpiffeId;
use outrigger_rules::Object;
use serde::{Deserialize, Serialize};

use crate::instance::{Instance, State, Word};
use crate::registry::claim::Range;

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredRule {
    /// `Kind/namespace/name`.
    pub key: String,
    /// Counts from 1 over the whole history of the key, deletions included.
    pub version: u64,
    /// The generation of the world that it appeared in.
    pub generation: u64,
    /// Who applied it.
    pub author: String,
    /// When.
    pub at: Timestamp,
    /// The file that it was applied from, if known.
    pub file: Option<String>,
    /// The namespace for a text that names none.
    pub namespace: String,
    /// As the user wrote it.
    pub source: String,
    /// The same as JSON with ordered keys: equal texts are equal rules.
    pub json: serde_json::Value,
}

/// One version of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Counts from 1.
    pub version: u64,
    /// What happened.
    pub action: HistoryAction,
    /// The generation of the world that showed it first.
    pub generation: u64,
    /// Who did it.
    pub author: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// As the user wrote it; empty for a deletion.
    pub source: String,
}

/// What happened to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HistoryAction {
    /// Made or changed.
    Applied,
    /// Deleted.
    Deleted,
}

impl HistoryEntry {
    /// The entry of a rule that is being written.
    pub fn applied(rule: &StoredRule) -> Self {
        Self {
            version: rule.version,
            action: HistoryAction::Applied,
            generation: rule.generation,
            author: rule.author.clone(),
            at: rule.at,
            source: rule.source.clone(),
        }
    }
}

/// A registration that came over the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredInstance {
    /// What was registered.
    #[serde(with = "shared")]
    pub instance: Arc<Instance>,
    /// The identity that registered it; none for an operator, or where it takes an operator's word for its addresses.
    pub by: Option<SpiffeId>,
    /// When.
    pub at: Timestamp,
    /// The processes that registered it, where they say which they are: the one that has it now, then those that it replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incarnations: Vec<String>,
    /// What is behind its state.
    #[serde(default, skip_serializing_if = "Behind::is_nothing")]
    pub behind: Behind,
    /// Whose word it is, which the instance itself does not carry when it is written; absent in what older releases have stored.
    #[serde(default)]
    pub word: Option<Word>,
}

impl StoredInstance {
    /// Whose word it is. Of what an older release has stored: a workload's where one stands behind it, and of its labels only what is its
    /// service's own.
    pub fn word(&self) -> Word {
        let instance = &self.instance;
        let app = instance.labels.get("app");
        self.word.unwrap_or(match (self.by.is_some() || !self.incarnations.is_empty(), app) {
            (false, _) => Word::Trusted,
            (true, Some(app)) if *app == instance.service || instance.serves().contains(app) => Word::Named,
            (true, _) => Word::Own,
        })
    }

    /// Whether nobody is there, and an operator keeps it listed all the same: it has no lease that could end.
    pub fn is_kept(&self) -> bool {
        self.behind.away.is_some() && (self.instance.state == State::Maintenance || self.by.is_none())
    }
}

/// What is true of an instance that an operator took out (`maintenance`), or that is `stopped` because nobody is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// What it was, or what its workload has said that it is since.
    #[serde(default)]
    pub said: State,
    /// Why nobody is there, if nobody is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<Away>,
}

/// Why nobody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Away {
    /// The lease has run out; whoever is heard of again is there again.
    Silent,
    /// It was deregistered; whoever comes registers.
    Left,
}

impl Behind {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A join token. The secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredToken {
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// The identity that it proves.
    pub identity: SpiffeId,
    /// Services that its holder may register; empty for the one named as the service account.
    pub services: Vec<String>,
    /// Addresses that its holder may give its instances.
    #[serde(default)]
    pub ranges: Vec<Range>,
    /// When it was made.
    pub created: Timestamp,
    /// It proves nothing from then on.
    pub expires: Option<Timestamp>,
    /// Certificates that it may still be used for; none for any number.
    pub uses_left: Option<u32>,
    /// What it was used for last, so that a request that comes again, since its answer was lost, uses nothing up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_for: Vec<Use>,
}

/// A request that a use of a token was counted for. It is written as one word, with seconds since 1970 behind the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Use {
    /// SHA-256, hex.
    pub request: String,
    /// When it came first.
    pub at: Timestamp,
}

impl From<String> for Use {
    fn from(text: String) -> Self {
        let (request, at) = text.split_once('@').unwrap_or((&text, ""));
        // Of a release that noted no time it is over.
        let at = at.parse().ok().and_then(|second| Timestamp::from_second(second).ok());
        Self { request: request.to_owned(), at: at.unwrap_or(Timestamp::UNIX_EPOCH) }
    }
}

impl From<Use> for String {
    fn from(one: Use) -> Self {
        format!("{}@{}", one.request, one.at.as_second())
    }
}

/// Requests that a token remembers.
const MOST_REMEMBERED: usize = 8;
/// How long an answer that was lost may be asked for again: a sidecar asks every minute at least. After it a token that is used up proves
/// nothing, not even to whom it was used by.
pub const REPEATED: SignedDuration = SignedDuration::from_mins(10);

impl Use {
    /// By a clock that was put right since, a use may be years ahead: that is not after anything.
    fn is_after(&self, since: Timestamp) -> bool {
        let after = self.at.duration_since(since);
        after.is_positive() && after <= REPEATED * 2
    }
}

impl StoredToken {
    /// Counts a use. Whether there was one left; one that was counted for the same request after `since` is as good.
    pub fn count(&mut self, used: &Use, since: Timestamp) -> bool {
        if self.was_used_for(&used.request, since) {
            return true;
        }
        match &mut self.uses_left {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => return true,
        }
        self.remember(used, since);
        true
    }

    /// Whoever asks for the same again has it.
    pub fn remember(&mut self, used: &Use, since: Timestamp) {
        self.used_for.retain(|known| known.is_after(since) && known.request != used.request);
        self.used_for.drain(..self.used_for.len().saturating_sub(MOST_REMEMBERED - 1));
        self.used_for.push(used.clone());
    }

    /// Whether a use was counted for this request, after `since`.
    pub fn was_used_for(&self, request: &str, since: Timestamp) -> bool {
        !request.is_empty() && self.used_for.iter().any(|one| one.request == request && one.is_after(since))
    }

    /// Whether any answer may be asked for again.
    pub fn may_be_repeated(&self, since: Timestamp) -> bool {
        self.used_for.iter().any(|one| !one.request.is_empty() && one.is_after(since))
    }

    /// Whether its holder may register instances of a service in its namespace.
    pub fn may_register(&self, service: &str) -> bool {
        match self.services.as_slice() {
            [] => self.identity.service_account() == Some(service),
            services => services.iter().any(|allowed| allowed == service || allowed == "*"),
        }
    }
}

/// One that an operator has revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRevocation {
    /// As [`outrigger_identity::Revocation`] is written.
    pub entry: String,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A thing that a registry of the network said, for a start without it. The store does not look into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSaid {
    /// The registry's name in the settings.
    pub registry: String,
    /// The part of it.
    pub part: String,
    /// Which thing of the part.
    pub key: String,
    /// What it is.
    pub json: String,
}

/// `Kind/namespace/name`, by which a rule is stored and asked for.
pub fn rule_key(object: &Object) -> String {
    format!("{}/{}/{}", object.kind, object.namespace, object.name)
}

/// One change; a commit takes several, and all of them or none.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// Writes a rule and its entry in the history.
    PutRule(Box<StoredRule>),
    /// Removes a rule and notes that in the history.
    DeleteRule {
        /// The object's key, `Kind/namespace/name`.
        key: String,
        /// What the history says of it.
        entry: Box<HistoryEntry>,
    },
    /// Writes a registration.
    PutInstance(Box<StoredInstance>),
    /// Removes a registration.
    DeleteInstance(String),
    /// Writes a token.
    PutToken(Box<StoredToken>),
    /// Removes a token, by the hash of its secret.
    DeleteToken(String),
    /// Writes a revocation.
    PutRevocation(Box<StoredRevocation>),
    /// Removes a revocation, by its entry.
    DeleteRevocation(String),
    /// Writes what a registry said.
    PutSaid(Box<StoredSaid>),
    /// Removes it.
    DeleteSaid {
        /// The registry's name.
        registry: String,
        /// The part of it.
        part: String,
        /// Which thing of the part.
        key: String,
    },
    /// No generation above this one has been used.
    ReserveGeneration(u64),
    /// Writes what this data directory is of.
    PutFact {
        /// Which fact.
        name: &'static str,
        /// What holds.
        value: String,
    },
}

/// Everything that is stored, but the history.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// The rules, by key.
    pub rules: Vec<StoredRule>,
    /// The registrations, by id.
    pub instances: Vec<StoredInstance>,
    /// The tokens.
    pub tokens: Vec<StoredToken>,
    /// Who is revoked.
    pub revoked: Vec<StoredRevocation>,
    /// Every generation that was ever used is at most this.
    pub generation: u64,
    /// The highest version that each object ever had, deleted ones included.
    pub versions: BTreeMap<String, u64>,
    /// What this data directory is of, by name.
    pub facts: BTreeMap<String, String>,
}

/// What the world shares is stored as if it were the record's own.
pub(crate) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::instance::Instance;

    pub(crate) fn serialize<S: Serializer>(instance: &Arc<Instance>, to: S) -> Result<S::Ok, S::Error> {
        Instance::serialize(instance, to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Instance>, D::Error> {
        Instance::deserialize(from).map(Arc::new)
    }
}
