//! When what is done beside the stream is due.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// What may be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Due {
    /// A heartbeat.
    Heartbeat,
    /// A look at where the source's log ends.
    Position,
    /// A look at the signatures.
    Schema,
    /// A look at whether entities are joining.
    Joining,
    /// A look at some tables in full.
    FullLook,
}

/// How often each is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Periods {
    pub(super) heartbeat: Duration,
    pub(super) position: Duration,
    pub(super) schema: Duration,
    pub(super) joining: Duration,
    pub(super) full_look: Duration,
}

/// One thing is done at a time. Staleness is measured by heartbeats, so they come before whatever else is due; but what is
/// done is due again one period after its end, whatever it took: where answers take longer than the periods, all have their
/// turn.
pub(super) struct Timetable {
    heartbeat: Interval,
    position: Interval,
    schema: Interval,
    joining: Interval,
    full_look: Interval,
}

impl Timetable {
    /// The first three are due at once.
    pub(super) fn new(periods: Periods) -> Timetable {
        Timetable {
            heartbeat: ticks(Duration::ZERO, periods.heartbeat),
            position: ticks(Duration::ZERO, periods.position),
            schema: ticks(Duration::ZERO, periods.schema),
            joining: ticks(periods.joining, periods.joining),
            full_look: ticks(periods.full_look, periods.full_look),
        }
    }

    /// Waits for what is due next. [`Timetable::done`] is to be told when that is done.
    pub(super) async fn next(&mut self) -> Due {
        let others = async {
            // In no order: none of them waits for ever.
            tokio::select! {
                _ = self.position.tick() => Due::Position,
                _ = self.schema.tick() => Due::Schema,
                _ = self.joining.tick() => Due::Joining,
                _ = self.full_look.tick() => Due::FullLook,
            }
        };
        tokio::select! {
            biased;
            _ = self.heartbeat.tick() => Due::Heartbeat,
            due = others => due,
        }
    }

    /// What was due is done.
    pub(super) fn done(&mut self, due: Due) {
        match due {
            Due::Heartbeat => self.heartbeat.reset(),
            Due::Position => self.position.reset(),
            Due::Schema => self.schema.reset(),
            Due::Joining => self.joining.reset(),
            Due::FullLook => self.full_look.reset(),
        }
    }
}

fn ticks(first: Duration, period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + first, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn all_have_their_turn_where_each_takes_longer_than_its_period() {
        let period = Duration::from_millis(1);
        let periods =
            Periods { heartbeat: period, position: period, schema: period, joining: period, full_look: period };
        let mut timetable = Timetable::new(periods);
        assert_eq!(timetable.next().await, Due::Heartbeat, "they come first");
        timetable.done(Due::Heartbeat);
        let (mut had, mut rounds) = (HashSet::new(), 0);
        while had.len() < 5 {
            rounds += 1;
            assert!(rounds < 1000, "{had:?}");
            let due = timetable.next().await;
            had.insert(due);
            tokio::time::sleep(2 * period).await;
            timetable.done(due);
        }
    }
}
