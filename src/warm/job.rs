//! One entity's job.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{MutexGuard, watch};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::keys::{KeysError, Page, Which};
use super::{Phase, Progress, Standing, State, TICK, Trigger, Walk, Warming, place};
use crate::cache::answer::ReadError;
use crate::cache::permits::Permit;
use crate::entity::{Entity, EntryKey, Generation};
use crate::metrics::Warmed;

/// Keys of one page.
const PAGE: u64 = 500;
/// Keys of one page where a SELECT gives them, which is run anew for each page.
const SELECT_PAGE: u64 = 5000;
/// Batches a second, where the rate is low.
const BATCHES: u32 = 10;
/// How often it is looked whether readers leave anything.
const POLL: Duration = Duration::from_millis(5);
/// Pauses while Postgres does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often a batch of hot keys is tried: what comes after it must not wait for a table that is locked.
const HOT_TRIES: usize = 2;

/// What a job does.
#[derive(Debug)]
pub(super) struct Kind {
    /// Whether what is read most is warmed first.
    pub hot: bool,
    /// The walk through keys that follows.
    pub walk: Option<Walk>,
    /// Whether it goes on where another one was interrupted.
    pub resume: bool,
}

/// One entity's job.
#[derive(Debug)]
pub(super) struct Job {
    entity: Arc<Entity>,
    kind: Kind,
    /// Ends it.
    pub cancel: CancellationToken,
    progress: Mutex<Progress>,
    began: Instant,
    /// Counted among those whose hot sets come first.
    hot: Mutex<Option<HotTurn>>,
    /// When the next batch may begin.
    due: Mutex<Instant>,
}

/// One of those whose hot sets are still to be warmed, until it is dropped.
#[derive(Debug)]
struct HotTurn(watch::Sender<usize>);

impl HotTurn {
    fn take(jobs: &watch::Sender<usize>) -> Self {
        jobs.send_modify(|count| *count += 1);
        HotTurn(jobs.clone())
    }
}

impl Drop for HotTurn {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// How a pass through a job ended.
enum Passed {
    /// All is warmed.
    Whole,
    /// What was warmed is of no generation that stands.
    Voided,
}

impl Job {
    pub(super) fn new(entity: Arc<Entity>, trigger: Trigger, kind: Kind, hot_jobs: &watch::Sender<usize>) -> Self {
        let progress = Mutex::new(Progress::new(&entity.name, trigger));
        let hot = Mutex::new(kind.hot.then(|| HotTurn::take(hot_jobs)));
        let (cancel, began) = (CancellationToken::new(), Instant::now());
        Job { entity, kind, cancel, progress, began, hot, due: Mutex::new(began) }
    }

    pub(super) fn is_running(&self) -> bool {
        self.progress.lock().state == State::Running
    }

    pub(super) fn progress(&self) -> Progress {
        let mut progress = self.progress.lock().clone();
        if progress.state == State::Running {
            progress.seconds = self.began.elapsed().as_secs_f64();
        }
        progress
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
    }

    fn waits_for(&self, what: Option<&str>) {
        let mut progress = self.progress.lock();
        if progress.waits_for.as_deref() != what {
            progress.waits_for = what.map(str::to_owned);
        }
    }

    /// Begins to count anew.
    fn restart(&self) {
        self.tell(|progress| {
            let total = progress.total.take().filter(|_| progress.done == 0);
            *progress = Progress { total, ..Progress::new(&progress.entity, progress.trigger) };
        });
    }
}

impl<S: Standing> Warming<S> {
    /// Performs a job to its end.
    pub(super) async fn perform(&self, job: &Job) {
        let ended = tokio::select! {
            ended = self.work(job) => ended,
            () = job.cancel.cancelled() => Ok(State::Cancelled),
        };
        // However it ended.
        drop(job.hot.lock().take());
        let entity = &job.entity;
        self.parts.metrics.remaining(entity.id, 0);
        let progress = {
            let mut progress = job.progress.lock();
            progress.seconds = job.began.elapsed().as_secs_f64();
            progress.waits_for = None;
            match ended {
                Ok(state) => progress.state = state,
                Err(error) => {
                    progress.state = State::Failed;
                    progress.error = Some(error);
                }
            }
            progress.clone()
        };
        let Progress { trigger, state, done, filled, present, seconds, .. } = progress;
        match progress.error {
            Some(error) => warn!(entity = entity.name, ?trigger, done, error, "warming has failed"),
            None if done > 0 || job.kind.walk.is_some() => {
                info!(entity = entity.name, ?trigger, ?state, done, filled, present, seconds, "warming has ended");
            }
            // There was nothing to warm.
            None => {}
        }
    }

    async fn work(&self, job: &Job) -> Result<State, String> {
        let mut resume = job.kind.resume;
        loop {
            self.able(job).await;
            // Taken before anything is read of the entity.
            let generation = job.entity.generation();
            match self.pass(job, generation, resume).await? {
                Passed::Whole => return Ok(State::Done),
                Passed::Voided => {
                    resume = false;
                    job.restart();
                    if job.kind.hot {
                        // Like the others, whose hot sets are as cold now.
                        job.hot.lock().get_or_insert_with(|| HotTurn::take(&self.hot_jobs));
                    }
                }
            }
        }
    }

    async fn pass(&self, job: &Job, generation: Generation, resume: bool) -> Result<Passed, String> {
        let entity = &job.entity;
        if job.kind.hot {
            job.tell(|progress| progress.phase = Phase::Hot);
            let hot = self.parts.hot.most_read(entity.id);
            let keys = hot.iter().filter_map(|(key, _)| entity.stored_key(&format!("{}{key}", entity.redis_prefix)));
            let rate = job.kind.walk.as_ref().map_or_else(|| self.walk(entity).rate, |walk| walk.rate);
            let keys: Vec<EntryKey> = keys.collect();
            job.tell(|progress| progress.total = Some(keys.len() as u64));
            let filled = self.fill(job, generation, keys, rate, HOT_TRIES).await;
            if entity.generation() != generation {
                return Ok(Passed::Voided);
            }
            drop(job.hot.lock().take());
            if let (Err(error), None) = (filled, &job.kind.walk) {
                return Err(error);
            }
        }
        let Some(walk) = &job.kind.walk else { return Ok(Passed::Whole) };
        job.waits_for(Some("what is read most of other entities comes first"));
        // The sender lives as long as this.
        let _ = self.hot_jobs.subscribe().wait_for(|jobs| *jobs == 0).await;
        job.waits_for(None);
        self.go(job, generation, walk, resume).await
    }

    /// Walks through keys.
    async fn go(&self, job: &Job, generation: Generation, walk: &Walk, resume: bool) -> Result<Passed, String> {
        let (entity, l2) = (&job.entity, self.parts.hierarchy.l2.as_ref());
        let place = match l2.filter(|_| resume) {
            Some(l2) => place::find(l2, entity, generation, walk).await,
            None => None,
        };
        let mut resumed = place.is_some();
        let (mut after, mut done) = place.map_or((None, 0), |place| (Some(place.after), place.done));
        let before = job.progress().done;
        job.tell(|progress| {
            progress.phase = Phase::Keys;
            progress.resumed = resumed;
            progress.done += done;
        });
        let since = self.parts.hierarchy.watermark.restarted();
        if let Ok(total) = self.parts.keys.estimate(entity, (&walk.which, walk.order), walk.limit, since).await {
            job.tell(|progress| progress.total = Some(before + total));
        }
        loop {
            let page = match &walk.which {
                Which::Rows(_) => PAGE,
                Which::Select(_) => SELECT_PAGE,
            };
            let wanted = page.min(walk.limit.saturating_sub(done));
            if wanted == 0 {
                break;
            }
            let page = match self.page(job, generation, walk, after.as_deref(), wanted).await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(Passed::Voided),
                // What stood in L2 need not make sense.
                Err(_) if resumed => {
                    (after, done, resumed) = (None, 0, false);
                    job.tell(|progress| (progress.done, progress.resumed) = (before, false));
                    continue;
                }
                Err(error) => return Err(error),
            };
            resumed = false;
            done += page.keys.len() as u64 + page.strange;
            self.parts.metrics.keys(entity.id, Warmed::Strange, page.strange);
            job.tell(|progress| {
                progress.done += page.strange;
                progress.strange += page.strange;
            });
            self.fill(job, generation, page.keys, walk.rate, usize::MAX).await?;
            if entity.generation() != generation {
                return Ok(Passed::Voided);
            }
            let Some(last) = page.last.filter(|_| page.more) else { break };
            if let Some(l2) = l2 {
                place::keep(l2, entity, generation, walk, &last, done).await;
            }
            after = Some(last);
        }
        if let Some(l2) = l2 {
            place::forget(l2, entity).await;
        }
        Ok(Passed::Whole)
    }

    /// A page of keys; `None` if they are of no use any more.
    async fn page(
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
            let since = self.parts.hierarchy.watermark.restarted();
            let page = self.parts.keys.page(entity, (&walk.which, walk.order), after, wanted, since).await;
            if entity.generation() != generation {
                return Ok(None);
            }
            match page {
                Ok(page) => return Ok(Some(page)),
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
    async fn fill(
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
                let away = match &error {
                    Some(error) => !error.is_of_the_key(),
                    None => ahead.unkept > 0 && parts.hierarchy.l2.as_ref().is_some_and(|l2| !l2.is_trusted()),
                };
                if away && tried < tries {
                    // What was filled is only looked up then.
                    job.waits_for(error.map(|error| error.to_string()).as_deref());
                    sleep(backoff.next()).await;
                    continue;
                }
                for (result, count) in [
                    (Warmed::Filled, ahead.filled),
                    (Warmed::Present, ahead.present),
                    (Warmed::Unkept, ahead.unkept),
                    (Warmed::Failed, ahead.failed),
                ] {
                    parts.metrics.keys(entity.id, result, count);
                }
                job.tell(|progress| {
                    progress.add(&ahead);
                    parts.metrics.remaining(entity.id, progress.remaining());
                });
                match error {
                    // All others would fare alike; the results of a query each fare as they do.
                    Some(ReadError::Refused(code))
                        if entity.generation() == generation
                            && (entity.query.is_none() || ahead.failed == batch.len() as u64) =>
                    {
                        return Err(format!("the database refuses to read rows: SQLSTATE {code}"));
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Waits until fills can be kept.
    async fn able(&self, job: &Job) {
        loop {
            let hierarchy = &self.parts.hierarchy;
            let waits_for = if !self.standing.leads() {
                "this instance to apply changes"
            } else if hierarchy.watermark.staleness().is_none_or(|behind| behind > self.parts.stale_after) {
                "replication to catch up"
            } else if hierarchy.l2.as_ref().is_some_and(|l2| !l2.is_trusted()) {
                "L2 to be trusted"
            } else if !job.entity.is_servable() || job.entity.is_reshaping() {
                "the entity to be cached"
            } else {
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
            job.waits_for(Some("readers, who need Postgres more"));
            sleep(POLL).await;
        }
    }
}
