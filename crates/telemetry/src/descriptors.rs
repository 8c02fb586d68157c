//! How many files this process may have open. Each connection is one, and the usual soft limit is 1,024: what programs that `select`
//! can bear. Ours need no more than the hard one's leave, so they take it, as Envoy and every program in Go do.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many are enough, whatever the hard limit is; a hard limit may be a thousand times that.
const MOST: u64 = 1 << 20;

/// Raises the soft limit to the hard one; once at the start, before anything goes by it.
pub fn raise_limit() {
    let found = getrlimit(Resource::Nofile);
    let Some(current) = raised(found.current, found.maximum) else { return };
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: found.maximum })
    {
        tracing::warn!(%error, current = ?found.current, "the limit of open files cannot be raised");
    }
}

/// What a soft limit becomes; nothing where it stays. None of a limit is no limit.
fn raised(soft: Option<u64>, hard: Option<u64>) -> Option<u64> {
    let wanted = hard.map_or(MOST, |hard| hard.min(MOST));
    soft.filter(|soft| *soft < wanted).map(|_| wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_within_bounds_and_is_never_lowered() {
        assert_eq!(raised(Some(1024), Some(524_288)), Some(524_288), "of a containerd 2");
        assert_eq!(raised(Some(1024), Some(1 << 30)), Some(MOST));
        assert_eq!(raised(Some(1024), None), Some(MOST));
        assert_eq!(raised(Some(4096), Some(4096)), None);
        assert_eq!(raised(Some(1 << 21), Some(1 << 30)), None);
        assert_eq!(raised(None, None), None);
    }

    #[test]
    fn this_process_has_what_it_may_have() {
        raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(raised(now.current, now.maximum), None, "{now:?}");
    }
}
