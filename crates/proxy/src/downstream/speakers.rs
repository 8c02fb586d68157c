//! Where servers speak first: what is remembered of it, which decides nothing but how long a client is waited for.

use std::cell::RefCell;
use std::collections::HashMap;

/// Destinations of which something is remembered; beyond it the memory starts over.
const MAX_SPEAKERS: usize = 4096;
/// Counts are halved here, so that the present weighs more than the past.
const MAX_COUNT: u32 = 64;

/// Where servers were heard first, by the name of the listener.
#[derive(Default)]
pub struct Speakers(RefCell<HashMap<Box<str>, Heard>>);

/// Who spoke first, how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    server: u32,
    client: u32,
}

impl Speakers {
    /// Whether the server is expected to speak first.
    pub fn expects_server(&self, listener: &str) -> bool {
        self.0.borrow().get(listener).is_some_and(|heard| heard.server > heard.client)
    }

    /// It was, here.
    pub fn server(&self, listener: &str) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MAX_SPEAKERS && !all.contains_key(listener) {
            all.clear();
        }
        let heard = all.entry(listener.into()).or_default();
        heard.server += 1;
        heard.age();
    }

    /// The client was. Counts only where a server was heard before: of all others there is nothing to remember.
    pub fn client(&self, listener: &str) {
        if let Some(heard) = self.0.borrow_mut().get_mut(listener) {
            heard.client += 1;
            heard.age();
        }
    }
}

impl Heard {
    fn age(&mut self) {
        if self.server.max(self.client) >= MAX_COUNT {
            (self.server, self.client) = (self.server / 2, self.client / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_expected_where_servers_were_heard_more_often_and_recently() {
        let speakers = Speakers::default();
        speakers.client("l");
        assert!(!speakers.expects_server("l"), "of clients alone nothing is remembered");
        assert!(speakers.0.borrow().is_empty());
        speakers.server("l");
        assert!(speakers.expects_server("l"));
        speakers.client("l");
        assert!(!speakers.expects_server("l"));
        (0..1000).for_each(|_| speakers.server("l"));
        (0..MAX_COUNT).for_each(|_| speakers.client("l"));
        assert!(!speakers.expects_server("l"), "a long past does not outweigh the present");
    }

    #[test]
    fn the_memory_is_bounded() {
        let speakers = Speakers::default();
        (0..2 * MAX_SPEAKERS).for_each(|n| speakers.server(&n.to_string()));
        assert!(speakers.0.borrow().len() <= MAX_SPEAKERS);
    }
}
