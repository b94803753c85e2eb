//! The whole state: Postgres, Redis, leaders, instances, readers, an auditor; and the steps between states.

use std::fmt;

use crate::auditor::{self, AuditStep, Auditor};
use crate::instance::{Instance, InstanceStep};
use crate::leader::{self, Leader, LeaderStep, Phase, Who};
use crate::lookups::Lookups;
use crate::properties::{self, Violation};
use crate::reader::{self, Reader, ReaderStep};
use crate::redis::{Cell, Feed, Fence, Redis};
use crate::renewals::{self, RenewalStep, Renewer};
use crate::rule::Rule;
use crate::scenario::{ENTITIES, Generation, INSTANCES, Lsn, PLANTED, READERS, RENEWERS, Scenario, Value, end};
use crate::scripts::Authority;
use crate::sweep::{self, SweepStep, Sweeper};

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
    pub sequence: Generation,
    pub redis: Redis,
    /// What Redis has saved, and may come back with.
    pub saved: Option<Redis>,
    pub leader: Option<Leader>,
    pub resumed: Option<Leader>,
    /// The `hw` that a new leader has read before it took over, where that is not one step.
    pub peeked: Option<Lsn>,
    /// What an instance has read of the slot before it held it, where that is not one step.
    pub read_confirmed: Option<(u8, u8)>,
    pub instances: [Instance; INSTANCES],
    pub readers: [Reader; READERS],
    pub renewers: [Renewer; RENEWERS],
    pub sweeper: Sweeper,
    pub auditor: Auditor,
    /// Transactions whose effects were all there at least once (nobody in the model sees this).
    pub applied: u8,
    /// The generation of each entity's last finished resync (nor this).
    pub resynced: [Generation; ENTITIES],
    pub crashes: u8,
    pub restarts: u8,
    pub outages: u8,
    pub voids: u8,
    pub renewals: u8,
    pub resyncs: u8,
    pub plants: u8,
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
    /// Redis is emptied, and its connections stand.
    Flush,
    /// Somebody overwrites the value under a key in L2, or in an instance's L1.
    Plant(Option<usize>, usize),
    Leader(Who, LeaderStep),
    Instance(usize, InstanceStep),
    Reader(usize, ReaderStep),
    Renewer(usize, RenewalStep),
    Sweeper(SweepStep),
    Auditor(AuditStep),
}

impl World {
    /// Everything is empty, and a first leader has taken over.
    pub fn start(s: &Scenario) -> World {
        let fence = Fence { hw: Some(0), epoch: 1, generation: 1, ..Fence::BLANK };
        let redis = Redis { fence: Some(fence), feed: Feed { began: 1, ..Feed::EMPTY }, ..Redis::EMPTY };
        let reader = |r| Reader::new(if r < s.readers { s.reads } else { 0 });
        let leader = Leader {
            home: (!s.feed).then_some(0),
            authority: Authority { epoch: 1, takeover: 0, done: 0, broken: false },
            with_l2: true,
            generations: [1; ENTITIES],
            planned: [1; ENTITIES],
            raising: None,
            next: 0,
            lookups: Lookups::from(0),
            phase: Phase::Idle,
        };
        World {
            committed: 0,
            visible: 0,
            standby: 0,
            confirmed: 0,
            sequence: 1,
            redis,
            saved: None,
            leader: Some(leader),
            resumed: None,
            peeked: None,
            read_confirmed: None,
            instances: [Instance::first(1), if s.feed { Instance::first(1) } else { Instance::FRESH }],
            readers: [reader(0), reader(1)],
            renewers: [Renewer::IDLE; RENEWERS],
            sweeper: Sweeper::new(s.sweeps),
            auditor: Auditor::new(s.audits),
            applied: 0,
            resynced: [0; ENTITIES],
            crashes: s.crashes,
            restarts: s.restarts,
            outages: s.outages,
            voids: s.voids,
            renewals: s.renewals,
            resyncs: s.resyncs,
            plants: s.plants,
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

    /// Whether the leader lives in this instance, and has come to lead.
    pub fn leads(&self, instance: u8) -> bool {
        self.leader.is_some_and(|l| l.home == Some(instance) && !matches!(l.phase, Phase::Claiming { .. }))
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
        if s.trims && self.redis.feed.messages.count_ones() > 1 {
            found(Step::TrimFeed);
        }
        if self.restarts > 0 {
            found(Step::LoseAll);
            match &self.saved {
                None => found(Step::Save),
                Some(_) => found(Step::GoBack),
            }
            if s.flushes {
                found(Step::Flush);
            }
        }
        if self.plants > 0 {
            for key in 0..s.keys {
                if let Cell::Entry(_) = self.redis.cells[key] {
                    found(Step::Plant(None, key));
                }
                for i in (0..s.instances).filter(|&i| self.instances[i].l1[key].is_some()) {
                    found(Step::Plant(Some(i), key));
                }
            }
        }
        leader::steps(self, s, |who, step| found(Step::Leader(who, step)));
        for (i, instance) in self.instances[..s.instances].iter().enumerate() {
            if !self.sweeper.is_forgetting(i as u8) {
                instance.steps(&self.redis, s, |step| found(Step::Instance(i, step)));
            }
        }
        for (r, reader) in self.readers[..s.readers].iter().enumerate() {
            reader.steps(self, s, |step| found(Step::Reader(r, step)));
        }
        for (r, renewer) in self.renewers[..s.renewers].iter().enumerate() {
            renewer.steps(self, s, |step| found(Step::Renewer(r, step)));
        }
        sweep::steps(self, s, |step| found(Step::Sweeper(step)));
        self.auditor.steps(self, s, |step| found(Step::Auditor(step)));
    }

    /// Whether a leader or Redis may fail from here on, so that what was confirmed matters.
    pub fn may_fail(&self) -> bool {
        self.crashes > 0 || self.restarts > 0 || self.outages > 0 || self.leader.is_some_and(|l| !l.with_l2)
    }

    /// Sets to one value what can make no difference any more, so that fewer states are visited.
    fn forget(&mut self, s: &Scenario) {
        if !self.may_fail() && self.leader.is_some() {
            self.confirmed = 0;
            self.applied = 0;
        }
        for instance in &mut self.instances[..s.instances] {
            instance.forget(s);
        }
        if s.keeps(Rule::LeaseRequired) {
            self.forget_leases(s);
        }
        for reader in &mut self.readers[..s.readers] {
            reader.forget();
        }
        self.sweeper.forget(self.leader.as_ref());
        self.renewers[..s.renewers].sort();
        self.forget_names(s);
    }

    /// Which reader is which makes no difference, nor which instance.
    fn forget_names(&mut self, s: &Scenario) {
        if s.readers == 2 && self.readers[0] > self.readers[1] {
            self.readers.swap(0, 1);
            for cell in
                self.redis.cells.iter_mut().chain(self.saved.iter_mut().flat_map(|saved| saved.cells.iter_mut()))
            {
                if let Cell::Lease(token @ 0..0x80) = cell {
                    *token ^= 0x10;
                }
            }
        }
        if s.instances == 2 && self.instances[0] > self.instances[1] {
            self.instances.swap(0, 1);
            self.readers.iter_mut().for_each(Reader::swap_instances);
            self.renewers.iter_mut().for_each(Renewer::swap_instances);
            self.sweeper.swap_instances();
            self.auditor.swap_instances();
            for leader in self.leader.iter_mut().chain(&mut self.resumed) {
                leader.home = leader.home.map(|home| home ^ 1);
            }
            self.read_confirmed = self.read_confirmed.map(|(by, confirmed)| (by ^ 1, confirmed));
        }
    }

    /// A lease that nobody holds is as good as any other; a fill whose lease is gone, as any other, too.
    fn forget_leases(&mut self, s: &Scenario) {
        const NOBODY: Cell = Cell::Lease(!0);
        let held: [Option<Cell>; READERS] = std::array::from_fn(|number| self.readers[number].holds(number));
        let mut cells: Vec<&mut Cell> = self.redis.cells.iter_mut().collect();
        if let Some(saved) = &mut self.saved {
            cells.extend(saved.cells.iter_mut());
        }
        for cell in &mut cells {
            if matches!(cell, Cell::Lease(_)) && !held.contains(&Some(**cell)) {
                **cell = NOBODY;
            }
        }
        for (reader, lease) in self.readers.iter_mut().zip(held) {
            if lease.is_some_and(|lease| cells.iter().all(|cell| **cell != lease)) {
                reader.forget_lease(s);
            }
        }
    }

    /// Row locks are let go only when a transaction becomes visible: whoever writes the same key commits after that.
    /// Different rows of one entry know no such order.
    fn locks_free(&self, s: &Scenario) -> bool {
        if s.many {
            return true;
        }
        let touch = |i: u8, key: usize| s.transaction_touches(i, key);
        let shares_key = |i: &u8| (0..s.keys).any(|key| touch(self.committed, key) && touch(*i, key));
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
            Step::TrimFeed => w.redis.feed.messages &= w.redis.feed.messages - 1,
            Step::Save => w.saved = Some(w.redis),
            Step::LoseAll => w.restart_redis(Redis::EMPTY, s),
            Step::GoBack => w.restart_redis(w.saved.unwrap_or(Redis::EMPTY), s),
            Step::Flush => {
                w.restarts -= 1;
                w.redis = Redis::EMPTY;
                w.saved = None;
            }
            Step::Plant(tier, key) => w.plant(tier, key),
            Step::Leader(who, step) => leader::take(&mut w, s, who, step)?,
            Step::Instance(i, step) => w.instances[i].take(&self.redis, s, step),
            Step::Reader(r, step) => reader::take(&mut w, s, r, step)?,
            Step::Renewer(r, step) => renewals::take(&mut w, s, r, step),
            Step::Sweeper(step) => sweep::take(&mut w, s, step),
            Step::Auditor(step) => auditor::take(&mut w, s, step)?,
        }
        properties::judge_state(&w, s)?;
        w.forget(s);
        Ok(w)
    }

    fn plant(&mut self, tier: Option<usize>, key: usize) {
        self.plants -= 1;
        match (tier, &mut self.redis.cells[key]) {
            (Some(i), _) => {
                if let Some(e) = &mut self.instances[i].l1[key] {
                    e.value = PLANTED;
                }
            }
            (None, Cell::Entry(e)) => e.value = PLANTED,
            (None, _) => {}
        }
    }

    /// All connections break. Whoever writes L2 leads no more until it holds the slot and has taken over again. (That it may
    /// find out later matters only to sweeps, which the process does by itself: else it does so at once.)
    fn restart_redis(&mut self, with: Redis, s: &Scenario) {
        self.restarts -= 1;
        self.redis = with;
        self.saved = None;
        let stays = |l: &Leader| !l.with_l2 || (!s.keeps(Rule::TakeoverPerConnection) && shows(&with, l, s));
        let finds_out = s.sweeps == 0 || self.leader.is_some_and(|l| matches!(l.phase, Phase::Claiming { .. }));
        if let Some(leader) = self.leader.as_mut().filter(|l| l.with_l2 && !finds_out) {
            leader.authority.broken = true;
        } else {
            self.leader = self.leader.filter(stays);
        }
        self.resumed = None;
        self.peeked = None;
        for (number, instance) in self.instances.iter_mut().enumerate() {
            instance.lose_connection();
            self.sweeper.lose_connection(number as u8, s);
        }
    }

    /// The end of the WAL.
    pub fn insert_position(&self) -> Lsn {
        end(self.committed)
    }
}

/// Whether a Redis shows all that a leader has applied.
fn shows(redis: &Redis, leader: &Leader, s: &Scenario) -> bool {
    redis.proven(s).is_some_and(|proven| proven >= end(leader.next))
}

/// One line for a trace.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wal={} visible={:b}", self.insert_position(), self.visible)?;
        match self.redis.fence {
            Some(n) => {
                let hw = n.hw.map_or("none".to_owned(), |hw| hw.to_string());
                let (done, filled, epoch, gens) = (n.done, n.filled, n.epoch, n.generations);
                let all = n.generation;
                write!(f, " fence[hw={hw} done={done} filled={filled} epoch={epoch} gen={all} gens={gens:?}]")?;
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
            write!(f, " | {}", instance.describe())?;
        }
        Ok(())
    }
}
