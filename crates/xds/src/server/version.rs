//! Versions of resources: a hash of what is in them.

use std::fmt;

use outrigger_model::resource::Resource;

use crate::convert::hash_of;

/// What is in a resource, as a number; on the wire 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version([u64; 2]);

impl Version {
    pub(super) fn of(resource: &Resource) -> Self {
        let hash = hash_of(resource);
        Self([(hash >> 64) as u64, hash as u64])
    }

    /// Reads one that was sent before; whoever sent any other text was not told by us.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (high, low) = text.split_at_checked(16).filter(|(_, low)| low.len() == 16)?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let version = Self([number(high)?, number(low)?]);
        version.is(text).then_some(version)
    }

    /// Whether this is how it is written.
    pub fn is(self, text: &str) -> bool {
        struct Rest<'t>(&'t str);
        impl fmt::Write for Rest<'_> {
            fn write_str(&mut self, part: &str) -> fmt::Result {
                self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
                Ok(())
            }
        }
        let mut rest = Rest(text);
        fmt::write(&mut rest, format_args!("{self}")).is_ok() && rest.0.is_empty()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use outrigger_model::cluster::Cluster;

    use super::*;

    #[test]
    fn a_version_reads_as_it_is_written_and_nothing_else_does() {
        let resource = Resource::Cluster(Cluster::new("a"));
        let (version, text) = (Version::of(&resource), format!("{:032x}", hash_of(&resource)));
        assert_eq!((version.to_string(), Version::read(&text)), (text.clone(), Some(version)));
        assert!(version.is(&text) && !version.is(&text[1..]) && !version.is(&format!("{text}0")));
        let other = text.to_uppercase();
        for bad in
            ["", "v", "+000000000000000+000000000000001", "é000000000000000000000000000000", &text[1..]]
        {
            assert_eq!(Version::read(bad), None, "{bad}");
        }
        assert_eq!(Version::read(&other), (other == text).then_some(version));
    }
}
