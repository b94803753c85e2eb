//! One entity's job.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::keys::Which;
use super::{Leadership, Phase, Progress, State, Trigger, Walk, Warming, place};
use crate::entity::{Entity, EntryKey, Generation};
use crate::metrics::Warmed;

/// Keys of one page.
const PAGE: u64 = 500;
/// Keys of one page where a SELECT gives them, which is run anew for each page.
const SELECT_PAGE: u64 = 5000;
/// How often a batch of hot keys is tried: what comes after it must not wait for a table that is locked.
const HOT_TRIES: usize = 2;
/// How long a walk waits for the hot sets of other entities.
const HOT_PATIENCE: Duration = Duration::from_secs(30);

/// What a job does.
#[derive(Debug, Clone)]
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
    pub entity: Arc<Entity>,
    kind: Kind,
    trigger: Trigger,
    /// In which term it was begun.
    term: u64,
    /// Ends it.
    pub cancel: CancellationToken,
    progress: Mutex<Progress>,
    began: Instant,
    /// Counted among those whose hot sets come first.
    pub hot: Mutex<Option<HotTurn>>,
    /// When the next batch, or page of keys, may begin.
    pub due: Mutex<Instant>,
    /// Which generation it warms, once it does.
    generation: Mutex<Option<Generation>>,
}

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// The entity's id.
    pub entity: usize,
    /// What it did.
    pub kind: Kind,
    /// How it ended.
    pub state: State,
    /// Which generation it warmed last.
    pub generation: Option<Generation>,
    /// In which term it was begun.
    pub term: u64,
}

/// One of those whose hot sets are still to be warmed, until it is dropped.
#[derive(Debug)]
pub(super) struct HotTurn(watch::Sender<usize>);

impl HotTurn {
    pub(super) fn take(jobs: &watch::Sender<usize>) -> Self {
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
    pub(super) fn new(
        (number, entity): (u64, Arc<Entity>),
        (trigger, term): (Trigger, u64),
        kind: Kind,
        hot_jobs: &watch::Sender<usize>,
    ) -> Self {
        let progress = Mutex::new(Progress::new(number, &entity.name, trigger));
        let hot = Mutex::new(kind.hot.then(|| HotTurn::take(hot_jobs)));
        let (cancel, began) = (CancellationToken::new(), Instant::now());
        let (due, generation) = (Mutex::new(began), Mutex::default());
        Job { entity, kind, trigger, term, cancel, progress, began, hot, due, generation }
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

    pub(super) fn waits_for(&self, what: Option<&str>) {
        let mut progress = self.progress.lock();
        if progress.waits_for.as_deref() != what {
            progress.waits_for = what.map(str::to_owned);
        }
    }

    /// Begins to count anew.
    fn restart(&self) {
        self.tell(|progress| {
            let total = progress.total.take().filter(|_| progress.done == 0);
            *progress = Progress { total, ..Progress::new(progress.job, &progress.entity, progress.trigger) };
        });
    }
}

impl<S: Leadership> Warming<S> {
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
        let (state, error) = match ended {
            Ok(state) => (state, None),
            Err(error) => (State::Failed, Some(error)),
        };
        let generation = *job.generation.lock();
        // Before it counts as ended: who sees that nothing runs sees what has become of what ran.
        let (kind, term) = (job.kind.clone(), job.term);
        self.ended.lock().push(Ended { entity: entity.id, kind, state, generation, term });
        let progress = {
            let mut progress = job.progress.lock();
            progress.seconds = job.began.elapsed().as_secs_f64();
            progress.waits_for = None;
            (progress.state, progress.error) = (state, error);
            progress.clone()
        };
        let Progress { trigger, state, done, filled, present, seconds, .. } = progress;
        match progress.error {
            Some(error) => {
                self.parts.metrics.failed(entity.id);
                warn!(entity = entity.name, ?trigger, done, error, "warming has failed");
            }
            // Once for each round: whoever wants to see that asks for it.
            None if trigger == Trigger::Schedule => {
                debug!(entity = entity.name, ?state, done, filled, present, seconds, "warming has ended");
            }
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
            let began = Instant::now();
            // Taken before anything is read of the entity.
            let generation = job.entity.generation();
            *job.generation.lock() = Some(generation);
            let passed = self.pass(job, generation, resume).await;
            let pace = &self.paces[job.entity.id];
            if job.trigger == Trigger::Generation || matches!(passed, Ok(Passed::Voided)) {
                pace.lock().ended(began, Instant::now());
            }
            match passed? {
                Passed::Whole => return Ok(State::Done),
                Passed::Voided => {
                    resume = false;
                    job.restart();
                    let until = pace.lock().until().unwrap_or(began);
                    if until > Instant::now() {
                        // Nobody is to wait for that.
                        drop(job.hot.lock().take());
                        job.waits_for(Some("a pause: new generations of the entity follow each other"));
                        sleep_until(until.into()).await;
                    }
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
        let mut hot_jobs = self.hot_jobs.subscribe();
        // The sender lives as long as this. And whoever takes too long does not keep all others from their walks.
        let _ = timeout(HOT_PATIENCE, hot_jobs.wait_for(|jobs| *jobs == 0)).await;
        job.waits_for(None);
        self.go(job, generation, walk, resume).await
    }

    /// Walks through keys.
    async fn go(&self, job: &Job, generation: Generation, walk: &Walk, resume: bool) -> Result<Passed, String> {
        let (entity, l2) = (&job.entity, self.parts.hierarchy.l2.as_ref());
        let place = match l2.filter(|_| resume) {
            // Where it cannot be known, the walk begins anew.
            Some(l2) => place::find(l2, entity, generation, walk).await.ok().flatten(),
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
}
