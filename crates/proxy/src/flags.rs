//! Envoy's response flags: in one word each, what went wrong with a stream.

use std::fmt;

/// Envoy's response flags, as a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

/// In Envoy's order of writing.
const FLAG_NAMES: [&str; 24] = [
    "UH", "UF", "UO", "NR", "URX", "NC", "DT", "UT", "LR", "UR", "UC", "DC", "DI", "FI", "RL", "UAEX", "SI",
    "DPE", "UPE", "DF", "OM", "IH", "UMSDR", "RLSE",
];

impl Flags {
    /// Adds a flag by name; `-` and unknown names add nothing.
    pub fn add(&mut self, name: &str) {
        if let Some(bit) = FLAG_NAMES.iter().position(|known| *known == name) {
            self.0 |= 1 << bit;
        }
    }

    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut before = "";
        for (bit, name) in FLAG_NAMES.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{before}{name}")?;
                before = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_envoy_writes_them() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.add("-");
        assert!(flags.is_empty());
        flags.add("URX");
        flags.add("UF");
        assert_eq!(flags.to_string(), "UF,URX");
    }
}
