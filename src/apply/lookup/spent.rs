//! Whose lookups have taken how much of the time that all of a batch share.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time spent on lookups, by entity. The server answers one after the other, so what passes between two answers belongs to the
/// later one.
#[derive(Debug, Default)]
pub(super) struct Spent {
    by: HashMap<usize, Duration>,
    since: Option<Instant>,
}

impl Spent {
    /// Time of before belongs to nobody.
    pub(super) fn go_on(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// What has passed since the last answer was spent on a lookup of this entity.
    pub(super) fn on(&mut self, entity: usize, now: Instant) {
        let since = self.since.replace(now).unwrap_or(now);
        *self.by.entry(entity).or_default() += now.saturating_duration_since(since);
    }

    /// The entity that has taken most of it, and how much that is.
    pub(super) fn most(&self) -> Option<(usize, Duration)> {
        self.by.iter().map(|(entity, spent)| (*entity, *spent)).max_by_key(|(entity, spent)| (*spent, *entity))
    }
}
