//! One entry explained: what each tier holds, what Postgres holds, and how they go together.

mod view;

use std::sync::Arc;
use std::time::Instant;

pub use self::view::{Case, Explanation, FenceView, RowView, TierView};
use self::view::{UNFOLLOWED, raw};
use super::check::{Before, Doubt, Held, said};
use super::finding::RowLabels;
use super::{Auditor, Shapes};
use crate::cache::l1::Unservable;
use crate::cache::voids::Voided;
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{self, Due, Stored};
use crate::lsn::Lsn;

/// How often it is looked again while the entry changes.
const RETRIES: usize = 3;

impl<S: Shapes> Auditor<S> {
    /// Explains one entry. Changes nothing; may wait for the watermark, as a check does.
    pub async fn explain(&self, entity: &Arc<Entity>, key: &EntryKey) -> Explanation {
        let mut explanation = self.look(entity, key).await;
        for _ in 0..RETRIES {
            let changed = [&explanation.l1, &explanation.l2].into_iter().flatten().any(|t| t.case == Case::Changed);
            if !changed {
                break;
            }
            explanation = self.look(entity, key).await;
        }
        explanation.verdict = explanation.in_words();
        explanation
    }

    async fn look(&self, entity: &Arc<Entity>, key: &EntryKey) -> Explanation {
        let before = Before::of(entity);
        let generation = entity.generation();
        let (watermark, staleness) = (self.hierarchy.watermark.load(), self.hierarchy.watermark.staleness());
        let (mut l1, in_l1) = self.look_l1(entity, key, generation).unzip();
        let (mut l2, in_l2) = self.look_l2(entity, key, generation, watermark).await.unzip();
        let mut row = RowView { labels: None, value: None, error: None };
        let servable = [(&mut l1, in_l1.flatten()), (&mut l2, in_l2.flatten())];
        match self.rows(entity, &[key]).await {
            Ok((hi, mut values)) => {
                let value = values.pop().flatten();
                let labels = RowLabels::new(hi, value.as_ref());
                (row.labels, row.value) = (Some(labels), raw(value.as_ref()));
                let mut views = Vec::new();
                let mut doubts = Vec::new();
                for (view, held) in servable {
                    let (Some(view), Some(held)) = (view.as_mut(), held) else { continue };
                    if held.value() == value.as_ref() {
                        view.case = Case::Agrees;
                    } else {
                        views.push(view);
                        doubts.push(Doubt { key: key.clone(), held, row: labels });
                    }
                }
                if !doubts.is_empty() {
                    let settled = self.settle_views(entity, before.as_ref(), &doubts).await;
                    for (view, (case, why)) in views.into_iter().zip(settled) {
                        (view.case, view.why) = (case, why);
                    }
                }
            }
            Err(error) => {
                for (view, held) in servable {
                    if let (Some(view), true) = (view.as_mut(), held.is_some()) {
                        view.why = Some(format!("Postgres was not read: {error}"));
                    }
                }
                row.error = Some(error.to_string());
            }
        }
        let shape = entity.shape();
        Explanation {
            entity: entity.name.clone(),
            key: key.key().to_owned(),
            redis_key: key.redis().to_owned(),
            table: entity.made_of(),
            columns: shape.columns.iter().map(|column| column.name.clone()).collect(),
            servable: entity.is_servable(),
            generation: generation.0,
            applied_lsn: watermark,
            staleness_seconds: staleness.map(|staleness| staleness.as_secs_f64()),
            l1,
            l2,
            row,
            verdict: String::new(),
        }
    }

    /// What L1 holds, and the entry if it is servable.
    fn look_l1(&self, entity: &Entity, key: &EntryKey, generation: Generation) -> Option<(TierView, Option<Held>)> {
        let l1 = self.hierarchy.l1.as_ref()?;
        let mut view = TierView::new(Case::Nothing);
        view.cell = Some(l1.fence().at(key.hash));
        let Some(cached) = l1.peek(entity.id, key.hash) else { return Some((view, None)) };
        let held = Held::L1(cached.clone());
        let why_not = if *cached.key != *key.redis() {
            Some("it is another key's, of the same hash".to_owned())
        } else if !entity.is_servable() {
            Some(UNFOLLOWED.to_owned())
        } else {
            l1.judge(key.hash, &cached, generation).err().map(|why| match why {
                Unservable::Generation => older(cached.generation, generation),
                Unservable::Fenced => format!(
                    "it was fetched when W stood at {}, before the last event on its cell of the fence",
                    cached.as_of
                ),
                Unservable::Expired => OVER.to_owned(),
            })
        };
        let value = cached.value.as_deref();
        let why_not = why_not.or_else(|| {
            if self.hierarchy.stands_in_l1(entity, &cached) {
                return None;
            }
            let by = self.hierarchy.voided(entity, key.redis(), cached.as_of, value);
            Some(voided(by.unwrap_or(Voided::Unswept(self.hierarchy.voids.swept(entity)))))
        });
        view.tags = entity.tags_of(key.redis(), value);
        let now = Instant::now();
        view.life_seconds = Some(cached.over.saturating_duration_since(now).as_secs_f64());
        view.overdue_seconds = now.checked_duration_since(cached.expires).map(|past| past.as_secs_f64());
        let servable = why_not.is_none();
        view.hold(&held, why_not);
        Some((view, servable.then_some(held)))
    }

    /// What L2 holds, and the entry if it is servable.
    async fn look_l2(
        &self,
        entity: &Entity,
        key: &EntryKey,
        generation: Generation,
        watermark: Lsn,
    ) -> Option<(TierView, Option<Held>)> {
        let l2 = self.hierarchy.l2.as_ref()?;
        let mut view = TierView::new(Case::Nothing);
        let look = match l2.look(key.redis(), &entity.name).await {
            Ok(look) => look,
            Err(error) => {
                (view.case, view.trusted, view.why) = (Case::Unknown, Some(false), Some(said(&error)));
                return Some((view, None));
            }
        };
        let number = |generation: Option<Generation>| generation.map(|g| g.0);
        view.trusted = Some(look.trusted);
        view.life_seconds = look.life.map(|life| life.as_secs_f64());
        view.fence = Some(FenceView {
            epoch: number(look.fence.epoch),
            hw: look.fence.hw,
            done: look.fence.done,
            generation: number(look.fence.generation),
            entity_generation: number(look.fence.entity_generation),
        });
        let now = Due::now();
        let Some(text) = look.text else {
            if look.other_type {
                view.case = Case::Foreign;
            }
            return Some((view, None));
        };
        match entry::decode(text.clone(), self.filler.max_value()) {
            Stored::Lease => view.case = Case::Lease,
            Stored::Foreign => view.case = Case::Foreign,
            Stored::Entry(label, value) => {
                let why_not = if !look.trusted {
                    Some("L2 is not trusted now".to_owned())
                } else if !entity.is_servable() {
                    Some(UNFOLLOWED.to_owned())
                } else if label.generation < generation {
                    Some(older(label.generation, generation))
                } else if label.split && watermark < label.lo {
                    Some("it was written by a transaction that is still being applied".to_owned())
                } else if label.due.since(now).is_some_and(|past| past >= entity.lifetime.stale) {
                    Some(OVER.to_owned())
                } else {
                    self.hierarchy.voided(entity, key.redis(), label.lo, value.as_deref()).map(voided)
                };
                view.tags = entity.tags_of(key.redis(), value.as_deref());
                let servable = why_not.is_none();
                view.overdue_seconds = label.due.since(now).map(|past| past.as_secs_f64());
                view.compressed = text[entry::PACKED] == b'1';
                let held = Held::L2 { text, label, value };
                view.split = label.split;
                view.hold(&held, why_not);
                return Some((view, servable.then_some(held)));
            }
        }
        Some((view, None))
    }

    /// As a check settles its doubts.
    async fn settle_views(
        &self,
        entity: &Arc<Entity>,
        before: Option<&Before>,
        doubts: &[Doubt],
    ) -> Vec<(Case, Option<String>)> {
        let all = |case, why: Option<&str>| vec![(case, why.map(str::to_owned)); doubts.len()];
        let rows_read = Instant::now();
        let Some((before, hi)) = before.zip(doubts.iter().map(|doubt| doubt.row.hi).max()) else {
            return all(Case::Unknown, Some("the entity's shape is being replaced"));
        };
        if !self.hierarchy.watermark.reached(hi, self.config.wait).await {
            return all(Case::OnItsWay, None);
        }
        let standing = match self.still_stand(entity, doubts).await {
            Ok(standing) => standing,
            Err(error) => return all(Case::Unknown, Some(&error)),
        };
        let wrong = standing.contains(&true);
        if wrong && !self.is_current_since(rows_read).await {
            return all(
                Case::Unknown,
                Some("no heartbeat has come back since, so replication may follow another server"),
            );
        }
        let current = if wrong { self.shapes.are_current(entity).await } else { None };
        let case = |stands| match (stands && before.stands(entity), current) {
            (false, _) => (Case::Changed, None),
            (true, Some(true)) => (Case::Differs, None),
            (true, Some(false)) => (Case::OnItsWay, Some("the table's shape has changed".to_owned())),
            (true, None) => (Case::Unknown, Some("the table's shape could not be looked up".to_owned())),
        };
        standing.into_iter().map(case).collect()
    }
}

fn voided(by: Voided) -> String {
    match by {
        Voided::Tag(tag, at) => format!("its tag {tag:?}, or one of the same cell, was voided at {at}"),
        Voided::Key(at) => format!("a pattern, or all of the entity, was voided at {at}"),
        Voided::Unswept(at) => format!("it may have come after a pattern was swept out that was voided at {at}"),
    }
}

/// Why an entry is not served that nothing else is the matter with.
const OVER: &str = "its life is over";

fn older(found: Generation, needed: Generation) -> String {
    format!("it is of generation {}, and {} stands", found.0, needed.0)
}
