//! What the configurations of filters have in common. The row of a filter is in `listener.rs`.

use crate::origin::Origin;

/// What there is to know of a filter whatever it does; each says it beside its type.
pub(crate) trait FilterConfig {
    /// The cluster that it asks.
    fn cluster(&self) -> Option<&str> {
        None
    }

    /// The user objects that it comes from.
    fn origins(&self) -> Vec<&Origin> {
        Vec::new()
    }
}

impl<C: FilterConfig> FilterConfig for Box<C> {
    fn cluster(&self) -> Option<&str> {
        (**self).cluster()
    }

    fn origins(&self) -> Vec<&Origin> {
        (**self).origins()
    }
}

impl<C: FilterConfig> FilterConfig for Vec<C> {
    fn cluster(&self) -> Option<&str> {
        self.iter().find_map(C::cluster)
    }

    fn origins(&self) -> Vec<&Origin> {
        self.iter().flat_map(C::origins).collect()
    }
}
