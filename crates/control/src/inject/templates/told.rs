//! What is taken back of an operator's templates, in words: the annotation that says it is in the hands of whoever wrote the Pod.

use super::Change;

/// Changes that are told of a Pod, and bytes of what stood there.
const MOST: (usize, usize) = (16, 120);

/// A line for each.
pub(in crate::inject) fn told(changes: &[Change]) -> Vec<String> {
    // As they are taken back, the last first.
    let mut all: Vec<String> = changes.iter().rev().take(MOST.0).map(Change::told).collect();
    let more = changes.len().saturating_sub(MOST.0);
    all.extend((more > 0).then(|| format!("and {more} more that templates are said to have changed")));
    all
}

impl Change {
    fn told(&self) -> String {
        let at: String = self.at.join(".").chars().take(MOST.1).collect();
        match (&self.was, &self.is) {
            (None, _) => format!("{at} goes, which a template is said to have added"),
            (Some(was), is) => {
                let was: String = was.to_string().chars().take(MOST.1).collect();
                let unless = if is.is_some() { ", unless it has been edited since" } else { "" };
                format!("{at} is {was} again, as before a template{unless}")
            }
        }
    }
}
