//! What is to be done to a batch, in order: the heart of applying.

use crate::gaps::Image;
use crate::leader::{Leader, Phase};
use crate::lookups;
use crate::rule::Rule;
use crate::scenario::{Change, Lsn, OnChange, Scenario, Value, end, piece_label, uncommitted};
use crate::voids::Void;

/// One step of working a batch in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Runs lookups on the primary.
    Look,
    /// Publishes nothing yet.
    Hold,
    /// Raises the key's cell of the L1 fence of the leader's own instance.
    RaiseFence { key: usize, label: Lsn },
    /// Raises a floor in the leader's process.
    RaiseFloor(Void),
    /// Sets it in L2's fence, with the largest label in the batch.
    SetFloor(Void, Lsn),
    /// Draws a generation for the entity, and sets it in L2's fence.
    RaiseGeneration { entity: usize, label: Lsn },
    /// Sets it in the process.
    RaiseLocal { entity: usize },
    /// `apply.lua`.
    Put { key: usize, value: Value, label: Lsn, high: Lsn, split: bool },
    /// Looks up what the gaps of an image are to be filled from.
    FillGaps(Image),
    /// `apply.lua` with what was filled, or UNLINK.
    PutFilled(Image),
    /// UNLINK.
    Drop { key: usize, label: Lsn },
    /// Tells the feed.
    Feed,
    /// Marks the batch as done in L2's fence.
    MarkDone,
    /// Raises the watermark of the leader's own instance.
    Advance,
}

impl Work {
    /// Whether this is one of an event's effects; once they are all there, the event was applied.
    pub fn is_effect(self) -> bool {
        !matches!(self, Work::Feed | Work::MarkDone | Work::Advance | Work::Hold)
    }

    fn drop_if_of(&mut self, entity: usize, s: &Scenario) {
        if let Work::Put { key, label, .. } = *self
            && s.entity(key) == entity
        {
            *self = Work::Drop { key, label };
        }
    }
}

/// The work that a leader's batch makes: piece by piece if cut, else the last effect on each key; then what lookups have
/// found. Without L2 only the leader's own instance is told.
pub fn work(s: &Scenario, leader: &Leader) -> Vec<Work> {
    let Phase::Working { to, cut, void, found, .. } = leader.phase else { return Vec::new() };
    let with_l2 = leader.with_l2;
    if void {
        let label = end(to);
        let mut all = vec![Work::RaiseGeneration { entity: 0, label }, Work::RaiseLocal { entity: 0 }];
        all.extend([Work::MarkDone, Work::Advance]);
        all.retain(|w| with_l2 || matches!(w, Work::RaiseLocal { .. } | Work::Advance));
        return all;
    }
    let mut all = events(s, leader.next, to, cut);
    let looks_up = leader.looks_up(s, to);
    if let Some(label) = lookups::label(found, cut) {
        if s.keeps(Rule::FoundRaisesFence) {
            all.insert(0, Work::RaiseFence { key: 0, label });
        }
        all.push(Work::Drop { key: 0, label });
    }
    if looks_up {
        all.insert(0, Work::Look);
    }
    if leader.publishable(s, to).is_none() {
        all.push(Work::Hold);
    } else if s.feed && s.keeps(Rule::FeedBeforeDone) {
        all.extend([Work::Feed, Work::MarkDone]);
    } else if s.feed {
        all.extend([Work::MarkDone, Work::Feed]);
    } else {
        all.extend([Work::MarkDone, Work::Advance]);
    }
    all.retain(|w| match w {
        Work::RaiseFence { .. } => !s.feed && (with_l2 || s.keeps(Rule::OutageRaisesFences)),
        Work::RaiseLocal { .. } => with_l2 || s.keeps(Rule::OutageRaisesGeneration),
        Work::RaiseFloor(_) => with_l2 || s.keeps(Rule::OutageRaisesFloors),
        Work::RaiseGeneration { .. } | Work::Put { .. } | Work::Drop { .. } | Work::MarkDone => with_l2,
        Work::SetFloor(..) | Work::FillGaps(_) | Work::PutFilled(_) => with_l2,
        Work::Look | Work::Hold | Work::Feed | Work::Advance => true,
    });
    delay(&mut all, s, Rule::FencesBeforeWatermark, |w| matches!(w, Work::RaiseFence { .. }));
    delay(&mut all, s, Rule::GenerationBeforeWatermark, |w| matches!(w, Work::RaiseLocal { .. }));
    delay(&mut all, s, Rule::FloorBeforeWatermark, |w| matches!(w, Work::RaiseFloor(_)));
    delay(&mut all, s, Rule::FloorBeforeConfirm, |w| matches!(w, Work::SetFloor(..)));
    delay(&mut all, s, Rule::GenerationBeforeConfirm, |w| matches!(w, Work::RaiseGeneration { .. }));
    all
}

/// What the transactions `from..to` do by themselves.
fn events(s: &Scenario, from: u8, to: u8, cut: bool) -> Vec<Work> {
    let mut fences = Vec::new();
    let mut floors = Vec::new();
    let mut raised = Vec::new();
    let mut effects: Vec<Work> = Vec::new();
    for i in from..to {
        let changes = s.transactions[i as usize].changes;
        let label = if cut { piece_label(i) } else { end(i + 1) };
        let high = if cut { label } else { end(to) };
        for (n, &change) in changes.iter().enumerate() {
            let keys = match change {
                Change::Put(key) | Change::Delete(key) | Change::Gaps(key) => [Some(key), None],
                Change::Tag(key) | Change::Pattern(key) => {
                    let void = Void { key, pattern: matches!(change, Change::Pattern(_)), label };
                    if cut {
                        effects.extend([Work::RaiseFloor(void), Work::SetFloor(void, high)]);
                    } else {
                        floors.retain(|v: &Void| (v.key, v.pattern) != (void.key, void.pattern));
                        floors.push(void);
                    }
                    continue;
                }
                Change::Move(from, to) => [Some(to), Some(from).filter(|_| s.keeps(Rule::MovedRowVoidsBoth))],
                Change::Untie(_) => [Some(0), None],
                Change::Linked { .. } => [None; 2],
                Change::Truncate(entity) => {
                    let raise = [Work::RaiseGeneration { entity, label }, Work::RaiseLocal { entity }];
                    if !cut && s.keeps(Rule::TruncateDropsEarlier) {
                        effects.iter_mut().for_each(|w| w.drop_if_of(entity, s));
                    }
                    if !s.keeps(Rule::TruncateRaisesGeneration) {
                    } else if cut {
                        effects.extend(raise);
                    } else if !raised.iter().any(|w| *w == raise[1]) {
                        raised.extend(raise);
                    }
                    continue;
                }
            };
            for key in keys.into_iter().flatten() {
                let drops = s.on_change == OnChange::Invalidate || matches!(change, Change::Delete(_));
                let effect = if drops {
                    Work::Drop { key, label }
                } else if matches!(change, Change::Gaps(_)) {
                    let image = Image { key, since: i, upto: i, label, high, piece: cut.then_some(n as u8) };
                    if cut {
                        effects.push(Work::FillGaps(image));
                    }
                    with_gaps(image, effects.iter().find(|w| is_of(w, key) && !cut))
                } else {
                    Work::Put { key, value: value_after(s, changes, i, n, key), label, high, split: cut }
                };
                let fence = Work::RaiseFence { key, label };
                if cut {
                    effects.push(fence);
                } else {
                    fences.retain(|w| !is_of(w, key));
                    fences.push(fence);
                    if s.keeps(Rule::Coalesced) {
                        effects.retain(|w| !is_of(w, key));
                    }
                }
                effects.push(effect);
            }
        }
    }
    // Raised generations come first: what was planned before bears an older one, wherever it stood in the stream.
    let gaps = effects.iter().filter_map(|w| if let Work::PutFilled(image) = w { Some(*image) } else { None });
    // Of pieces, each has its own at its place.
    let gaps: Vec<Work> = gaps.filter(|image| image.piece.is_none()).map(Work::FillGaps).collect();
    let in_process = floors.iter().map(|&void| Work::RaiseFloor(void));
    let in_l2 = floors.iter().map(|&void| Work::SetFloor(void, end(to)));
    fences.into_iter().chain(in_process).chain(raised).chain(in_l2).chain(gaps).chain(effects).collect()
}

/// What becomes of a change with gaps after what the batch holds of that key.
fn with_gaps(image: Image, before: Option<&Work>) -> Work {
    let Image { key, upto, label, high, .. } = image;
    match before {
        Some(Work::Put { .. }) => Work::Put { key, value: upto + 1, label, high, split: false },
        Some(Work::Drop { .. }) => Work::Drop { key, label },
        Some(Work::PutFilled(first)) => Work::PutFilled(Image { since: first.since, ..image }),
        _ => Work::PutFilled(image),
    }
}

/// Without the rule, what is to be done early is done at the end.
fn delay(all: &mut Vec<Work>, s: &Scenario, rule: Rule, which: impl Fn(&Work) -> bool) {
    if !s.keeps(rule) {
        let (late, early): (Vec<_>, Vec<_>) = all.iter().partition(|w| which(w));
        *all = early.into_iter().chain(late).collect();
    }
}

fn is_of(work: &Work, of: usize) -> bool {
    match *work {
        Work::RaiseFence { key, .. } | Work::Put { key, .. } | Work::Drop { key, .. } => key == of,
        Work::PutFilled(image) => image.key == of,
        _ => false,
    }
}

/// What change `n` of transaction `i` wrote: committed only if no later change of it touches the key.
pub fn value_after(s: &Scenario, changes: &[Change], i: u8, n: usize, key: usize) -> Value {
    if changes[n + 1..].iter().any(|&c| s.touches(c, key)) { uncommitted(i, n) } else { i + 1 }
}
