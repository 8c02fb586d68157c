//! What of a message looks like something that only we say in it, and how much of it there is to copy.

use super::{RequestHead, Trailers};
use crate::http::map;
use crate::memory::FIELD;

impl RequestHead {
    /// Removes what only looks like a name that sidecars set (`X_Forwarded_For`).
    #[inline]
    pub fn remove_lookalikes(&mut self) {
        match self {
            Self::H1(head) => head.fields.remove_lookalikes(),
            Self::H2(head) => map::remove_lookalikes(&mut head.headers),
        }
    }

    /// Removes what only looks like one of these names, which are ours to say.
    #[cold]
    pub fn remove_lookalikes_of(&mut self, own: &[String]) {
        match self {
            Self::H1(head) => head.fields.remove_lookalikes_of(own),
            Self::H2(head) => map::remove_lookalikes_of(&mut head.headers, own),
        }
    }

    /// What a copy of it takes in memory: those of HTTP/2 share their texts.
    pub fn weight(&self) -> usize {
        match self {
            Self::H1(head) => head.fields.weight(),
            Self::H2(head) => head.headers.len() * FIELD / 2,
        }
    }
}

impl Trailers {
    /// Removes these names, which are ours to say in the head, and what looks like them.
    #[cold]
    pub fn remove_alike(&mut self, own: &[String]) {
        match self {
            Self::H1(fields) => fields.remove_alike(own),
            Self::H2(map) => map::remove_alike(map, own),
        }
    }
}
