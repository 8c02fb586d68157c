//! What one client wants, kind by kind.

use outrigger_model::resource::ResourceKind;

use super::subscription::Subscription;

/// The subscriptions of a stream, each of another kind: so few that to look through them costs less than any index. A push looks for them
/// some forty times.
#[derive(Default)]
pub(super) struct Subscriptions(Vec<Subscription>);

impl Subscriptions {
    pub(super) fn get(&self, kind: ResourceKind) -> Option<&Subscription> {
        self.iter().find(|one| one.kind() == kind)
    }

    pub(super) fn get_mut(&mut self, kind: ResourceKind) -> Option<&mut Subscription> {
        self.iter_mut().find(|one| one.kind() == kind)
    }

    /// The one of a kind, made on first use.
    pub(super) fn of(&mut self, kind: ResourceKind, new: impl FnOnce() -> Subscription) -> &mut Subscription {
        let known = self.0.iter().position(|one| one.kind() == kind);
        let at = known.unwrap_or_else(|| {
            self.0.push(new());
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.0.iter_mut()
    }
}
