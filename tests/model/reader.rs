//! A client that reads again and again and passes `X-Read-LSN` on as `X-Min-LSN`, and the read path it goes through.

use crate::instance::L1Entry;
use crate::properties::{Answer, Violation};
use crate::redis::{Entry, Found};
use crate::scenario::{KEYS, Lsn, Rule, Scenario, Value, end};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reader {
    pub reads_left: u8,
    /// What it passes as `X-Min-LSN`.
    pub min: Lsn,
    /// The newest value it has seen of each key.
    pub seen: [Value; KEYS],
    pub phase: Phase,
}

/// One read: where it goes to, and what was true when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    pub key: u8,
    pub instance: u8,
    /// The instance's watermark, read first.
    pub watermark: Lsn,
    /// What the answer must at least hold because of `X-Min-LSN`: the newest visible value up to there.
    pub demanded: Value,
}

/// A fill: the permission that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    lo: Lsn,
    generation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Idle,
    /// The watermark was read.
    Begun(Read),
    /// Has a lease.
    Leased(Read, Fill),
    /// Has read Postgres for the lease; from a standby `hi` is taken afterwards, in a statement of its own.
    Filled(Read, Fill, Value, Option<Lsn>),
    /// Must read Postgres uncached.
    Through(Read),
    /// Has answered, and may put the value into L1 some time.
    Answered(Read, Value, Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderStep {
    /// Reads the watermark; `own_write`: the client demands all that is committed by now (it wrote).
    Begin {
        key: u8,
        instance: u8,
        own_write: bool,
    },
    /// L1, then L2.
    LookUp,
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

    /// The lease token: one for each read of each reader.
    fn token(&self, number: usize) -> u8 {
        (number as u8) << 4 | self.reads_left
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
            Phase::Begun(_) => found(ReaderStep::LookUp),
            Phase::Leased(_, fill) => {
                found(ReaderStep::ReadPrimary);
                if s.standby && (end(w.standby) >= fill.lo || !s.keeps(Rule::StandbyHasHighWater)) {
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
            Phase::Answered(..) => {
                found(ReaderStep::PutL1);
                found(ReaderStep::SkipL1);
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
            let watermark = w.instances[instance as usize].watermark();
            let demanded = s.value(key as usize, me.min / 2, w.visible);
            let read = Read { key, instance, watermark, demanded };
            me.phase = if watermark >= me.min { Phase::Begun(read) } else { Phase::Through(read) };
            Ok(())
        }
        (Phase::Begun(read), ReaderStep::LookUp) => look_up(w, s, &mut me, token, read),
        (Phase::Leased(read, fill), ReaderStep::ReadPrimary) => {
            let hi = if s.keeps(Rule::HiIsInsertPosition) {
                end(w.committed)
            } else {
                w.instances[read.instance as usize].watermark().max(fill.lo)
            };
            let lo = if s.keeps(Rule::LoIsHighWater) { fill.lo } else { hi };
            let value = w.on_primary(s, read.key as usize);
            me.phase = Phase::Filled(read, Fill { lo, ..fill }, value, Some(hi));
            Ok(())
        }
        (Phase::Leased(read, fill), ReaderStep::ReadStandby) => {
            me.phase = Phase::Filled(read, fill, w.on_standby(s, read.key as usize), None);
            Ok(())
        }
        (Phase::Filled(read, fill, value, hi), ReaderStep::PublishFill) => {
            let hi = hi.unwrap_or(end(w.standby));
            let entry = Entry { lo: fill.lo, hi, value, generation: fill.generation, split: false };
            w.redis.publish_fill(read.key as usize, token, entry);
            answer(s, &mut me, read, value, hi)
        }
        (Phase::Through(read), ReaderStep::ReadPrimary) => {
            answer(s, &mut me, read, w.on_primary(s, read.key as usize), end(w.committed))
        }
        (Phase::Through(read), ReaderStep::ReadStandby) => {
            answer(s, &mut me, read, w.on_standby(s, read.key as usize), end(w.standby))
        }
        (Phase::Answered(read, value, hi), ReaderStep::PutL1) => {
            let instance = &mut w.instances[read.instance as usize];
            let as_of = if s.keeps(Rule::AsOfBeforeFetch) { read.watermark } else { instance.watermark() };
            instance.l1[read.key as usize] = Some(L1Entry { value, hi, as_of });
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

/// L1, then the lookup script of L2 (L1 may evict between the two, so that one step stands for both orders).
fn look_up(w: &mut World, s: &Scenario, me: &mut Reader, token: u8, read: Read) -> Result<(), Violation> {
    let key = read.key as usize;
    let instance = &w.instances[read.instance as usize];
    if let Some(hit) = instance.servable(key) {
        let result = answer(s, me, read, hit.value, hit.hi);
        me.phase = Phase::Idle;
        return result;
    }
    me.phase = Phase::Through(read);
    if instance.trusts_l2 {
        match w.redis.look_up(key, token) {
            Found::Entry(e) if e.split && read.watermark < e.lo && s.keeps(Rule::PieceServedFromWatermark) => {}
            Found::Entry(e) => return answer(s, me, read, e.value, e.hi),
            Found::Lease(lo, generation) => me.phase = Phase::Leased(read, Fill { lo, generation }),
            Found::Nothing => {}
        }
    }
    Ok(())
}

/// Answers, judges the answer, and remembers it as the client does.
fn answer(s: &Scenario, me: &mut Reader, read: Read, value: Value, hi: Lsn) -> Result<(), Violation> {
    let key = read.key as usize;
    let seen = me.seen[key];
    let read_lsn = if s.keeps(Rule::ReadLsnCoversHi) { hi.max(read.watermark) } else { read.watermark };
    me.min = me.min.max(read_lsn);
    me.seen[key] = value;
    me.reads_left -= 1;
    me.phase = if s.l1 { Phase::Answered(read, value, hi) } else { Phase::Idle };
    Answer { value, applied: read.watermark, demanded: read.demanded, seen }.judge(s, key)
}
