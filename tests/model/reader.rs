//! A client that reads again and again and passes `X-Read-LSN` on as `X-Min-LSN`, and the read path it goes through.

use crate::instance::L1Entry;
use crate::properties::{Answer, Violation};
use crate::redis::{Cell, Entry, Found};
use crate::rule::Rule;
use crate::scenario::{Generation, KEYS, Lsn, PLANTED, Scenario, Value, count_at, end};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reader {
    pub reads_left: u8,
    /// What it passes as `X-Min-LSN`.
    min: Lsn,
    /// The newest value it has seen of each key.
    seen: [Value; KEYS],
    pub phase: Phase,
}

/// One read: where it goes to, and what was true when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Read {
    key: u8,
    instance: u8,
    /// The instance's watermark, read first.
    watermark: Lsn,
    /// The entity's generation there, read second: what is fetched bears it.
    generation: Generation,
    /// What the answer must at least hold because of `X-Min-LSN`: the newest visible value up to there.
    demanded: Value,
    /// The generation that a finished resync demands.
    resynced: Generation,
}

/// A value on its way to the client, with its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fetched {
    value: Value,
    hi: Lsn,
    generation: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Idle,
    /// The watermark was read.
    Begun(Read),
    /// Has an entry of L2 in hand: up to where patterns had been swept before it was fetched, and whether one half of
    /// what it is judged by has let it pass.
    Fetched(Read, Entry, Lsn, bool),
    /// Has a lease, which came with this `hw`.
    Leased(Read, Lsn),
    /// Has read Postgres for the lease: `lo`, the value, and `hi`, which from a standby is taken afterwards, in a
    /// statement of its own.
    Filled(Read, Lsn, Value, Option<Lsn>),
    /// Must read Postgres uncached.
    Through(Read),
    /// Has answered, and may put the value into L1 some time.
    Answered(Read, Fetched),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderStep {
    /// Reads the watermark; `own_write`: the client demands all that is committed by now (it wrote).
    Begin {
        key: u8,
        instance: u8,
        own_write: bool,
    },
    /// L1, unless it has dropped its entry; then L2.
    LookUp {
        l1: bool,
    },
    /// Judges the entry that it has in hand by the patterns that stand and those that were swept.
    Judge,
    ReadPrimary,
    ReadStandby,
    /// Publishes the fill, if the lease stands, and answers.
    PublishFill,
    PutL1,
    SkipL1,
}

impl Reader {
    pub const fn new(reads: u8) -> Self {
        Reader { reads_left: reads, min: 0, seen: [0; KEYS], phase: Phase::Idle }
    }

    /// Drops what a client that has made its last read need not remember.
    pub fn forget(&mut self) {
        if self.reads_left == 0 {
            self.min = 0;
            self.seen = [0; KEYS];
        }
    }

    /// The read under way.
    fn read(&mut self) -> Option<&mut Read> {
        match &mut self.phase {
            Phase::Idle => None,
            Phase::Begun(read)
            | Phase::Fetched(read, ..)
            | Phase::Leased(read, _)
            | Phase::Filled(read, ..)
            | Phase::Through(read)
            | Phase::Answered(read, _) => Some(read),
        }
    }

    /// Takes each instance for the other.
    pub fn swap_instances(&mut self) {
        if let Some(read) = self.read() {
            read.instance ^= 1;
        }
    }

    /// The instance is gone, and what it was asked with it.
    pub fn lose_instance(&mut self, number: u8) {
        if self.read().is_some_and(|read| read.instance == number) {
            let answered = matches!(self.phase, Phase::Answered(..));
            self.reads_left -= u8::from(!answered);
            self.phase = Phase::Idle;
        }
    }

    /// The lease token: one for each read of each reader.
    fn token(&self, number: usize) -> u8 {
        (number as u8) << 4 | self.reads_left
    }

    /// The lease that it may still publish under.
    pub fn holds(&self, number: usize) -> Option<Cell> {
        matches!(self.phase, Phase::Leased(..) | Phase::Filled(..)).then(|| Cell::Lease(self.token(number)))
    }

    /// Drops the label of a fill that cannot be published any more.
    pub fn forget_lease(&mut self, s: &Scenario) {
        match &mut self.phase {
            Phase::Leased(_, hw) if !s.standby && s.keeps(Rule::HiIsInsertPosition) => *hw = 0,
            Phase::Filled(_, lo, ..) => *lo = 0,
            _ => {}
        }
    }

    pub fn steps(&self, w: &World, s: &Scenario, mut found: impl FnMut(ReaderStep)) {
        match self.phase {
            Phase::Idle if self.reads_left > 0 => {
                for key in 0..s.keys as u8 {
                    for instance in 0..s.instances as u8 {
                        found(ReaderStep::Begin { key, instance, own_write: false });
                        if s.own_writes && end(w.committed) > self.min {
                            found(ReaderStep::Begin { key, instance, own_write: true });
                        }
                    }
                }
            }
            Phase::Idle => {}
            Phase::Begun(read) => {
                found(ReaderStep::LookUp { l1: false });
                if w.instances[read.instance as usize].servable(read.key as usize, s).is_some() {
                    found(ReaderStep::LookUp { l1: true });
                }
            }
            Phase::Fetched(..) => found(ReaderStep::Judge),
            Phase::Leased(_, hw) => {
                found(ReaderStep::ReadPrimary);
                if s.standby && (end(w.standby) >= hw || !s.keeps(Rule::StandbyHasHighWater)) {
                    found(ReaderStep::ReadStandby);
                }
            }
            Phase::Filled(..) => found(ReaderStep::PublishFill),
            Phase::Through(read) => {
                // Where answers may come from a standby, they may be ahead of what the primary shows.
                if !s.standby || read.watermark >= self.min || !s.keeps(Rule::MinLsnFromStandby) {
                    found(ReaderStep::ReadPrimary);
                } else if end(w.standby) >= self.min {
                    found(ReaderStep::ReadStandby);
                }
            }
            Phase::Answered(read, _) => {
                found(ReaderStep::PutL1);
                // What is put may be dropped at once, which matters only if something is dropped for it.
                if w.instances[read.instance as usize].l1[read.key as usize].is_some() {
                    found(ReaderStep::SkipL1);
                }
            }
        }
    }
}

/// Takes one step of reader `number`.
pub fn take(w: &mut World, s: &Scenario, number: usize, step: ReaderStep) -> Result<(), Violation> {
    let mut me = w.readers[number];
    let token = me.token(number);
    let result = match (me.phase, step) {
        (Phase::Idle, ReaderStep::Begin { key, instance, own_write }) => {
            if own_write {
                me.min = me.min.max(end(w.committed));
            }
            let (entity, at) = (s.entity(key as usize), w.instances[instance as usize]);
            let read = Read {
                key,
                instance,
                watermark: at.watermark(),
                generation: at.generations[entity],
                demanded: s.value(key as usize, count_at(me.min), w.visible),
                resynced: if w.leads(instance) { w.resynced[entity] } else { 0 },
            };
            me.phase = if read.watermark >= me.min { Phase::Begun(read) } else { Phase::Through(read) };
            Ok(())
        }
        (Phase::Begun(read), ReaderStep::LookUp { l1 }) => look_up(w, s, &mut me, token, read, l1),
        (Phase::Fetched(read, e, swept, passed), ReaderStep::Judge) => {
            judge(w, s, &mut me, (token, read), (e, swept, passed))
        }
        (Phase::Leased(read, hw), ReaderStep::ReadPrimary) => {
            let instance = &w.instances[read.instance as usize];
            let hi = if s.keeps(Rule::HiIsInsertPosition) { end(w.committed) } else { instance.watermark().max(hw) };
            let lo = if s.keeps(Rule::LoIsHighWater) { hw } else { hi };
            me.phase = Phase::Filled(read, lo, w.on_primary(s, read.key as usize), Some(hi));
            Ok(())
        }
        (Phase::Leased(read, hw), ReaderStep::ReadStandby) => {
            me.phase = Phase::Filled(read, hw, w.on_standby(s, read.key as usize), None);
            Ok(())
        }
        (Phase::Filled(read, lo, value, hi), ReaderStep::PublishFill) => {
            let now = w.instances[read.instance as usize].generations[s.entity(read.key as usize)];
            let generation = if s.keeps(Rule::GenerationBeforeRow) { read.generation } else { now };
            let hi = hi.unwrap_or(end(w.standby));
            let entry = Entry { lo, hi, value, generation, split: false };
            w.redis.publish_fill(read.key as usize, token, entry, s);
            answer(w, s, &mut me, read, Fetched { value, hi, generation })
        }
        (Phase::Through(read), ReaderStep::ReadPrimary) => {
            let value = w.on_primary(s, read.key as usize);
            answer(w, s, &mut me, read, Fetched { value, hi: end(w.committed), generation: read.generation })
        }
        (Phase::Through(read), ReaderStep::ReadStandby) => {
            let value = w.on_standby(s, read.key as usize);
            answer(w, s, &mut me, read, Fetched { value, hi: end(w.standby), generation: read.generation })
        }
        (Phase::Answered(read, Fetched { value, hi, generation }), ReaderStep::PutL1) => {
            let instance = &mut w.instances[read.instance as usize];
            let as_of = if s.keeps(Rule::AsOfBeforeFetch) { read.watermark } else { instance.watermark() };
            instance.l1[read.key as usize] = Some(L1Entry { value, hi, as_of, generation, checked: 0 });
            me.phase = Phase::Idle;
            Ok(())
        }
        (_, _) => {
            me.phase = Phase::Idle;
            Ok(())
        }
    };
    w.readers[number] = me;
    result
}

/// L1, then the lookup script of L2.
fn look_up(w: &mut World, s: &Scenario, me: &mut Reader, token: u8, read: Read, l1: bool) -> Result<(), Violation> {
    let key = read.key as usize;
    let instance = &w.instances[read.instance as usize];
    if let Some(L1Entry { value, hi, generation, .. }) = instance.servable(key, s).filter(|_| l1) {
        let result = answer(w, s, me, read, Fetched { value, hi, generation });
        me.phase = Phase::Idle;
        return result.and(resync_kept(read, generation));
    }
    me.phase = Phase::Through(read);
    let judged = s.keeps(Rule::GenerationAfterEntry) && s.keeps(Rule::GenerationChecked);
    let stands = if judged { instance.generations[s.entity(key)] } else { 0 };
    if instance.trusts_l2 {
        // GET comes before the script. Where nothing is swept, what an entry is judged by does not go back while a reader
        // has it in hand: then one step is enough.
        if let Cell::Entry(e) = w.redis.cells[key]
            && s.sweeps > 0
        {
            me.phase = Phase::Fetched(read, e, instance.swept[s.entity(key)], false);
            return Ok(());
        }
        match w.redis.look_up(key, token, read.generation, instance.floors, s) {
            Found::Entry(e) if e.generation < stands => {}
            Found::Entry(e) if e.split && read.watermark < e.lo && s.keeps(Rule::PieceServedFromWatermark) => {}
            Found::Entry(Entry { value, hi, generation, .. }) => {
                return answer(w, s, me, read, Fetched { value, hi, generation }).and(resync_kept(read, generation));
            }
            Found::Lease(hw) => me.phase = Phase::Leased(read, hw),
            Found::Nothing => {}
        }
    }
    Ok(())
}

/// Judges an entry of L2 by the patterns that stand, and then by what was swept since before it was fetched: see
/// [`crate::sweep`]. Tags and generations, which nobody forgets, go with the former.
fn judge(
    w: &mut World,
    s: &Scenario,
    me: &mut Reader,
    (token, read): (u8, Read),
    (e, swept, passed): (Entry, Lsn, bool),
) -> Result<(), Violation> {
    let (key, instance) = (read.key as usize, &w.instances[read.instance as usize]);
    let entity = s.entity(key);
    let before = if s.keeps(Rule::SweptReadBeforeEntry) { swept } else { instance.swept[entity] };
    let passes = if passed == s.keeps(Rule::SweptReadLast) {
        !instance.was_swept_since(entity, e.lo, before)
    } else {
        instance.floors.admit(key, &e, s) && e.generation >= instance.generations[entity]
    };
    me.phase = Phase::Through(read);
    if passes && passed && (!e.split || read.watermark >= e.lo) {
        let Entry { value, hi, generation, .. } = e;
        return answer(w, s, me, read, Fetched { value, hi, generation }).and(resync_kept(read, generation));
    }
    if passes && !passed {
        me.phase = Phase::Fetched(read, e, swept, true);
    } else if !passes
        && instance.trusts_l2
        && let Found::Lease(hw) = w.redis.look_up(key, token, read.generation, instance.floors, s)
    {
        me.phase = Phase::Leased(read, hw);
    }
    Ok(())
}

/// After a resync nothing is served from a tier that was there before.
fn resync_kept(read: Read, generation: Generation) -> Result<(), Violation> {
    let resynced = read.resynced;
    if generation < resynced { Err(Violation::OlderThanResync { generation, resynced }) } else { Ok(()) }
}

/// Answers, judges the answer, and remembers it as the client does.
fn answer(w: &World, s: &Scenario, me: &mut Reader, read: Read, fetched: Fetched) -> Result<(), Violation> {
    let Fetched { value, hi, .. } = fetched;
    let key = read.key as usize;
    let seen = me.seen[key];
    let read_lsn = if s.keeps(Rule::ReadLsnCoversHi) { hi.max(read.watermark) } else { read.watermark };
    me.min = me.min.max(read_lsn);
    me.reads_left -= 1;
    me.phase = if s.l1 { Phase::Answered(read, fetched) } else { Phase::Idle };
    if value == PLANTED {
        return Ok(());
    }
    me.seen[key] = value;
    Answer { value, applied: read.watermark, read: read_lsn, demanded: read.demanded, seen }.judge(w, s, key)
}
