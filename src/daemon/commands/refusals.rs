//! Refused commands that are to be told of: at once, and from then on at most every ten seconds, by what was refused and why.

use std::time::{Duration, Instant};

use crate::lsn::Lsn;
use crate::metrics::{Command, Commanded};

/// How often refused commands are logged, at most: whoever may connect can write as many as they like.
const QUIET: Duration = Duration::from_secs(10);

/// Commands that were refused alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) command: Command,
    pub(super) reason: Commanded,
    /// How many, since it was told of last.
    pub(super) times: u64,
    /// The end of the last one's transaction; of one that belongs to none, of the transaction after it. `None` while that
    /// is not known.
    pub(super) lsn: Option<Lsn>,
}

/// What nobody was told of yet. There are only so many commands and reasons.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    untold: Vec<Refusal>,
    told: Option<Instant>,
}

impl Refusals {
    pub(super) fn add(&mut self, command: Command, reason: Commanded) {
        match self.untold.iter_mut().find(|refusal| (refusal.command, refusal.reason) == (command, reason)) {
            Some(refusal) => {
                refusal.times += 1;
                refusal.lsn = None;
            }
            None => self.untold.push(Refusal { command, reason, times: 1, lsn: None }),
        }
    }

    /// A transaction ends at `lsn`.
    pub(super) fn end(&mut self, lsn: Lsn) {
        self.untold.iter_mut().filter(|refusal| refusal.lsn.is_none()).for_each(|refusal| refusal.lsn = Some(lsn));
    }

    /// What is to be told now, if it is time for that.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Refusal> {
        if self.untold.is_empty() || self.told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return Vec::new();
        }
        self.told = Some(now);
        self.all()
    }

    /// Whatever is left to tell.
    pub(super) fn all(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_told_at_once_and_then_by_reason() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        let told = |times, reason, lsn: u64| Refusal {
            command: Command::Invalidate,
            reason,
            times,
            lsn: Some(Lsn::from_u64(lsn)),
        };
        let refuse = |refusals: &mut Refusals, reason, lsn| {
            refusals.add(Command::Invalidate, reason);
            refusals.end(Lsn::from_u64(lsn));
        };
        assert_eq!(refusals.due(begin), []);
        refuse(&mut refusals, Commanded::BadKey, 1);
        assert_eq!(refusals.due(begin), [told(1, Commanded::BadKey, 1)]);
        refuse(&mut refusals, Commanded::BadKey, 2);
        refuse(&mut refusals, Commanded::UnknownEntity, 3);
        refuse(&mut refusals, Commanded::BadKey, 4);
        assert_eq!(refusals.due(begin + QUIET / 2), []);
        let wanted = [told(2, Commanded::BadKey, 4), told(1, Commanded::UnknownEntity, 3)];
        assert_eq!(refusals.due(begin + QUIET), wanted);
        refuse(&mut refusals, Commanded::BadKey, 5);
        assert_eq!(refusals.due(begin + QUIET), []);
        assert_eq!(refusals.all(), [told(1, Commanded::BadKey, 5)]);
        assert_eq!(refusals.due(begin + 3 * QUIET), []);
    }
}
