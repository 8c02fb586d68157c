//! What is worth a word about rules that hold: of each by itself (a field that has no effect), as whoever wrote it heard at admission, and of all
//! together.

use std::collections::HashMap;

use outrigger_rules::{Finding, analyze, parse_with};

use super::hash;
use crate::keeper::{Published, catalog};
use crate::registry::kubernetes::read;
use crate::world::MeshSettings;

/// By object, as in `VirtualService shop/catalog`.
type ByObject = HashMap<String, Vec<Finding>>;

/// What was found, at a generation of the mesh.
#[derive(Default)]
pub(super) struct Found {
    generation: Option<u64>,
    all: ByObject,
    /// Of each by itself; it is read again only when its text is another.
    read: HashMap<String, (u64, Vec<Finding>)>,
}

impl Found {
    pub(super) fn all(&self) -> &ByObject {
        &self.all
    }

    /// Looks at all that has changed. Takes seconds for tens of thousands of rules.
    pub(super) fn renew(&mut self, published: &Published, registry: &str, settings: &MeshSettings) {
        if self.generation == Some(published.generation()) {
            return;
        }
        self.read_again(published, registry, settings);
        let objects: Vec<_> = published.rules.values().filter_map(|rule| rule.object.clone()).collect();
        let mut all: ByObject = HashMap::new();
        for (object, (_, findings)) in self.read.iter().filter(|(_, (_, findings))| !findings.is_empty()) {
            all.insert(object.clone(), findings.clone());
        }
        for finding in analyze(&objects, Some(&catalog(&published.world))) {
            if let Some(object) = finding.object.clone() {
                all.entry(object).or_default().push(finding);
            }
        }
        (self.generation, self.all) = (Some(published.generation()), all);
    }

    fn read_again(&mut self, published: &Published, registry: &str, settings: &MeshSettings) {
        let mut before = std::mem::take(&mut self.read);
        for (_, (source, rule)) in published.ruled.owned() {
            // Services are rules, too, and have no status of ours.
            let is_told =
                |kind: &str| &*source.registry == registry && read::resources(kind).next().is_some();
            let Some(object) = rule.object.as_ref().filter(|object| is_told(object.kind.as_str())) else {
                continue;
            };
            let (id, text) = (object.id(), hash(&object.source));
            let known = before.remove(&id).filter(|(of, _)| *of == text);
            let read = known.unwrap_or_else(|| {
                let parsed = parse_with("", &object.source, &settings.reading(&object.namespace));
                (text, parsed.findings.into_iter().filter(|finding| !finding.is_error()).collect())
            });
            self.read.insert(id, read);
        }
    }
}

#[cfg(test)]
mod tests;
