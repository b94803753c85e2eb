//! What was written to each row, and the one judge of what is read.
//!
//! The judge, [`Row::judge`], is a function of a row's recorded history and of what an answer claims: nothing that was
//! never committed (phantom), nothing older than the answer says (O3), nothing before what the same reader saw (O2),
//! nothing beyond what it says. Whoever writes records a transaction before it may commit, and afterwards how it ended:
//! [`Histories::begin`], [`Transaction::committed`], [`Transaction::aborted`]. Versions are unique and grow along a
//! row's history, so a version tells its transaction.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use walcache::lsn::Lsn;

/// The states of one row in the order of their commits.
#[derive(Debug, Clone)]
pub struct Row {
    /// How many older states were forgotten.
    forgotten: usize,
    /// The largest version among those.
    forgotten_version: Option<i64>,
    /// Never empty.
    states: VecDeque<State>,
}

/// One state of one row.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// The row's version; `None`: there is no row.
    pub value: Option<i64>,
    /// The transaction that made it.
    pub transaction: u64,
    /// A position of the log before the commit, where one is known.
    pub after: Option<Lsn>,
    /// A position at or above the commit; `None` while it is under way, or if its outcome is unknown.
    pub done: Option<Lsn>,
    /// Somebody read it before its outcome was known.
    pub seen: bool,
}

/// What an answer claims of itself, and what was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claim {
    /// Everything committed up to here is in it.
    pub lo: Lsn,
    /// Nothing committed after here is in it, where it says so.
    pub hi: Option<Lsn>,
    /// The state that this reader has seen before, if it passed the LSN of that answer on.
    pub floor: usize,
    /// `X-Min-LSN`, where one was sent.
    pub demanded: Option<Lsn>,
    /// A transaction that was in another answer, whose LSN was passed on.
    pub contains: Option<u64>,
}

/// What an answer was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The oldest state that it may be: the floor of what the same reader reads next.
    pub state: usize,
    /// The transaction that made it.
    pub transaction: u64,
}

/// What is wrong with an answer or an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A value that was never committed.
    Phantom,
    /// O3: something that was committed up to where the answer says, or was asked, is missing.
    Stale,
    /// O2: older than what the same reader had seen.
    Backwards,
    /// Newer than the answer says.
    Ahead,
    /// Lacks a transaction that was in another answer, whose LSN was passed on.
    Torn,
    /// `X-Read-LSN` is below the `X-Min-LSN` that was asked for.
    Refused,
    /// O1: once all was applied, it differs from Postgres.
    Differs,
    /// O4: the slot has confirmed what was not applied.
    Unapplied,
    /// The daemon ended by itself.
    Exited,
}

/// A violation of an oracle.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Of what kind.
    pub kind: Kind,
    /// Where, and what should have been.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

impl Row {
    /// A row that is not there yet.
    pub fn new() -> Self {
        let absent = State { value: None, transaction: 0, after: Some(Lsn::ZERO), done: Some(Lsn::ZERO), seen: false };
        Row { forgotten: 0, forgotten_version: None, states: VecDeque::from([absent]) }
    }

    /// Adds a state that may be seen from now on.
    pub fn begin(&mut self, value: Option<i64>, transaction: u64, after: Option<Lsn>) {
        self.states.push_back(State { value, transaction, after, done: None, seen: false });
    }

    /// The newest state was committed, at or before `at`.
    pub fn commit(&mut self, at: Lsn) {
        if let Some(state) = self.states.back_mut() {
            state.done = Some(at);
        }
    }

    /// The newest state.
    pub fn newest(&self) -> State {
        *self.states.back().expect("a row has a state")
    }

    /// Judges an answer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(&self, value: Option<i64>, claim: Claim) -> Result<Found, Kind> {
        if claim.hi.zip(claim.demanded).is_some_and(|(hi, demanded)| hi < demanded) {
            return Err(Kind::Refused);
        }
        let last = |wanted: &dyn Fn(&State) -> bool| self.states.iter().rposition(wanted);
        let up_to = claim.lo.max(claim.demanded.unwrap_or_default());
        let required = last(&|state| state.done.is_some_and(|done| done <= up_to));
        let floor = claim.floor.checked_sub(self.forgotten).filter(|_| claim.floor > 0);
        let partner = claim.contains.and_then(|transaction| last(&|state| state.transaction == transaction));
        // `None` where nothing is required, or something that was forgotten.
        let from = required.max(floor).max(partner);
        let forgotten = match value {
            Some(_) => value <= self.forgotten_version,
            None => self.forgotten > 0,
        };
        let found = (from.unwrap_or(0)..self.states.len()).find(|i| self.states[*i].value == value);
        let ahead = found.is_some_and(|i| claim.hi.zip(self.came_about(i)).is_some_and(|(hi, after)| after > hi));
        if from.is_none() && forgotten && (found.is_none() || ahead) {
            // Honest about its age, and so old that what it was is not known any more.
            return Ok(Found { state: 0, transaction: 0 });
        }
        let Some(found) = found else {
            let newest = last(&|state| state.value == value);
            return match newest {
                None if !forgotten => Err(Kind::Phantom),
                _ if newest < required => Err(Kind::Stale),
                _ if newest < floor => Err(Kind::Backwards),
                _ => Err(Kind::Torn),
            };
        };
        if ahead {
            // Absence comes more than once: an old one is likelier than one to come.
            let old = self.states.range(..from.unwrap_or(0)).any(|state| state.value == value);
            return Err(if old { Kind::Stale } else { Kind::Ahead });
        }
        Ok(Found { state: self.forgotten + found, transaction: self.states[found].transaction })
    }

    /// Whether an answer with this claim may show a state like that.
    fn may_be(&self, claim: Claim, like: &dyn Fn(Option<i64>) -> bool) -> bool {
        let up_to = claim.lo.max(claim.demanded.unwrap_or_default());
        let required = self.states.iter().rposition(|state| state.done.is_some_and(|done| done <= up_to));
        let ahead = |i: usize| claim.hi.zip(self.came_about(i)).is_some_and(|(hi, after)| after > hi);
        (required.is_none() && self.forgotten > 0)
            || (required.unwrap_or(0)..self.states.len()).any(|i| like(self.states[i].value) && !ahead(i))
    }

    /// A position of the log before the commit that made a state's value what it is: to delete what is not there changes
    /// nothing, and what is in between may not have been committed.
    fn came_about(&self, state: usize) -> Option<Lsn> {
        let value = self.states[state].value;
        let before = self.states.range(..=state).rev().take_while(|s| s.value == value || s.done.is_none());
        before.filter(|s| s.value == value).last().and_then(|s| s.after)
    }

    /// The states about which an answer was judged, for a message.
    fn excerpt(&self, claim: &Claim) -> String {
        let from = self.states.iter().rposition(|s| s.done.is_some_and(|done| done <= claim.lo)).unwrap_or(0);
        let shown: Vec<String> = self
            .states
            .iter()
            .enumerate()
            .skip(from.saturating_sub(2))
            .take(8)
            .map(|(i, s)| format!("{i}: {s:?}"))
            .collect();
        format!("{} states, those from {from} are new enough: {shown:#?}", self.states.len())
    }

    /// Forgets all states before the newest that is known to be committed. No answer may be under way.
    fn forget(&mut self) {
        let count = self.states.iter().rposition(|state| state.done.is_some()).unwrap_or(0);
        if let Some(newest) = self.states.get(count).map(|_| self.came_about(count)) {
            self.states[count].after = newest;
        }
        let versions = self.states.drain(..count).filter_map(|state| state.value).max();
        self.forgotten_version = self.forgotten_version.max(versions);
        self.forgotten += count;
    }
}

/// The histories of all rows.
#[derive(Debug)]
pub struct Histories {
    rows: Vec<Mutex<Row>>,
    /// Held by whoever writes a row: so the order of the commits is known.
    turns: Vec<tokio::sync::Mutex<()>>,
    versions: AtomicI64,
    transactions: AtomicU64,
}

/// The exclusive right to write some rows.
pub struct Turns<'a> {
    histories: &'a Histories,
    _guards: Vec<MutexGuard<'a, ()>>,
}

/// A transaction that was recorded and whose outcome is not known yet.
pub struct Transaction<'a> {
    turns: Turns<'a>,
    /// Its number.
    pub number: u64,
    rows: Vec<usize>,
}

impl Histories {
    /// Of `rows` rows that are not there yet.
    pub fn new(rows: usize) -> Self {
        Histories {
            rows: (0..rows).map(|_| Mutex::new(Row::new())).collect(),
            turns: (0..rows).map(|_| tokio::sync::Mutex::default()).collect(),
            // Above what tests write by hand.
            versions: AtomicI64::new(1_000_000),
            transactions: AtomicU64::new(1),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// A version that no other write has, larger than all before.
    pub fn version(&self) -> i64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for the exclusive right to write these rows.
    pub async fn turns(&self, rows: &BTreeSet<usize>) -> Turns<'_> {
        let mut guards = Vec::with_capacity(rows.len());
        // In order: nobody waits for whom it keeps waiting.
        for row in rows {
            guards.push(self.turns[*row].lock().await);
        }
        Turns { histories: self, _guards: guards }
    }

    /// As [`Histories::turns`], for every row.
    pub async fn all_turns(&self) -> Turns<'_> {
        self.turns(&(0..self.len()).collect()).await
    }

    /// The newest state of a row.
    pub fn newest(&self, row: usize) -> State {
        self.rows[row].lock().newest()
    }

    /// Judges an answer, and remembers if it shows what may not be committed yet.
    ///
    /// # Errors
    /// What the answer should have been.
    pub fn judge(&self, row: usize, value: Option<i64>, claim: Claim) -> Result<Found, Violation> {
        let mut history = self.rows[row].lock();
        match history.judge(value, claim) {
            Ok(found) => {
                let at = found.state.checked_sub(history.forgotten);
                if let Some(state) = at.and_then(|at| history.states.get_mut(at)) {
                    state.seen |= state.done.is_none();
                }
                Ok(found)
            }
            Err(kind) => {
                let what = format!("row {row}: read {value:?} with {claim:?}; {}", history.excerpt(&claim));
                Err(Violation { kind, what })
            }
        }
    }

    /// Whether an answer with this claim may show a state of a row like that.
    pub fn may_be(&self, row: usize, claim: Claim, like: &dyn Fn(Option<i64>) -> bool) -> bool {
        self.rows[row].lock().may_be(claim, like)
    }

    /// Forgets the states before the newest ones. Nothing may be read or written meanwhile.
    pub fn forget(&self) {
        self.rows.iter().for_each(|row| row.lock().forget());
    }
}

impl<'a> Turns<'a> {
    /// Records a transaction before it may commit: it may be seen from now on.
    pub fn begin(self, changes: &BTreeMap<usize, Option<i64>>, after: Option<Lsn>) -> Transaction<'a> {
        let number = self.histories.transactions.fetch_add(1, Ordering::Relaxed);
        for (row, value) in changes {
            self.histories.rows[*row].lock().begin(*value, number, after);
        }
        Transaction { turns: self, number, rows: changes.keys().copied().collect() }
    }
}

impl Transaction<'_> {
    /// It was committed, at or before `at`.
    pub fn committed(self, at: Lsn) {
        for row in &self.rows {
            self.turns.histories.rows[*row].lock().commit(at);
        }
    }

    /// It was not committed and never will be. Whoever has read something of it has read what never was.
    pub fn aborted(self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for row in &self.rows {
            let state = self.turns.histories.rows[*row].lock().states.pop_back();
            if let Some(state) = state.filter(|state| state.seen) {
                let what = format!("row {row}: {state:?} was read, and was rolled back");
                violations.push(Violation { kind: Kind::Phantom, what });
            }
        }
        violations
    }
}
