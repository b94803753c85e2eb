//! What a job asks of Postgres: pages of keys and batches of fills, each when it is its turn.

use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;
use tokio::time::{sleep, sleep_until};

use super::job::{HotTurn, Job};
use super::keys::{KeysError, Page};
use super::{Leadership, TICK, Walk, Warming};
use crate::cache::answer::ReadError;
use crate::cache::fill::Ahead;
use crate::cache::permits::Permit;
use crate::entity::{EntryKey, Generation};
use crate::metrics::Warmed;

/// Batches a second, where the rate is low.
const BATCHES: u32 = 10;
/// How often it is looked whether readers leave anything.
const POLL: Duration = Duration::from_millis(5);
/// Pauses while Postgres does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often results that take too long are tried: a query may take too long for some keys always.
const LATE_TRIES: usize = 10;
/// What is waited for while readers need Postgres.
const READERS: &str = "readers, who need Postgres more";

impl<S: Leadership> Warming<S> {
    /// A page of keys; `None` if they are of no use any more.
    pub(super) async fn page(
        &self,
        job: &Job,
        generation: Generation,
        walk: &Walk,
        after: Option<&[String]>,
        wanted: u64,
    ) -> Result<Option<Page>, String> {
        let entity = &job.entity;
        let mut backoff = crate::retry::forever(PAUSES.0, PAUSES.1);
        loop {
            self.able(job).await;
            let due = *job.due.lock();
            sleep_until(due.into()).await;
            if !self.parts.filler.has_spare_connections() {
                job.waits_for(Some(READERS));
                sleep(POLL).await;
                continue;
            }
            job.waits_for(None);
            let since = self.parts.hierarchy.watermark.restarted();
            let page = self.parts.keys.page(entity, (&walk.which, walk.order), after, wanted, since).await;
            if entity.generation() != generation {
                return Ok(None);
            }
            match page {
                Ok(page) => {
                    // The slower they are, the less they are asked for. Only by this one: a SELECT may take long, and what
                    // others fill has nothing to do with that.
                    *job.due.lock() = Instant::now() + page.took;
                    return Ok(Some(page));
                }
                Err(KeysError::Refused(_)) if entity.is_reshaping() || !entity.is_servable() => {
                    job.waits_for(Some("the table has changed"));
                }
                Err(KeysError::Refused(what)) => return Err(what),
                Err(KeysError::Away(error)) => job.waits_for(Some(&error.to_string())),
            }
            sleep(backoff.next()).await;
        }
    }

    /// Fills keys, batch by batch, each as often as `tries` says while Postgres does not answer. Ends early where the
    /// generation does not stand any more.
    pub(super) async fn fill(
        &self,
        job: &Job,
        generation: Generation,
        keys: Vec<EntryKey>,
        rate: u32,
        tries: usize,
    ) -> Result<(), String> {
        let parts = &self.parts;
        let entity = &job.entity;
        let most = parts.filler.most_ahead(entity).min((rate / BATCHES).max(1) as usize);
        for batch in keys.chunks(most) {
            let mut backoff = crate::retry::forever(PAUSES.0, PAUSES.1);
            let mut failed = u64::MAX;
            for tried in 1.. {
                let due = *job.due.lock();
                sleep_until(due.into()).await;
                let (mut turn, permit) = self.turn(job, batch.len()).await;
                if entity.generation() != generation {
                    return Ok(());
                }
                let began = Instant::now();
                let mut ahead = parts.filler.fill_ahead(entity, batch.to_vec(), permit).await;
                *turn = Instant::now() + began.elapsed();
                drop(turn);
                *job.due.lock() = began + Duration::from_secs_f64(batch.len() as f64 / f64::from(rate));
                let error = ahead.error.take();
                let whole = ahead.failed == batch.len() as u64;
                let again = match &error {
                    // The results of a query fare each as they do: no use in waiting for those of a key that takes too long.
                    Some(ReadError::SourceTimeout(_)) if entity.query.is_some() => {
                        tried < LATE_TRIES && (whole || ahead.failed < failed)
                    }
                    Some(error) => !error.is_of_the_key(),
                    None => ahead.unkept > 0 && parts.hierarchy.l2.as_ref().is_some_and(|l2| !l2.is_trusted()),
                };
                if again && tried < tries {
                    // What was filled is only looked up then.
                    failed = ahead.failed;
                    job.waits_for(error.map(|error| error.to_string()).as_deref());
                    sleep(backoff.next()).await;
                    continue;
                }
                self.count(job, &ahead);
                match error {
                    Some(ReadError::Refused(code)) if entity.generation() == generation => {
                        // All others would fare alike; of a query only where it is wrong itself, and not with some keys:
                        // syntax, names and rights are of class 42.
                        if entity.query.is_none() || (whole && code.starts_with("42")) {
                            return Err(format!("the database refuses to read rows: SQLSTATE {code}"));
                        }
                        break;
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Counts what became of keys.
    fn count(&self, job: &Job, ahead: &Ahead) {
        let (metrics, entity) = (&self.parts.metrics, job.entity.id);
        for (result, count) in [
            (Warmed::Filled, ahead.filled),
            (Warmed::Present, ahead.present),
            (Warmed::Unkept, ahead.unkept),
            (Warmed::Failed, ahead.failed),
        ] {
            metrics.keys(entity, result, count);
        }
        job.tell(|progress| {
            progress.add(ahead);
            metrics.remaining(entity, progress.remaining());
        });
    }

    /// Waits until fills can be kept. Meanwhile nobody waits for the hot set of an entity that is not cached.
    pub(super) async fn able(&self, job: &Job) {
        let mut gave_up = false;
        loop {
            let hierarchy = &self.parts.hierarchy;
            let waits_for = if !self.standing.leads() {
                "this instance to apply changes"
            } else if hierarchy.watermark.staleness().is_none_or(|behind| behind > self.parts.stale_after) {
                "replication to catch up"
            } else if hierarchy.l2.as_ref().is_some_and(|l2| !l2.is_trusted()) {
                "L2 to be trusted"
            } else if !job.entity.is_servable() || job.entity.is_reshaping() {
                gave_up |= job.hot.lock().take().is_some();
                "the entity to be cached"
            } else {
                if gave_up {
                    *job.hot.lock() = Some(HotTurn::take(&self.hot_jobs));
                }
                return job.waits_for(None);
            };
            job.waits_for(Some(waits_for));
            sleep(TICK).await;
        }
    }

    /// Waits until fills can be kept, nobody else's batch is under way, and readers leave the permits for one.
    async fn turn(&self, job: &Job, keys: usize) -> (MutexGuard<'_, Instant>, Permit) {
        loop {
            self.able(job).await;
            let turn = self.turn.lock().await;
            sleep_until((*turn).into()).await;
            if let Some(permit) = self.parts.filler.spare(keys) {
                job.waits_for(None);
                return (turn, permit);
            }
            // Another entity's job may go first.
            drop(turn);
            job.waits_for(Some(READERS));
            sleep(POLL).await;
        }
    }
}
