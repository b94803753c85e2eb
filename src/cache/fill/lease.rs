//! Leases: taken for what L2 does not have, and waited for where another instance holds them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::Batch;
use super::queue::Flight;
use crate::cache::answer::Outcome;
use crate::cache::l2::{L2, Looked};
use crate::cache::permits::Permit;
use crate::entity::Generation;
use crate::entry::{self, Due, Label, Stored};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;

/// How often somebody else's fill is looked for.
const LEASE_POLL: Duration = Duration::from_millis(5);

/// The right to publish a batch's fills.
pub(super) struct Lease<'a> {
    pub(super) l2: &'a L2,
    pub(super) text: &'a str,
    /// The high-water mark when it was given.
    pub(super) lo: Lsn,
}

/// What became of flights that were looked up in L2 and are not landed.
#[derive(Default)]
pub(super) struct Looks {
    /// Our lease stands there, given at this high-water mark.
    pub(super) leased: Vec<Arc<Flight>>,
    pub(super) lo: Lsn,
    /// Somebody else's does.
    pub(super) busy: Vec<Arc<Flight>>,
    /// L2 is not to keep them.
    pub(super) uncached: Vec<Arc<Flight>>,
    /// An entry stands there that a tag has voided, and what it must have seen.
    pub(super) voided: Vec<(Arc<Flight>, Lsn)>,
}

impl Batch {
    /// Looks flights up in L2, each with what its entry must have seen at least; lands those that are there, and takes
    /// leases for those that are not.
    pub(super) async fn look(&self, l2: &L2, flights: Vec<(Arc<Flight>, Lsn)>, lease: &str) -> Looks {
        let mut looks = Looks::default();
        if flights.is_empty() {
            return looks;
        }
        let keys: Vec<&str> = flights.iter().map(|(flight, _)| flight.key.redis()).collect();
        let floors: Vec<Lsn> = flights.iter().map(|(_, floor)| *floor).collect();
        failpoint::reached(Point::BeforeLease);
        let over = Due::now().before(self.entity.lifetime.stale);
        let swept = self.filler.hierarchy.voids.swept(&self.entity);
        let (hw, looked) = match l2.lease(&keys, lease, self.generation, over, &floors).await {
            Ok((Some(hw), looked)) => (hw, looked),
            // L2 lost its fence, or is away: it is not asked to keep anything.
            Ok((None, _)) | Err(_) => {
                looks.uncached = flights.into_iter().map(|(flight, _)| flight).collect();
                return looks;
            }
        };
        looks.lo = hw;
        failpoint::reached(Point::Leased);
        for ((flight, _), looked) in flights.into_iter().zip(looked) {
            match looked {
                Looked::Leased => looks.leased.push(flight),
                Looked::Stored(text) => match entry::decode(text.clone(), self.filler.max_value) {
                    Stored::Entry(label, value) if self.servable(&flight, &label, &value, swept) => {
                        self.keep(&flight, value, label, Some(label.due), Outcome::HitL2).await;
                    }
                    Stored::Entry(label, value) => {
                        let (hierarchy, key) = (&self.filler.hierarchy, flight.key.redis());
                        match hierarchy.tag_floor(&self.entity, key, value.as_deref()) {
                            floor if label.lo < floor => looks.voided.push((flight, floor)),
                            _ => {
                                if label.due.since(Due::now()).is_some() {
                                    // Served as stale to others, and not to be replaced by a lease.
                                    self.filler.renew(&self.entity, &flight.key, label.due);
                                }
                                looks.uncached.push(flight);
                            }
                        }
                    }
                    Stored::Lease => looks.busy.push(flight),
                    Stored::Foreign => {
                        // A damaged value under a good head: the next reader may fill it.
                        let _ = l2.drop_same(flight.key.redis(), &text).await;
                        looks.uncached.push(flight);
                    }
                },
            }
        }
        looks
    }

    /// Whether a stored value may be served. A value of a transaction that was applied in pieces may be one that was
    /// never committed, until the watermark, read before the lookup, has passed all of its pieces.
    fn servable(&self, flight: &Flight, label: &Label, value: &Option<Bytes>, swept: Lsn) -> bool {
        // As of now, not of when the flight started: L2 may have lost writes meanwhile, and have been claimed anew.
        label.generation == self.entity.generation()
            && (!label.split || self.as_of >= label.lo)
            && label.due.since(Due::now()).is_none()
            && self.filler.hierarchy.stands(&self.entity, flight.key.redis(), label.lo, value.as_deref(), swept)
    }

    /// Somebody else fills these: waits for that, then reads through.
    pub(super) async fn wait_for_others(
        &self,
        l2: &L2,
        mut busy: Vec<Arc<Flight>>,
        generation: Generation,
        permit: &Permit,
    ) {
        let deadline = Instant::now() + l2.config.lease_wait;
        while !busy.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LEASE_POLL).await;
            let keys: Vec<&str> = busy.iter().map(|f| f.key.redis()).collect();
            let swept = self.filler.hierarchy.voids.swept(&self.entity);
            let Ok(found) = l2.get(&keys).await else { break };
            let mut still = Vec::new();
            let mut voided = Vec::new();
            for (flight, stored) in busy.into_iter().zip(found) {
                match stored.map(|stored| entry::decode(stored, self.filler.max_value)) {
                    Some(Stored::Entry(label, value)) if self.servable(&flight, &label, &value, swept) => {
                        self.keep(&flight, value, label, Some(label.due), Outcome::HitL2).await;
                    }
                    Some(Stored::Lease) => still.push(flight),
                    _ => voided.push(flight),
                }
            }
            self.read(&voided, Outcome::Bypass, generation, None, permit).await;
            busy = still;
        }
        self.read(&busy, Outcome::Bypass, generation, None, permit).await;
    }
}
