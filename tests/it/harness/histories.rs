//! What the writers of a load have done to each row, against which every answer is judged.

use parking_lot::Mutex;
use walcache::lsn::Lsn;

/// The states of each row in the order in which its one writer made them.
#[derive(Debug)]
pub struct Histories {
    rows: Vec<Mutex<Vec<State>>>,
}

/// One state of one row.
#[derive(Debug, Clone, Copy)]
struct State {
    /// The row's version; `None`: there is no row.
    value: Option<i64>,
    /// A position of the log before the commit, where one is known.
    after: Option<Lsn>,
    /// A position at or above the commit; `None` while it is under way, or if its outcome is unknown.
    done: Option<Lsn>,
}

/// What an answer claims of itself.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Everything committed up to here is in it.
    pub lo: Lsn,
    /// Nothing committed after here is in it, where it says so.
    pub hi: Option<Lsn>,
    /// The state that this reader has seen before.
    pub floor: usize,
}

impl Histories {
    /// Of `rows` rows that are not there yet.
    pub fn new(rows: usize) -> Self {
        let absent = State { value: None, after: Some(Lsn::ZERO), done: Some(Lsn::ZERO) };
        Histories { rows: (0..rows).map(|_| Mutex::new(vec![absent])).collect() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Before a write: it may be seen from now on.
    pub fn begin(&self, row: usize, value: Option<i64>, after: Option<Lsn>) {
        self.rows[row].lock().push(State { value, after, done: None });
    }

    /// The write that was begun last was acknowledged.
    pub fn done(&self, row: usize, at: Lsn) {
        self.rows[row].lock().last_mut().expect("a write was begun").done = Some(at);
    }

    /// Judges an answer; gives the oldest state that it may be, as the floor of what the same reader reads next.
    ///
    /// # Errors
    /// What the answer should have been.
    pub fn judge(&self, row: usize, value: Option<i64>, claim: Claim) -> Result<usize, String> {
        let states = self.rows[row].lock();
        let required = states.iter().rposition(|s| s.done.is_some_and(|done| done <= claim.lo)).unwrap_or(0);
        let from = required.max(claim.floor);
        let describe = |why: &str| {
            let tail = &states[from.min(required).saturating_sub(2)..];
            let shown = &tail[..tail.len().min(12)];
            Err(format!("row {row}: read {value:?} with {claim:?}: {why}; required state {required}, shown {shown:?}"))
        };
        let Some(found) = (from..states.len()).find(|i| states[*i].value == value) else {
            return describe(if claim.floor > required { "went backwards" } else { "older than it says" });
        };
        // A state whose commit lies after `hi` cannot be in there. A later state of the same value tells nothing more.
        if let (Some(hi), Some(after)) = (claim.hi, states[found].after)
            && after > hi
        {
            return describe("newer than it says");
        }
        Ok(found)
    }
}
