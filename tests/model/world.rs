//! The whole state: Postgres, Redis, leaders, instances, readers; and the steps between states.

use std::fmt;

use crate::instance::{Instance, InstanceStep};
use crate::leader::{self, Leader, LeaderStep, Who};
use crate::properties::{self, Violation};
use crate::reader::{self, Reader, ReaderStep};
use crate::redis::{Authority, Cell, Fence, Redis};
use crate::scenario::{INSTANCES, Lsn, READERS, Scenario, Value};

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// Transactions whose commit record is in the WAL; the insert position is the end of the last of them.
    pub committed: u8,
    /// Bit `i`: new snapshots on the primary see transaction `i`.
    pub visible: u8,
    /// Transactions replayed by the standby, and visible there.
    pub standby: u8,
    /// Transactions that the slot has confirmed.
    pub confirmed: u8,
    /// The sequence in the source database from which epochs and generations are drawn.
    pub sequence: u8,
    pub redis: Redis,
    /// What Redis has saved, and may come back with.
    pub saved: Option<Redis>,
    pub leader: Option<Leader>,
    pub resumed: Option<Leader>,
    /// The `hw` that a new leader has read before it took over, where that is not one step.
    pub peeked: Option<Lsn>,
    pub instances: [Instance; INSTANCES],
    pub readers: [Reader; READERS],
    /// Transactions all of whose scripts were run at least once (nobody in the model sees this).
    pub applied: u8,
    pub crashes: u8,
    pub restarts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next transaction's commit record is written.
    Commit,
    /// Transaction `i` leaves the proc array.
    Show(u8),
    /// The standby replays one more transaction.
    Replay,
    /// An entry or a lease is evicted or expires.
    Evict(usize),
    /// The feed is trimmed: its oldest message goes (never its newest).
    TrimFeed,
    /// Redis writes its state to disk.
    Save,
    /// Redis restarts empty.
    LoseAll,
    /// Redis restarts with what it has saved.
    GoBack,
    Leader(Who, LeaderStep),
    Instance(usize, InstanceStep),
    Reader(usize, ReaderStep),
}

impl World {
    /// Everything is empty, and a first leader has taken over.
    pub fn start(s: &Scenario) -> World {
        let fence = Fence { hw: 0, done: 0, epoch: 1, generation: 1 };
        let redis = Redis { fence: Some(fence), feed_generation: 1, ..Redis::EMPTY };
        let authority = Authority { epoch: 1, takeover: 0 };
        let reader = |r| Reader::new(if r < s.readers { s.reads } else { 0 });
        World {
            committed: 0,
            visible: 0,
            standby: 0,
            confirmed: 0,
            sequence: 1,
            redis,
            saved: None,
            leader: Some(Leader { authority, next: 0, phase: leader::Phase::Idle }),
            resumed: None,
            peeked: None,
            instances: [Instance::new(1); INSTANCES],
            readers: [reader(0), reader(1)],
            applied: 0,
            crashes: s.crashes,
            restarts: s.restarts,
        }
    }

    /// What a new snapshot on the primary shows.
    pub fn on_primary(&self, s: &Scenario, key: usize) -> Value {
        s.value(key, self.committed, self.visible)
    }

    /// What a new snapshot on the standby shows: all that was replayed, whether the primary shows it or not.
    pub fn on_standby(&self, s: &Scenario, key: usize) -> Value {
        s.value(key, self.standby, !0)
    }

    /// Calls `found` with every step that is possible here.
    pub fn steps(&self, s: &Scenario, mut found: impl FnMut(Step)) {
        if self.committed < s.count() && self.locks_free(s) {
            found(Step::Commit);
        }
        for i in (0..self.committed).filter(|i| self.visible & 1 << i == 0) {
            found(Step::Show(i));
        }
        if s.standby && self.standby < self.committed {
            found(Step::Replay);
        }
        for key in (0..s.keys).filter(|&k| self.redis.cells[k] != Cell::Absent) {
            found(Step::Evict(key));
        }
        if s.trims && self.redis.feed.count_ones() > 1 {
            found(Step::TrimFeed);
        }
        if self.restarts > 0 {
            found(Step::LoseAll);
            match &self.saved {
                None => found(Step::Save),
                Some(_) => found(Step::GoBack),
            }
        }
        leader::steps(self, s, |who, step| found(Step::Leader(who, step)));
        for (i, instance) in self.instances[..s.instances].iter().enumerate() {
            instance.steps(&self.redis, s, |step| found(Step::Instance(i, step)));
        }
        for (r, reader) in self.readers[..s.readers].iter().enumerate() {
            reader.steps(self, s, |step| found(Step::Reader(r, step)));
        }
    }

    /// Whether a leader or Redis may fail from here on, so that what was confirmed matters.
    pub fn may_fail(&self) -> bool {
        self.crashes > 0 || self.restarts > 0
    }

    /// Sets to one value what can make no difference any more, so that fewer states are visited.
    fn forget(&mut self, s: &Scenario) {
        if !self.may_fail() && self.leader.is_some() {
            self.confirmed = 0;
            self.applied = 0;
        }
        for reader in &mut self.readers[..s.readers] {
            reader.forget();
        }
    }

    /// Row locks are let go only when a transaction becomes visible: whoever writes the same key commits after that.
    fn locks_free(&self, s: &Scenario) -> bool {
        let next = &s.transactions[self.committed as usize];
        let shares_key = |i: &u8| (0..s.keys).any(|k| next.touches(k) && s.transactions[*i as usize].touches(k));
        (0..self.committed).filter(shares_key).all(|i| self.visible & 1 << i != 0)
    }

    /// The state after `step`, or what that step violated.
    pub fn after(&self, s: &Scenario, step: Step) -> Result<World, Violation> {
        let mut w = self.clone();
        match step {
            Step::Commit => w.committed += 1,
            Step::Show(i) => w.visible |= 1 << i,
            Step::Replay => w.standby += 1,
            Step::Evict(key) => w.redis.cells[key] = Cell::Absent,
            Step::TrimFeed => w.redis.feed &= w.redis.feed - 1,
            Step::Save => w.saved = Some(w.redis),
            Step::LoseAll => w.restart_redis(Redis::EMPTY, s),
            Step::GoBack => w.restart_redis(w.saved.unwrap_or(Redis::EMPTY), s),
            Step::Leader(who, step) => leader::take(&mut w, s, who, step)?,
            Step::Instance(i, step) => w.instances[i].take(&self.redis, s, step),
            Step::Reader(r, step) => reader::take(&mut w, s, r, step)?,
        }
        properties::judge_state(&w, s)?;
        w.forget(s);
        Ok(w)
    }

    /// All connections break. Leaders are none any more until they hold the slot and have taken over again.
    fn restart_redis(&mut self, with: Redis, s: &Scenario) {
        self.restarts -= 1;
        self.redis = with;
        self.saved = None;
        let stays = !s.keeps(crate::scenario::Rule::TakeoverPerConnection)
            && self.leader.is_some_and(|l| with.proven(s).is_some_and(|proven| proven >= crate::scenario::end(l.next)));
        if !stays {
            self.leader = None;
        }
        self.resumed = None;
        self.peeked = None;
        for instance in &mut self.instances {
            instance.trusts_l2 = false;
        }
    }

    /// The end of the WAL.
    pub fn insert_position(&self) -> Lsn {
        crate::scenario::end(self.committed)
    }
}

/// One line for a trace.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wal={} visible={:b}", self.insert_position(), self.visible)?;
        match self.redis.fence {
            Some(n) => {
                write!(f, " fence[hw={} done={} epoch={} gen={}]", n.hw, n.done, n.epoch, n.generation)?;
            }
            None => write!(f, " fence[none]")?,
        }
        for (key, cell) in self.redis.cells.iter().enumerate() {
            match cell {
                Cell::Absent => {}
                Cell::Lease(token) => write!(f, " k{key}=lease#{token:x}")?,
                Cell::Entry(e) => {
                    let flag = if e.split { " split" } else { "" };
                    write!(f, " k{key}={{lo={} hi={} v={:x} gen={}{flag}}}", e.lo, e.hi, e.value, e.generation)?;
                }
            }
        }
        for instance in &self.instances {
            write!(f, " W={}", instance.watermark())?;
            for (key, entry) in instance.l1.iter().enumerate() {
                if let Some(e) = entry {
                    let fence = instance.fences[key];
                    write!(f, " l1.k{key}={{v={:x} as_of={} fence={fence}}}", e.value, e.as_of)?;
                }
            }
        }
        Ok(())
    }
}
