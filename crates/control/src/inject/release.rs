//! Which release of Kubernetes a Pod will run in, as far as it matters to its sidecar.

use std::fmt;
use std::str::FromStr;

/// A minor release, such as 1.29.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

impl Release {
    /// The first with native sidecars that nobody has to turn on.
    pub const NATIVE_SIDECARS: Self = Self { major: 1, minor: 29 };
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = String;

    /// As an API server and kubelets write it, with a patch or without: `v1.29.3+k3s1`, `1.29`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{}\" is no version of Kubernetes such as 1.29", shown(text));
        let (major, rest) = text.strip_prefix('v').unwrap_or(text).split_once('.').ok_or_else(wrong)?;
        let minor = rest.split(['.', '-', '+']).next().unwrap_or_default();
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain).ok_or_else(wrong)
        };
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// It is a stranger's.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written_everywhere() {
        for (text, wanted) in [
            ("v1.32.0", "1.32"),
            ("1.29", "1.29"),
            ("v1.28.3+k3s1", "1.28"),
            ("v1.27.3-gke.100", "1.27"),
            ("1.30+", "1.30"),
            ("v2.0.0-alpha.1", "2.0"),
        ] {
            assert_eq!(text.parse::<Release>().unwrap().to_string(), wanted);
        }
        for wrong in ["", "v1", "1.x", "latest", "1.-3", "1.+3", "-1.3", "v1..2", "1.99999999999"] {
            let error = wrong.parse::<Release>().unwrap_err();
            assert!(error.contains(wrong) && error.contains("such as 1.29"), "{error}");
        }
        let of = |text: &str| text.parse::<Release>().unwrap();
        assert!(of("1.9") < Release::NATIVE_SIDECARS && of("1.28") < Release::NATIVE_SIDECARS);
        assert!(of("1.29.0") >= Release::NATIVE_SIDECARS && of("2.0") > Release::NATIVE_SIDECARS);
    }
}
