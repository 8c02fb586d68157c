//! How the sidecar joins: a join file, or a mapping in its place for workloads whose token is their platform's.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Where to find the control plane, whom to trust, how to prove oneself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// A file of `outrigger token create`, with a token that is bound to an identity.
    File(PathBuf),
    /// The identity is that of `node.namespace` and `node.service_account`; whoever checks the token has the last word.
    Section(Box<Section>),
}

/// The mapping.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The control plane, `host:port`.
    pub address: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Root certificates, PEM.
    #[serde(default)]
    pub roots: Option<String>,
    /// The same in a file.
    #[serde(default)]
    pub roots_file: Option<PathBuf>,
    /// Holds the token. Read anew each time it is shown: kubelets rotate it.
    pub token_file: PathBuf,
}

impl Join {
    /// What cannot be, said by field.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Section(section) = self else { return Ok(()) };
        match (&section.roots, &section.roots_file) {
            (Some(_), Some(_)) => {
                Err("join: roots and roots_file are both given; leave one of them out".into())
            }
            (None, None) => {
                Err("join: neither roots nor roots_file is given; without roots nobody is trusted".into())
            }
            _ => Ok(()),
        }
    }
}

/// By hand: an untagged enum would not say which field is wrong.
impl<'de> Deserialize<'de> for Join {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Join;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the path of a join file, or a mapping with address, trust_domain, roots and token_file",
                )
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Join, E> {
                Ok(Join::File(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Join, A::Error> {
                let section = Section::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Join::Section(Box::new(section)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bootstrap::Bootstrap;

    fn read(join: &str) -> Result<Option<Join>, String> {
        let text = format!("node: {{id: a}}\nstate_dir: /s\njoin: {join}\n");
        Bootstrap::parse(Path::new("b"), &text).map(|b| b.join).map_err(|error| error.to_string())
    }

    #[test]
    fn a_workload_joins_by_a_file_or_by_the_token_of_its_platform() {
        assert_eq!(read("/run/web.join"), Ok(Some(Join::File("/run/web.join".into()))));
        let mapping = "{address: 'control:15012', trust_domain: td, roots_file: /r.pem, token_file: /t}";
        let Ok(Some(Join::Section(section))) = read(mapping) else { panic!("{:?}", read(mapping)) };
        assert_eq!((section.address.as_str(), section.trust_domain.as_str()), ("control:15012", "td"));
        assert_eq!(section.roots_file.as_deref(), Some(Path::new("/r.pem")));
        assert_eq!(section.token_file, Path::new("/t"));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let rest = "address: 'c:1', trust_domain: td";
        for (join, word) in [
            (format!("{{{rest}, token_file: /t}}"), "roots_file"),
            (format!("{{{rest}, token_file: /t, roots: a, roots_file: b}}"), "both"),
            (format!("{{{rest}, roots: a}}"), "token_file"),
            (format!("{{{rest}, roots: a, token: secret}}"), "token"),
            ("[a]".to_owned(), "mapping"),
        ] {
            let error = read(&join).unwrap_err();
            assert!(error.contains(word), "{join}: {error}");
        }
    }
}
