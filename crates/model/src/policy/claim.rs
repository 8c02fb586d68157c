//! How conditions on claims run.

use serde_json::Value;

use super::{ClaimMatch, ClaimValue};
use crate::claims::Proven;
use crate::matcher::Matcher;

/// A compiled [`ClaimMatch`].
#[derive(Debug)]
pub(super) struct Claim {
    path: Vec<String>,
    value: Kind,
}

#[derive(Debug)]
enum Kind {
    Present,
    Text(Matcher),
    Bool(bool),
    Member(Box<Kind>),
    AnyOf(Vec<Kind>),
}

impl Claim {
    pub(super) fn compile(claim: &ClaimMatch) -> Result<Self, String> {
        Ok(Self { path: claim.path.clone(), value: Kind::compile(&claim.value)? })
    }

    pub(super) fn matches(&self, tokens: &Proven) -> bool {
        tokens.value(&self.path).is_some_and(|value| self.value.matches(value))
    }
}

impl Kind {
    fn compile(value: &ClaimValue) -> Result<Self, String> {
        Ok(match value {
            ClaimValue::Present => Self::Present,
            ClaimValue::Text(text) => Self::Text(text.compile()?),
            ClaimValue::Bool(is) => Self::Bool(*is),
            ClaimValue::Member(one) => Self::Member(Box::new(Self::compile(one)?)),
            ClaimValue::AnyOf(all) => Self::AnyOf(all.iter().map(Self::compile).collect::<Result<_, _>>()?),
        })
    }

    fn matches(&self, value: &Value) -> bool {
        match self {
            Self::Present => !value.is_null(),
            Self::Text(matcher) => value.as_str().is_some_and(|text| matcher.matches(text.as_bytes())),
            Self::Bool(is) => value.as_bool() == Some(*is),
            Self::Member(one) => {
                value.as_array().is_some_and(|values| values.iter().any(|value| one.matches(value)))
            }
            Self::AnyOf(all) => all.iter().any(|one| one.matches(value)),
        }
    }
}
