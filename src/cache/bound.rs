//! How stale an answer may be: what the configuration, the entity and the request say together.

use std::time::{Duration, Instant};

use super::answer::Demand;
use super::watermark::Watermark;
use crate::entity::{Generation, PastBound};
use crate::lsn::Lsn;

/// How stale the answers of one entity may be.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Hits are marked as stale when replication was last current longer ago than this.
    mark: Duration,
    /// They are not given without leave of the request when it was longer ago than this.
    limit: Duration,
}

impl Bound {
    /// Marks hits after `stale_after`, or past the bound if that is sooner.
    pub fn new(stale_after: Duration, max_staleness: Duration, past: PastBound) -> Self {
        let limit = match past {
            PastBound::Bypass => max_staleness,
            PastBound::Serve => Duration::MAX,
        };
        Bound { mark: stale_after.min(max_staleness), limit }
    }

    /// How stale an answer to this request may be. `max-stale` relaxes the configured bound; what the client asks by
    /// `max-age` stands in any case.
    fn limit(&self, demand: &Demand) -> Duration {
        let granted = self.limit.saturating_add(demand.max_stale.unwrap_or_default());
        demand.max_age.map_or(granted, |asked| granted.min(asked))
    }
}

/// How far a reader may believe the tiers now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Belief {
    /// The entity's generation before the watermark.
    pub generation: Generation,
    /// The watermark before the lookup.
    pub watermark: Lsn,
    /// How stale the tiers were then, if so much that hits must say so.
    pub stale: Option<Duration>,
    current_at: Instant,
    mark: Duration,
    limit: Duration,
}

/// Why the tiers are not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The request wants Postgres.
    Asked,
    /// The entity's changes are not followed.
    Unservable,
    /// Replication has not been current since the start.
    NeverCurrent,
    /// Replication was last current too long ago.
    TooStale {
        /// How long ago.
        age: Duration,
        /// How long ago it may be for this request.
        limit: Duration,
    },
    /// The demanded LSN did not come in time.
    Behind,
}

impl Belief {
    pub(super) fn new(
        generation: Generation,
        watermark: &Watermark,
        bound: &Bound,
        demand: &Demand,
    ) -> Result<Belief, Doubt> {
        // In this order: so the watermark contains everything up to that time. Both before the lookup: what moves them
        // afterwards only makes the answer newer than it says.
        let current_at = watermark.current_at().ok_or(Doubt::NeverCurrent)?;
        let mut belief = Belief {
            generation,
            watermark: watermark.load(),
            stale: None,
            current_at,
            mark: bound.mark,
            limit: bound.limit(demand),
        };
        belief.stale = belief.judge()?;
        Ok(belief)
    }

    /// How stale an entry is that was looked up under this belief and is given now, if so much that it must say so.
    pub(super) fn judge(&self) -> Result<Option<Duration>, Doubt> {
        let age = self.current_at.elapsed();
        if age > self.limit {
            return Err(Doubt::TooStale { age, limit: self.limit });
        }
        Ok((age > self.mark).then_some(age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn believe(watermark: &Watermark, bound: &Bound, demand: &Demand) -> Result<Belief, Doubt> {
        Belief::new(Generation(1), watermark, bound, demand)
    }

    fn demand(max_age: Option<Duration>, max_stale: Option<Duration>) -> Demand {
        Demand { max_age, max_stale, ..Demand::default() }
    }

    #[test]
    fn a_request_asks_for_less_or_allows_more() {
        let bypass = Bound::new(2 * SECOND, 10 * SECOND, PastBound::Bypass);
        let serve = Bound::new(2 * SECOND, 10 * SECOND, PastBound::Serve);
        for (max_age, max_stale, wanted, wanted_serving) in [
            (None, None, 10 * SECOND, Duration::MAX),
            (Some(3), None, 3 * SECOND, 3 * SECOND),
            (Some(60), None, 10 * SECOND, 60 * SECOND),
            (None, Some(5 * SECOND), 15 * SECOND, Duration::MAX),
            (None, Some(Duration::MAX), Duration::MAX, Duration::MAX),
            (Some(3), Some(Duration::MAX), 3 * SECOND, 3 * SECOND),
            (Some(60), Some(5 * SECOND), 15 * SECOND, 60 * SECOND),
        ] {
            let demand = demand(max_age.map(Duration::from_secs), max_stale);
            assert_eq!(bypass.limit(&demand), wanted, "{demand:?}");
            assert_eq!(serve.limit(&demand), wanted_serving, "{demand:?}");
        }
        assert_eq!(bypass.mark, 2 * SECOND);
        assert_eq!(
            Bound::new(10 * SECOND, SECOND, PastBound::Serve).mark,
            SECOND,
            "past the bound it is always marked"
        );
    }

    #[test]
    fn nothing_is_believed_before_replication_was_current() {
        let bound = Bound::new(SECOND, 2 * SECOND, PastBound::Serve);
        let watermark = Watermark::default();
        watermark.advance(Lsn::from_u64(5));
        let any = demand(None, Some(Duration::MAX));
        assert_eq!(believe(&watermark, &bound, &any).unwrap_err(), Doubt::NeverCurrent);
        watermark.mark(Lsn::from_u64(6), Instant::now());
        assert_eq!(believe(&watermark, &bound, &any).unwrap_err(), Doubt::NeverCurrent);
        watermark.advance(Lsn::from_u64(6));
        assert_eq!(believe(&watermark, &bound, &any).unwrap().watermark, Lsn::from_u64(6));
        watermark.restart(Lsn::from_u64(7));
        assert_eq!(believe(&watermark, &bound, &any).unwrap_err(), Doubt::NeverCurrent);
    }

    #[test]
    fn hits_are_marked_and_then_not_given() {
        let age = 3 * SECOND;
        let watermark = Watermark::last_current(age);
        let believe =
            |mark, limit, past, demand| super::tests::believe(&watermark, &Bound::new(mark, limit, past), &demand);
        let hour = 3600 * SECOND;
        let plain = demand(None, None);
        assert_eq!(believe(hour, hour, PastBound::Bypass, plain).unwrap().stale, None);
        assert!(believe(age / 2, hour, PastBound::Bypass, plain).unwrap().stale.unwrap() >= age);
        let refused = believe(age / 2, age / 2, PastBound::Bypass, plain).unwrap_err();
        assert!(matches!(refused, Doubt::TooStale { age: found, limit } if found >= age && limit == age / 2));
        assert!(believe(hour, age / 2, PastBound::Serve, plain).unwrap().stale.unwrap() >= age);
        assert!(believe(hour, hour, PastBound::Serve, demand(Some(age / 2), Some(hour))).is_err());
        // An entry that takes long to come is judged when it is there.
        let mut slow = believe(hour, 2 * age, PastBound::Bypass, plain).unwrap();
        assert_eq!(slow.judge(), Ok(None));
        slow.current_at -= age;
        assert!(matches!(slow.judge(), Err(Doubt::TooStale { .. })));
    }
}
