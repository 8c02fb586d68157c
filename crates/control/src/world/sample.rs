//! Worlds for tests: a few instances and rules.

use std::sync::Arc;

use outrigger_rules::Object;
use outrigger_rules::intent::Intent;

use super::{MeshSettings, World};
use crate::instance::Instance;

/// Rules without an error.
pub(crate) fn objects(rules: &str) -> Vec<Object> {
    let parsed = outrigger_rules::parse("test.yaml", rules);
    assert!(parsed.findings.iter().all(|finding| !finding.is_error()), "{:?}", parsed.findings);
    parsed.objects
}

/// What they say.
pub(crate) fn intents(rules: &str) -> Vec<Intent> {
    objects(rules).into_iter().flat_map(|object| object.intents).collect()
}

/// With the settings that are the default.
pub(crate) fn world(instances: Vec<Instance>, rules: &str) -> World {
    World::new(7, MeshSettings::default(), instances.into_iter().map(Arc::new), intents(rules))
}
