//! Renewals: entries that are filled anew while they still stand, since they are due, or soon will be.
//!
//! Readers are not kept waiting for it. An entry is renewed by one flight of the fleet at a time; those that come together
//! share one query. How a renewed value takes the old one's place in L2: see [`crate::cache::l2::renew`]. In L1 it is judged by
//! the fence as any other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Filler, most, texts};
use crate::cache::etag;
use crate::cache::l2::L2;
use crate::cache::l2::renew::{Claimed, Renewed};
use crate::cache::permits::Permit;
use crate::cache::rows::Found;
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{Due, HEAD, Label};
use crate::lsn::Lsn;
use crate::metrics::Renewal;

/// Entries of one entity that may wait to be renewed, or were tried just now; further ones are not, until they are read
/// again.
const MOST: usize = 10_000;
/// How long an entry that was not renewed is left alone, however often it is read.
const PAUSE: Duration = Duration::from_millis(200);

/// The entries of one entity that are to be renewed.
#[derive(Default)]
pub(super) struct Renewals {
    /// By full key: all that wait, are on their way, or were tried just now.
    known: HashSet<Box<str>>,
    /// With the time when the one was due that was read.
    waiting: VecDeque<(EntryKey, Due)>,
    running: bool,
}

impl Filler {
    /// Renews an entry in the background, if nobody here is at it; `seen`: when the one was due that was read.
    pub fn renew(self: &Arc<Self>, entity: &Arc<Entity>, key: &EntryKey, seen: Due) {
        let mut renewals = self.renewals[entity.id].lock();
        if renewals.known.contains(key.redis()) || renewals.known.len() >= MOST {
            return;
        }
        renewals.known.insert(key.redis().into());
        renewals.waiting.push_back((key.clone(), seen));
        if !renewals.running {
            renewals.running = true;
            tokio::spawn(self.clone().run_renewals(entity.clone()));
        }
    }

    /// Takes what waits, as many at a time as one query holds, until nothing waits.
    async fn run_renewals(self: Arc<Self>, entity: Arc<Entity>) {
        let renewals = &self.renewals[entity.id];
        loop {
            let wanted = {
                let mut renewals = renewals.lock();
                if renewals.waiting.is_empty() {
                    renewals.running = false;
                    return;
                }
                renewals.waiting.len().min(most(&entity))
            };
            let permit = self.rows.permits().take(entity.id, wanted).await;
            let entries: Vec<(EntryKey, Due)> = {
                let waiting = &mut renewals.lock().waiting;
                let count = permit.keys().min(waiting.len());
                waiting.drain(..count).collect()
            };
            let batch = Batch { filler: self.clone(), entity: entity.clone(), entries: entries.clone() };
            // In a task of its own: a panic there ends the batch, and not this loop.
            let done = tokio::spawn(batch.fly(permit)).await.unwrap_or_default();
            let left: Vec<Box<str>> = {
                let mut renewals = renewals.lock();
                let done = |i: usize| done.get(i).copied().unwrap_or_default();
                let (done, left): (Vec<_>, Vec<_>) = entries.iter().enumerate().partition(|(i, _)| done(*i));
                for (_, (key, _)) in done {
                    renewals.known.remove(key.redis());
                }
                left.into_iter().map(|(_, (key, _))| key.redis().into()).collect()
            };
            if !left.is_empty() {
                let (filler, id) = (self.clone(), entity.id);
                tokio::spawn(async move {
                    tokio::time::sleep(PAUSE).await;
                    let mut renewals = filler.renewals[id].lock();
                    for key in left {
                        renewals.known.remove(&key);
                    }
                });
            }
        }
    }
}

/// Entries that are renewed together.
struct Batch {
    filler: Arc<Filler>,
    entity: Arc<Entity>,
    entries: Vec<(EntryKey, Due)>,
}

/// What a batch is judged by: taken before anything is asked, the generation first.
#[derive(Clone, Copy)]
struct Basis {
    generation: Generation,
    as_of: Lsn,
}

impl Batch {
    /// Says which entries are new now.
    async fn fly(self, mut permit: Permit) -> Vec<bool> {
        let hierarchy = &self.filler.hierarchy;
        let basis = Basis { generation: self.entity.generation(), as_of: hierarchy.watermark.load() };
        let mut done = vec![false; self.entries.len()];
        if !self.entity.is_servable() {
            return done;
        }
        let claims = match &hierarchy.l2 {
            Some(l2) => match l2.claim_renewals(&self.entries, basis.generation).await {
                Ok((Some(hw), claims)) => Some((l2, hw, claims)),
                Ok((None, _)) | Err(_) => None,
            },
            None => None,
        };
        let Some((l2, hw, claims)) = claims else {
            let all: Vec<usize> = (0..self.entries.len()).collect();
            if let Some(found) = self.read(&all, &permit).await {
                self.count(Renewal::Uncached, all.len());
                let dues = self.dues(&found, Due::now());
                self.keep(&all, &found, &dues, basis).await;
                done.fill(true);
            }
            return done;
        };
        let of = |wanted: fn(&Claimed) -> bool| -> Vec<usize> {
            claims.iter().enumerate().filter(|(_, claim)| wanted(claim)).map(|(i, _)| i).collect()
        };
        let claimed = of(|claim| matches!(claim, Claimed::Entry(_)));
        self.count(Renewal::Elsewhere, of(|claim| *claim == Claimed::Elsewhere).len());
        if !claimed.is_empty() {
            permit.shrink(claimed.len());
            let heads: Vec<&[u8; HEAD]> = claims
                .iter()
                .filter_map(|claim| match claim {
                    Claimed::Entry(head) => Some(&**head),
                    _ => None,
                })
                .collect();
            // What cannot be read is tried again once the mark is gone.
            if let Some(found) = self.read(&claimed, &permit).await {
                self.replace(l2, hw, (&claimed, &heads), found, basis).await;
                claimed.iter().for_each(|i| done[*i] = true);
            }
        }
        drop(permit);
        // Of these L2 has a newer one, or none: they go the way of every read that misses L1, and so into L1.
        let others = of(|claim| *claim == Claimed::Nothing);
        let fetches = others.iter().map(|i| {
            let key = self.entries[*i].0.clone();
            self.filler.fetch(&self.entity, key, false, basis.as_of)
        });
        for (i, fetched) in others.iter().zip(join_all(fetches).await) {
            done[*i] = fetched.is_ok();
        }
        done
    }

    async fn read(&self, entries: &[usize], permit: &Permit) -> Option<Found> {
        let keys: Vec<&EntryKey> = entries.iter().map(|i| &self.entries[*i].0).collect();
        let since = self.filler.hierarchy.watermark.restarted();
        let found = self.filler.rows.read(&self.entity, &keys, permit, since).await;
        let found = found.ok().filter(|found| found.refused.iter().all(|(_, error)| error.is_of_the_key()));
        if found.is_none() {
            self.count(Renewal::Error, keys.len());
        }
        found
    }

    /// When each of the values is due; `None` for those that are not to be cached.
    fn dues(&self, found: &Found, now: Due) -> Vec<Option<Due>> {
        let fits = |value: &&Option<Bytes>| value.as_ref().is_none_or(|value| value.len() <= self.filler.max_value);
        let due =
            |value: &Option<Bytes>| Some(value).filter(fits).and_then(|value| self.entity.due(value.as_deref(), now));
        let mut dues: Vec<Option<Due>> = found.values.iter().map(due).collect();
        for (refused, _) in &found.refused {
            // What the database refuses to read now is not served from before either.
            if let Some(due) = dues.get_mut(*refused) {
                *due = None;
            }
        }
        dues
    }

    async fn replace(
        &self,
        l2: &L2,
        hw: Lsn,
        (claimed, heads): (&[usize], &[&[u8; HEAD]]),
        found: Found,
        basis: Basis,
    ) {
        let now = Due::now();
        let dues = self.dues(&found, now);
        let label = Label { lo: hw, hi: found.hi, generation: basis.generation, split: false, due: Due::NEVER };
        let cached = found.values.iter().zip(&dues).filter_map(|(value, due)| Some((value, (*due)?)));
        let cached = cached.map(|(value, due)| (Label { due, ..label }, value.clone())).collect();
        let mut texts = texts(&self.entity, cached).await.into_iter();
        let renewed: Vec<Renewed<'_>> = (claimed.iter().zip(heads).zip(&dues))
            .map(|((i, head), due)| {
                let text = due.and_then(|_| texts.next());
                Renewed { key: &self.entries[*i].0, head, text }
            })
            .collect();
        match l2.replace(&renewed, now.before(self.entity.lifetime.stale), found.hi).await {
            Ok(replaced) => {
                let published = replaced.iter().filter(|replaced| **replaced).count();
                self.count(Renewal::Published, published);
                self.count(Renewal::Overtaken, replaced.len() - published);
            }
            Err(_) => self.count(Renewal::Uncached, claimed.len()),
        }
        self.keep(claimed, &found, &dues, basis).await;
    }

    /// Puts the values into L1, where the fence tells whether an event has overtaken them.
    async fn keep(&self, entries: &[usize], found: &Found, dues: &[Option<Due>], basis: Basis) {
        for ((i, value), due) in entries.iter().zip(&found.values).zip(dues) {
            let key = &self.entries[*i].0;
            match (due, &self.filler.hierarchy.l1) {
                (Some(due), _) => {
                    let (etag, basis) = (etag(value.as_deref()), (basis.generation, basis.as_of));
                    let hierarchy = &self.filler.hierarchy;
                    hierarchy.keep(&self.entity, key, value.clone(), etag, basis, (found.hi, *due)).await;
                }
                // The row says that its time is over.
                (None, Some(l1)) => l1.remove(self.entity.id, key.hash).await,
                (None, None) => {}
            }
        }
    }

    fn count(&self, result: Renewal, entries: usize) {
        self.filler.metrics[self.entity.id].lifetime.renewed(result, entries as u64);
    }
}
