//! Flights: keys on their way, and those that wait for their turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::Fetched;
use crate::cache::answer::ReadError;
use crate::entity::{EntryKey, Generation};
use crate::lsn::Lsn;

/// How a flight ended, once it has.
pub(super) type Landing = Option<Result<Fetched, ReadError>>;

/// One key on its way, and those who wait for it.
pub(super) struct Flight {
    pub key: EntryKey,
    /// Reads Postgres without asking L2.
    pub direct: bool,
    pub landing: watch::Sender<Landing>,
    /// The generation and the watermark when it started; not set before.
    started: OnceLock<(Generation, Lsn)>,
}

impl Flight {
    pub fn new(key: EntryKey, direct: bool, landing: watch::Sender<Landing>) -> Self {
        Flight { key, direct, landing, started: OnceLock::new() }
    }

    /// Takes off. A flight starts once.
    pub fn start(&self, generation: Generation, as_of: Lsn) {
        let _ = self.started.set((generation, as_of));
    }

    pub fn has_started(&self) -> bool {
        self.started.get().is_some()
    }

    /// Whether it brings what a reader wants who knows of this generation, and of this watermark. One that has not
    /// started reads after anybody who joins it now.
    pub fn may_be_joined(&self, generation: Generation, at_least: Lsn) -> bool {
        self.started.get().is_none_or(|(of, as_of)| *of >= generation && *as_of >= at_least)
    }
}

/// The flights of one entity.
#[derive(Default)]
pub(super) struct Queue {
    /// By full key, and whether it is direct: those that can be joined.
    pub flights: HashMap<(Box<str>, bool), Arc<Flight>>,
    /// Those that have not started.
    pub waiting: VecDeque<Arc<Flight>>,
    /// Batches under way.
    pub running: usize,
}

impl Queue {
    /// Drops what nobody waits for any more. Receivers are made under the queue's lock: none can be added meanwhile.
    pub fn forget_abandoned(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let (wanted, abandoned) = waiting.into_iter().partition(|flight| flight.landing.receiver_count() > 0);
        self.waiting = wanted;
        let abandoned: VecDeque<_> = abandoned;
        abandoned.iter().for_each(|flight| self.forget(flight));
    }

    /// Takes up to `count` flights that somebody waits for.
    pub fn take(&mut self, count: usize) -> Vec<Arc<Flight>> {
        let mut taken = Vec::with_capacity(count.min(self.waiting.len()));
        while taken.len() < count
            && let Some(flight) = self.waiting.pop_front()
        {
            if flight.landing.receiver_count() > 0 {
                taken.push(flight);
            } else {
                self.forget(&flight);
            }
        }
        taken
    }

    /// Nobody joins this flight any more.
    pub fn forget(&mut self, flight: &Arc<Flight>) {
        let name = (flight.key.redis().into(), flight.direct);
        if self.flights.get(&name).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            self.flights.remove(&name);
        }
    }
}
