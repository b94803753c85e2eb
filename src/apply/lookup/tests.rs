use std::sync::Arc;

use super::*;
use crate::apply::batch::{self, Assembler};
use crate::cache::voids::Voids;
use crate::cache::watermark::Watermark;
use crate::entity::{Definition, Entity, Shape, Standing};
use crate::gate::Snapshot;
use crate::plan::Effect;

const SEEN: u32 = 5;
const UNSEEN: u32 = 20;
/// Up to here the round's snapshot sees.
const END: u64 = 100;

const LIMITS: Limits = Limits {
    max_lookups: 3,
    max_distance: u64::MAX,
    timeout: Duration::from_secs(1),
    hold: Duration::from_secs(1),
    max_bytes: 10_000,
};

/// Lookups of three entities, without a connection: what a round would ask is not asked.
struct Fixture {
    lookups: Lookups,
    hierarchy: Hierarchy,
    metrics: ApplyMetrics,
}

impl Fixture {
    /// With a round that is open, or none.
    fn new(limits: Limits, round: bool) -> Fixture {
        let entity = |id| Arc::new(Entity::new(id, Definition::rows("it", "public", "rows"), "", Shape::unknown(0)));
        let (watermark, voids) = (Watermark::default(), Voids::new(3));
        let entities = (0..3).map(entity).collect();
        let hierarchy = Hierarchy { entities, l1: None, l2: None, watermark, voids };
        let mut lookups = Lookups::new(limits, SourceConfig::default(), None, Box::new(|_| ()));
        let view = View { snapshot: Snapshot::parse("10:10:").unwrap(), end: Lsn::from_u64(END) };
        lookups.round = round.then(|| Round::new(view));
        // A round that would be opened is not: all that it would be asked is voided.
        lookups.away_until = Some(Instant::now() + Duration::from_secs(3600));
        Fixture { lookups, hierarchy, metrics: ApplyMetrics::new(["a", "b", "c"]) }
    }

    /// Answers a batch, and publishes what it says; gives the entities that are voided, and what is published.
    async fn answer(&mut self, mut batch: Batch) -> (Vec<usize>, Option<u64>, Vec<i64>) {
        self.lookups.answer(&mut batch, &self.hierarchy, &self.metrics).await;
        batch.progress.into_iter().for_each(|lsn| self.hierarchy.watermark.advance(lsn));
        self.lookups.close(&self.metrics).await;
        (batch.discard.into_keys().collect(), batch.progress.map(Lsn::as_u64), batch.commits)
    }

    /// Gives up the round that is open.
    async fn give_up(&mut self) -> (Vec<usize>, Option<u64>, Vec<i64>) {
        let mut batch = Batch::default();
        self.lookups.void_round(&mut batch, &self.hierarchy, &self.metrics);
        self.answer(batch).await
    }

    /// As if a batch had asked this in the round that is open; gives how many are to be run, and the entities that are
    /// voided.
    fn sort(&mut self, asked: IndexMap<Lookup, Asked>) -> (usize, Vec<usize>) {
        let (mut batch, mut now) = (Batch::default(), Vec::new());
        let Fixture { lookups, hierarchy, metrics } = self;
        lookups.sort(asked, &mut now, &mut Voiding { batch: &mut batch, hierarchy, metrics });
        let count = now.len();
        if let Some(round) = &mut lookups.round {
            round.answered_bytes += now.iter().map(|(lookup, _)| lookup.held()).sum::<usize>();
            round.answered.extend(now.drain(..).map(|(lookup, _)| lookup));
        }
        (count, batch.discard.into_keys().collect())
    }
}

/// A transaction: its id, where it ends (its commit time says the same), and the entities that it asks for lookups, each with
/// the value that it is given.
type Transaction<'a> = (u32, u64, &'a [(usize, &'a str)]);

fn batch(transactions: &[Transaction<'_>]) -> Batch {
    let limits = batch::Limits { max_batch_events: 100, max_batch_bytes: 1 << 20, max_transaction_bytes: 1 << 20 };
    let mut assembler = Assembler::new(limits);
    for &(xid, end, lookups) in transactions {
        assembler.begin(xid, Lsn::from_u64(end - 1), end.cast_signed());
        let lookup = |(entity, value): &(usize, &str)| Effect::Lookup {
            entity: *entity,
            rule: 0,
            values: vec![Some(value.as_bytes().to_vec())],
        };
        assembler.effects(&mut lookups.iter().map(lookup).collect());
        assembler.commit(Lsn::from_u64(end));
    }
    assembler.take()
}

fn asked(entity: usize, value: &str, xid: u32) -> IndexMap<Lookup, Asked> {
    batch(&[(xid, 90, &[(entity, value)])]).lookups
}

/// However few they are: a value may be large.
#[test]
fn lookups_that_wait_or_were_answered_are_bounded_in_bytes() {
    let mut it = Fixture::new(LIMITS, true);
    let large = "x".repeat(4000);
    assert_eq!(it.sort(asked(0, &large, UNSEEN)), (0, vec![]));
    assert_eq!(it.sort(asked(1, &large, SEEN)), (1, vec![]));
    assert_eq!((it.lookups.deferred.len(), it.lookups.round.as_ref().unwrap().answered.len()), (1, 1));
    // One more is too much: what waits is voided, and what was answered, so that neither need be held.
    assert_eq!(it.sort(asked(2, &large, UNSEEN)), (0, vec![0, 1, 2]));
    let round = it.lookups.round.as_ref().unwrap();
    assert_eq!((it.lookups.deferred.len(), round.answered.len(), round.answered_bytes), (0, 0, 0));
}

#[test]
fn lookups_of_a_round_are_asked_once_and_counted_together() {
    let mut it = Fixture::new(LIMITS, true);
    for value in ["a", "b", "c"] {
        assert_eq!(it.sort(asked(0, value, SEEN)), (1, vec![]));
        assert_eq!(it.sort(asked(0, value, SEEN)), (0, vec![]), "it was asked before");
        assert_eq!(it.sort(asked(1, value, SEEN)), (1, vec![]), "that of another entity was not");
    }
    assert_eq!(it.sort(asked(0, "d", SEEN)), (0, vec![0]));
    // Those that wait are counted by themselves. More of them may be to come of the same transaction, which only a round that
    // sees it can spare: so nothing may hold this one any longer.
    let mut it = Fixture::new(LIMITS, true);
    assert_eq!(it.sort(asked(1, "a", SEEN)), (1, vec![]));
    for value in ["a", "b", "c"] {
        assert_eq!(it.sort(asked(0, value, UNSEEN)), (0, vec![]));
    }
    assert_eq!(it.sort(asked(0, "d", UNSEEN)), (0, vec![0, 1]));
    assert!(it.lookups.deferred.is_empty() && it.lookups.round.unwrap().entities.is_empty());
}

#[tokio::test]
async fn nothing_is_published_before_what_a_round_sees_nor_beyond_what_waits() {
    let mut it = Fixture::new(LIMITS, true);
    assert_eq!(it.answer(batch(&[(SEEN, 80, &[(0, "a")])])).await, (vec![], None, vec![]));
    assert_eq!(it.answer(batch(&[(6, END - 1, &[])])).await, (vec![], None, vec![]));
    // The round's end is reached. What it does not see waits for the next one: up to before that is published.
    let waits: &[(usize, &str)] = &[(0, "b"), (1, "b")];
    assert_eq!(it.answer(batch(&[(UNSEEN, 110, waits)])).await, (vec![], Some(99), vec![80, 99]));
    assert!(it.lookups.round.is_none() && it.lookups.are_due());
    assert_eq!(it.lookups.deferred.values().map(|lsn| lsn.as_u64()).collect::<Vec<_>>(), [110, 110]);
    // No round can be opened: what waits is voided, too.
    assert_eq!(it.answer(batch(&[(30, 120, &[(2, "c")])])).await, (vec![0, 1, 2], Some(120), vec![110, 120]));
    assert!(!it.lookups.are_open());
}

/// One lookup that two transactions want, of which the round sees one: it is asked now, and again in the next one.
#[tokio::test]
async fn what_only_some_of_its_transactions_are_seen_of_is_asked_twice() {
    let mut it = Fixture::new(LIMITS, true);
    let both = || batch(&[(SEEN, 90, &[(0, "a")]), (UNSEEN, 95, &[(0, "a")])]);
    assert_eq!(it.sort(both().lookups), (1, vec![]));
    assert_eq!(it.lookups.deferred.len(), 1);
    assert_eq!(it.lookups.round.as_ref().unwrap().answered.len(), 1);
    // As long as it waits, nothing beyond is published, whatever the round has reached.
    let mut it = Fixture::new(LIMITS, true);
    assert_eq!(it.answer(both()).await, (vec![], None, vec![]));
    assert_eq!(it.answer(batch(&[(30, 120, &[])])).await, (vec![], None, vec![]));
    assert!(it.lookups.are_due());
}

#[tokio::test]
async fn a_round_that_is_given_up_holds_nothing_back() {
    let mut it = Fixture::new(LIMITS, true);
    assert_eq!(it.answer(batch(&[(SEEN, 80, &[(0, "a"), (1, "a")])])).await, (vec![], None, vec![]));
    let (mut voided, published, commits) = it.give_up().await;
    voided.sort_unstable();
    assert_eq!((voided, published, commits), (vec![0, 1], Some(80), vec![80]));
    assert!(!it.lookups.are_open());
    // What the round saw of these entities needs no lookup. What it did not see does, and so do other entities.
    assert_eq!(it.answer(batch(&[(6, 90, &[(0, "b"), (1, "b")])])).await, (vec![], Some(90), vec![90]));
    assert_eq!(it.answer(batch(&[(7, 95, &[(0, "c"), (2, "c")])])).await, (vec![2], Some(95), vec![95]));
    assert_eq!(it.answer(batch(&[(UNSEEN, 99, &[(0, "d")])])).await, (vec![0], Some(99), vec![99]));
    // Ids come round: nothing is spared any more once all is applied that it saw.
    assert_eq!(it.answer(batch(&[(21, END, &[])])).await, (vec![], Some(END), vec![100]));
    assert!(it.lookups.spared.is_empty());
    assert_eq!(it.answer(batch(&[(8, 110, &[(0, "e")])])).await, (vec![0], Some(110), vec![110]));
}

/// It is let back into the tiers by a new generation, and what is read from then on has all that has passed the gate.
#[tokio::test]
async fn an_entity_that_is_not_cached_is_not_looked_up() {
    let mut it = Fixture::new(LIMITS, false);
    it.hierarchy.entities[0].set_standing(Standing::Uncached("a test".to_owned()));
    assert_eq!(it.answer(batch(&[(SEEN, 80, &[(0, "a")])])).await, (vec![], Some(80), vec![80]));
    assert_eq!(it.answer(batch(&[(6, 90, &[(0, "a"), (1, "a")])])).await, (vec![1], Some(90), vec![90]));
}

#[test]
fn a_round_wants_the_stream_moved_on_and_then_its_end() {
    let mut it = Fixture::new(LIMITS, false);
    assert_eq!(it.lookups.hold(), Hold::Never);
    let round = Fixture::new(LIMITS, true).lookups.round;
    it.lookups.round = round;
    assert_eq!(it.lookups.hold(), Hold::Nudge);
    let since = it.lookups.round.as_ref().unwrap().since;
    it.lookups.round.as_mut().unwrap().nudged = true;
    assert_eq!(it.lookups.hold(), Hold::Until(since + LIMITS.hold));
}

/// Not the one whose turn it was when the time was over.
#[test]
fn the_entity_that_has_taken_the_time_rests() {
    let second = Duration::from_secs(1);
    let limits = Limits { max_lookups: 1000, max_distance: u64::MAX, timeout: second, hold: second, max_bytes: 10_000 };
    let begin = Instant::now();
    let at = |millis| begin + Duration::from_millis(millis);
    let mut spent = Spent::default();
    spent.go_on(begin);
    for n in 1..=900 {
        spent.on(0, at(2 * n));
    }
    // What passes between two runs is nobody's.
    spent.go_on(at(9000));
    for n in 1..=20 {
        spent.on(1, at(9000 + n));
    }
    let millis = Duration::from_millis;
    assert_eq!(limits.lost(&LookupError::Late(2 * second), 1, &spent), Some((0, millis(1800))));
    // What is refused at once has cost nothing.
    assert_eq!(limits.lost(&LookupError::NoRule("it".into()), 1, &spent), None);
    // One that hangs has taken it all.
    spent.on(2, at(11_000));
    assert_eq!(limits.lost(&LookupError::Late(2 * second), 2, &spent), Some((2, millis(1980))));
}
