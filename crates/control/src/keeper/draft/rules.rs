//! Rules that are applied and deleted, all or none, after the analyzer has judged them.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use outrigger_rules::{Finding, Object, ParseOptions, parse_with};

use super::Draft;
use crate::keeper::rules::{self, Action, Applied, AppliedObject, Rule};
use crate::keeper::{Refused, Removed};
use crate::registry::Source;
use crate::store::Mutation;
use crate::store::records::{HistoryAction, HistoryEntry, StoredRule, rule_key};
use crate::world::MeshSettings;

impl Draft {
    pub(in crate::keeper) fn apply(
        &mut self,
        objects: Vec<Object>,
        namespace: &str,
        author: &str,
        dry_run: bool,
    ) -> Result<(Vec<Mutation>, Applied), Refused> {
        objects.iter().try_for_each(|object| self.is_ours(&rule_key(object)))?;
        // They are judged by what else there is.
        self.settle();
        let findings = self.judge(&objects)?;
        let mut changed = Vec::new();
        let mut mutations = Vec::new();
        let mut applied = Vec::new();
        for object in objects {
            let key = rule_key(&object);
            let (kind, ns, name) = (object.kind.to_string(), object.namespace.clone(), object.name.clone());
            let known = self.rules.get(&key);
            let same = known.is_some_and(|rule| rule.object.is_some() && rule.stored.json == object.json);
            let action = match (same, known) {
                (true, _) => Action::Unchanged,
                (false, Some(_)) => Action::Updated,
                (false, None) => Action::Created,
            };
            let last = self.versions.get(&key).copied().unwrap_or(0);
            let version = if same { known.map_or(last, |rule| rule.stored.version) } else { last + 1 };
            applied.push(AppliedObject { kind, namespace: ns, name, version, action });
            if same || dry_run {
                continue;
            }
            let stored = StoredRule {
                key: key.clone(),
                version,
                generation: self.generation,
                author: author.to_owned(),
                at: Timestamp::now(),
                file: object.origin.file.clone(),
                namespace: namespace.to_owned(),
                source: object.source.clone(),
                json: object.json.clone(),
            };
            mutations.push(Mutation::PutRule(Box::new(stored.clone())));
            Arc::make_mut(&mut self.versions).insert(key.clone(), version);
            let rule = Arc::new(Rule { stored, object: Some(object), problem: None });
            self.ruled.put(&Source::api(), &key, rule);
            changed.push(key);
        }
        self.decide_rules(&changed);
        Ok((mutations, Applied { generation: 0, dry_run, objects: applied, findings }))
    }

    /// What the analyzer says of these objects together with all others. What it said before, of others, is not their fault.
    fn judge(&self, objects: &[Object]) -> Result<Vec<Finding>, Refused> {
        let keys: BTreeSet<String> = objects.iter().map(rule_key).collect();
        let findings = rules::consequences(&self.rules, &self.world, &keys, objects);
        if findings.iter().any(Finding::is_error) {
            return Err(Refused::Findings(findings));
        }
        Ok(findings)
    }

    pub(in crate::keeper) fn delete(
        &mut self,
        key: &str,
        author: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<(Vec<Mutation>, Removed), Refused> {
        if !self.rules.contains_key(key) {
            return Err(Refused::Unknown(format!(
                "there is no rule {key}; `outrigger get` lists those that exist"
            )));
        }
        self.is_ours(key)?;
        self.settle();
        let findings = rules::consequences(&self.rules, &self.world, &BTreeSet::from([key.to_owned()]), &[]);
        if !force && findings.iter().any(Finding::is_error) {
            return Err(Refused::Findings(findings));
        }
        let version = self.versions.get(key).copied().unwrap_or(0) + 1;
        let removed = Removed { version, generation: 0, findings };
        if dry_run {
            return Ok((Vec::new(), removed));
        }
        self.ruled.take(&Source::api(), key);
        self.decide_rules(&[key.to_owned()]);
        Arc::make_mut(&mut self.versions).insert(key.to_owned(), version);
        let entry = HistoryEntry {
            version,
            action: HistoryAction::Deleted,
            generation: self.generation,
            author: author.to_owned(),
            at: Timestamp::now(),
            source: String::new(),
        };
        let mutation = Mutation::DeleteRule { key: key.to_owned(), entry: Box::new(entry) };
        Ok((vec![mutation], removed))
    }

    /// What a registry has is changed there.
    fn is_ours(&self, key: &str) -> Result<(), Refused> {
        match self.ruled.owner(key) {
            Some((source, _)) if !source.is_api() => {
                Err(Refused::Conflict(format!("the rule {key} is kept by {source}; change it there")))
            }
            _ => Ok(()),
        }
    }

    /// A rule as a registry says it. Its versions count what we have seen of it.
    pub(super) fn said_rule(&self, source: &Source, object: Object) -> Arc<Rule> {
        let key = rule_key(&object);
        let known = self.ruled.said(source, &key);
        if let Some(known) = known.filter(|known| known.object.as_ref() == Some(&object)) {
            return known.clone();
        }
        let version =
            known.map_or(1, |known| known.stored.version + u64::from(known.stored.json != object.json));
        let stored = StoredRule {
            key,
            version,
            generation: self.generation,
            author: source.to_string(),
            at: Timestamp::now(),
            file: object.origin.file.clone(),
            namespace: object.namespace.clone(),
            source: object.source.clone(),
            json: object.json.clone(),
        };
        Arc::new(Rule { stored, object: Some(object), problem: None })
    }
}

/// A stored rule is parsed again: what it means is the business of this release, not of the one that stored it.
pub(super) fn reload(stored: StoredRule, settings: &MeshSettings) -> Rule {
    let options = settings.reading(&stored.namespace);
    let mut parsed = parse_again(&stored, &options);
    let object =
        parsed.objects.pop().filter(|object| parsed.objects.is_empty() && rule_key(object) == stored.key);
    let problem = object.is_none().then(|| {
        let errors: Vec<String> =
            parsed.findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect();
        let problem = format!("this release does not understand the stored rule: {}", errors.join("; "));
        tracing::error!(rule = %stored.key, "{problem}; it is kept, but not in force");
        problem
    });
    Rule { stored, object, problem }
}

fn parse_again(stored: &StoredRule, options: &ParseOptions) -> outrigger_rules::Parsed {
    parse_with(stored.file.as_deref().unwrap_or_default(), &stored.source, options)
}
