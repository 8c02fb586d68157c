//! Identities and single certificates that are trusted no longer, though no root is to blame and no end has come.
//!
//! The list is part of the trust bundle: whoever verifies a peer asks it, at a handshake and again for open connections when
//! the bundle changes. A revoked identity stays so for every certificate, old or new, until it is reinstated.

use std::collections::BTreeSet;
use std::fmt;

use outrigger_model::identity::SpiffeId;

/// How an entry for one certificate begins.
const SERIAL: &str = "serial:";
/// Entries of a list: more would slow nobody's handshake, but the list travels to every sidecar.
pub const MAX_REVOKED: usize = 10_000;

/// One that is revoked; written `spiffe://…`, or `serial:` and the serial number in hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revocation {
    /// Every certificate of an identity.
    Identity(SpiffeId),
    /// One certificate, by its serial number: lower-case hex without leading zeros.
    Serial(String),
}

impl Revocation {
    /// Reads an entry.
    ///
    /// # Errors
    /// When it is neither a SPIFFE id nor a serial number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(digits) = text.strip_prefix(SERIAL) else {
            return SpiffeId::parse(text).map(Self::Identity).map_err(|error| error.to_string());
        };
        // As openssl and browsers write it, too: `0A:1b:…`.
        let digits: String = digits.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let serial = digits.trim_start_matches('0');
        // RFC 5280, 4.1.2.2: at most 20 bytes.
        if serial.is_empty() || digits.len() > 42 || !serial.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("\"{text}\" is no serial number: it has 1 to 40 hex digits"));
        }
        Ok(Self::Serial(serial.to_owned()))
    }
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Serial(serial) => write!(f, "{SERIAL}{serial}"),
        }
    }
}

/// All that are revoked. Immutable: a change is a new list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked(BTreeSet<Revocation>);

impl Revoked {
    /// Reads entries as [`Revoked::entries`] writes them.
    ///
    /// # Errors
    /// The first that is none.
    pub fn parse<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Result<Self, String> {
        entries.into_iter().map(|entry| Revocation::parse(entry.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// The entries as text, in order.
    pub fn entries(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }

    /// Whether nobody is revoked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all certificates of an identity are revoked.
    pub fn has_identity(&self, id: &SpiffeId) -> bool {
        !self.0.is_empty() && self.0.contains(&Revocation::Identity(id.clone()))
    }

    /// The entry that meets the certificate with this serial number (big endian) of this identity.
    pub(crate) fn find(&self, id: &SpiffeId, serial: &[u8]) -> Option<&Revocation> {
        if self.0.is_empty() {
            return None;
        }
        let hex = crate::provider::hex(serial);
        let serial = Revocation::Serial(hex.trim_start_matches('0').to_owned());
        self.0.get(&Revocation::Identity(id.clone())).or_else(|| self.0.get(&serial))
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).cloned().collect())
    }
}

impl FromIterator<Revocation> for Revoked {
    fn from_iter<I: IntoIterator<Item = Revocation>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_however_it_is_spelt() {
        for (text, read) in [
            ("serial:0A:1B", "serial:a1b"),
            ("serial:00ff", "serial:ff"),
            ("spiffe://mesh.test/ns/shop/sa/web", "spiffe://mesh.test/ns/shop/sa/web"),
        ] {
            assert_eq!(Revocation::parse(text).unwrap().to_string(), read);
        }
        for bad in [
            "",
            "web",
            "serial:",
            "serial:0",
            "serial:xy",
            "spiffe://",
            &format!("serial:{}", "a".repeat(43)),
        ] {
            assert!(Revocation::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_finds_identities_and_serials_and_nothing_else() {
        let list = Revoked::parse(["spiffe://mesh.test/ns/shop/sa/web", "serial:a1b"]).unwrap();
        let id = |account: &str| SpiffeId::workload("mesh.test", "shop", account).unwrap();
        assert!(list.find(&id("web"), &[7]).is_some());
        assert!(list.find(&id("catalog"), &[0, 0x0a, 0x1b]).is_some());
        assert_eq!(list.find(&id("catalog"), &[0x0a, 0x1c]), None);
        assert_eq!(Revoked::parse(list.entries()).unwrap(), list);
    }
}
