//! Changes with gaps: what an update leaves alone of large values is not in the stream, and is filled from the row's image
//! before: an earlier change of the same batch, or the entry that stands in L2.
//!
//! A piece of a transaction takes what an earlier piece has written for the row before, unless it may be a replay.
//!
//! All changes with gaps have the same. An image whose gaps were filled from a state of the row that may have other values
//! there counts as never committed.

use crate::redis::{Cell, Redis};
use crate::rule::Rule;
use crate::scenario::{Generation, Lsn, Scenario, Value, uncommitted};
use crate::scripts::{Authority, Failed};
use crate::voids::Floors;
use crate::work::value_after;

/// An image with gaps, as batched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    pub key: usize,
    /// The transaction of the first change and of the last one that it is made of.
    pub since: u8,
    pub upto: u8,
    pub label: Lsn,
    /// The largest label in its batch.
    pub high: Lsn,
    /// Of a piece: the position of its change in its transaction.
    pub piece: Option<u8>,
}

/// What has become of the gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gaps {
    /// They could not be filled: the entry is dropped.
    Left,
    Filled(Value),
    /// The entry contains the change: there is nothing to do.
    Contained,
}

/// Stands for the change that a torn image says it is after.
const TORN: usize = 0xF;

impl Image {
    /// Whether a value has what the gaps of a whole transaction's image leave out: it was left by one of the transactions that
    /// it is made of, in whole or in part, or by the one before. All of their changes of the key have gaps where it has.
    fn is_known_from(&self, value: Value, s: &Scenario) -> bool {
        let is_amid = |i: u8| (uncommitted(i, 0)..uncommitted(i, TORN)).contains(&value);
        let before = s.value(self.key, self.since, !0);
        (before..=self.upto + 1).contains(&value) || (self.since..=self.upto).any(is_amid)
    }

    /// The image with its gaps filled from a value.
    fn filled_from(&self, value: Value, s: &Scenario) -> Value {
        let before = s.value(self.key, self.since, !0);
        let changes = s.transactions[self.upto as usize].changes;
        let earlier = |n: u8| changes[..n as usize].iter().rposition(|&c| s.touches(c, self.key));
        match (self.piece, self.piece.and_then(earlier)) {
            (None, _) if self.is_known_from(value, s) => self.upto + 1,
            (Some(n), None) if value == before => value_after(s, changes, self.upto, n as usize, self.key),
            (Some(n), Some(m)) if value == uncommitted(self.upto, m) => {
                value_after(s, changes, self.upto, n as usize, self.key)
            }
            _ => uncommitted(self.upto, TORN),
        }
    }
}

impl Redis {
    /// `predecessors.lua`, and what the leader makes of what it returns.
    pub fn fill_gaps(
        &mut self,
        image: Image,
        planned: Generation,
        floors: Floors,
        by: Authority,
        s: &Scenario,
    ) -> Result<Gaps, Failed> {
        self.fence_for(by, s)?;
        let Cell::Entry(e) = self.cells[image.key] else { return Ok(Gaps::Left) };
        let voided = !floors.admit(image.key, &e, s) && s.keeps(Rule::PredecessorNotVoided);
        let other = e.generation != planned && s.keeps(Rule::PredecessorOfGeneration);
        let c = image.label;
        let earlier_piece = e.split && image.piece.is_some() && e.lo == c && c > by.takeover;
        Ok(if voided || other {
            Gaps::Left
        } else if e.hi < c || earlier_piece || !s.keeps(Rule::PredecessorBeforeChange) {
            Gaps::Filled(image.filled_from(e.value, s))
        } else if e.lo > c || (e.lo == c && !e.split) {
            Gaps::Contained
        } else {
            Gaps::Left
        })
    }
}
