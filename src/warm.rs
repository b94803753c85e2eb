//! Warming: filling entries before anybody reads them.
//!
//! ```text
//! start | generation | schedule | command | operator -> Job, one of an entity at a time
//! Job: hot set -> [all hot sets done] -> keys, page by page (keys) -> batches -> Filler, under leases
//! ```
//!
//! Only the instance that applies changes warms. A batch is a fill like that of a reader who misses, so entries that
//! events race with are as right as any. It takes what readers leave:
//!
//! - there is one batch under way at a time, of all entities, so no more than one connection is used; and one page of keys,
//!   over a connection of its own;
//! - it begins only while readers use no more than half of the permits and of the connections, and wait for none;
//! - after it nothing begins for as long as it took: the slower Postgres is, the less it is asked;
//! - nothing begins while replication is behind by more than `freshness.stale_after`, or L2 is not trusted;
//! - of one entity no more than `rate` keys a second.
//!
//! A new generation of an entity begins its job anew; where generations follow each other, after ever longer pauses. A walk
//! leaves its place in L2 after each page, so that it goes on there after a crash, or on another instance.

mod batch;
mod job;
pub mod keys;
mod memory;
mod occasion;
mod pace;
mod place;
pub mod progress;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::job::{Ended, Job, Kind};
use self::keys::{Keys, KeysError, Which};
use self::occasion::Seen;
use self::pace::Pace;
pub use self::progress::{Phase, Progress, State, Trigger};
use crate::cache::Hierarchy;
use crate::cache::fill::Filler;
use crate::cache::hot::HotSets;
use crate::cache::warm::Warmer;
use crate::config::{WarmConfig, WarmOrder};
use crate::entity::Entity;
use crate::metrics::WarmMetrics;

/// How often it is looked what is to be warmed.
const TICK: Duration = Duration::from_millis(100);
/// How often hot sets fade, and are kept in L2.
const MEMORIZE: Duration = Duration::from_secs(30);
/// How long keeping them may take when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// A walk through an entity's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Which keys.
    pub which: Which,
    /// In which order.
    pub order: WarmOrder,
    /// How many at most.
    pub limit: u64,
    /// How many a second at most.
    pub rate: u32,
}

impl Walk {
    /// As an entity is configured to be warmed.
    pub fn new(config: &WarmConfig) -> Self {
        let which = match &config.keys {
            Some(select) => Which::Select(select.clone()),
            None => Which::Rows(config.condition.clone()),
        };
        Walk { which, order: config.order, limit: config.limit, rate: config.rate }
    }

    /// Tells walks apart whose places mean other things.
    fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::default();
        (&self.which, self.order).hash(&mut hasher);
        hasher.finish()
    }
}

/// What warming needs to know of the daemon.
pub trait Leadership: Send + Sync + 'static {
    /// Whether this instance applies changes now.
    fn leads(&self) -> bool;

    /// Whether another one does.
    fn is_superseded(&self) -> bool;
}

/// Why a job was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One is under way.
    #[error("{0} is being warmed already: wait for that, or end it with --cancel")]
    Running(String),
    /// None is under way.
    #[error("{0} is not being warmed")]
    Idle(String),
    /// Another instance applies changes, or none.
    #[error("this instance does not apply changes now: it waits for the slot, or for the source database")]
    NotLeading,
    /// It is not known which keys the entity has.
    #[error("{0} holds the results of a query: a SELECT must say which keys to warm (warm.keys, or --keys)")]
    NoKeys(String),
    /// Postgres refuses the statement.
    #[error("the database refuses it: {0}")]
    Statement(String),
    /// Postgres is away.
    #[error("the database cannot be asked: {0}")]
    Away(String),
}

/// What warming is made of.
pub struct Parts {
    /// The tiers.
    pub hierarchy: Arc<Hierarchy>,
    /// What fills them.
    pub filler: Arc<Filler>,
    /// Reads keys.
    pub keys: Keys,
    /// What is read most.
    pub hot: Arc<HotSets>,
    /// What applications ask for.
    pub warmer: Arc<Warmer>,
    /// How entities are warmed by themselves, by id.
    pub config: Vec<Option<WarmConfig>>,
    /// Nothing is filled while replication is further behind.
    pub stale_after: Duration,
    /// Its metrics.
    pub metrics: WarmMetrics,
}

/// Warms entities.
pub struct Warming<S> {
    parts: Parts,
    standing: S,
    /// By entity: the job that is under way, or the last one.
    jobs: Mutex<Vec<Option<Arc<Job>>>>,
    /// By entity: the last job that an operator has begun, who may still ask how it ended while others follow it.
    asked: Mutex<Vec<Option<Arc<Job>>>>,
    /// The number of the next job.
    number: AtomicU64,
    begin: mpsc::UnboundedSender<Arc<Job>>,
    begun: Mutex<Option<mpsc::UnboundedReceiver<Arc<Job>>>>,
    /// Jobs that have ended since it was looked last.
    ended: Mutex<Vec<Ended>>,
    /// Raised while another instance applies changes: jobs of an earlier term are of no account.
    term: AtomicU64,
    /// By entity: when it may be warmed for a new generation.
    paces: Vec<Mutex<Pace>>,
    /// How many jobs have not warmed their hot sets yet.
    hot_jobs: watch::Sender<usize>,
    /// Held by the batch that is under way; and when the next one may begin.
    turn: tokio::sync::Mutex<Instant>,
}

/// What came of the wish to have a job run.
enum Start {
    /// It runs.
    Begun(Arc<Job>),
    /// Another one of the entity is under way.
    Running,
    /// There is nothing to do.
    Nothing,
}

impl<S: Leadership> Warming<S> {
    /// Warms nothing yet.
    pub fn new(parts: Parts, standing: S) -> Arc<Self> {
        let (begin, begun) = mpsc::unbounded_channel();
        let entities = parts.hierarchy.entities.len();
        Arc::new(Warming {
            jobs: Mutex::new(vec![None; entities]),
            asked: Mutex::new(vec![None; entities]),
            number: AtomicU64::new(occasion::wall()),
            parts,
            standing,
            begin,
            begun: Mutex::new(Some(begun)),
            ended: Mutex::default(),
            term: AtomicU64::default(),
            paces: (0..entities).map(|_| Mutex::default()).collect(),
            hot_jobs: watch::Sender::new(0),
            turn: tokio::sync::Mutex::new(Instant::now()),
        })
    }

    /// How entities' jobs stand: those under way, or the last ones; then the last ones that operators have begun, where others
    /// have followed.
    pub fn progress(&self) -> Vec<Progress> {
        let jobs = self.jobs.lock().clone();
        let asked = self.asked.lock().clone();
        let followed = asked.into_iter().zip(&jobs).filter(|(asked, last)| {
            asked.as_ref().zip(last.as_ref()).is_some_and(|(asked, last)| !Arc::ptr_eq(asked, last))
        });
        let followed: Vec<_> = followed.filter_map(|(asked, _)| asked).collect();
        jobs.iter().flatten().chain(&followed).map(|job| job.progress()).collect()
    }

    /// The walk that an entity is configured for, or the default one.
    pub fn walk(&self, entity: &Entity) -> WarmConfig {
        self.parts.config.get(entity.id).cloned().flatten().unwrap_or_default()
    }

    /// Begins what an operator asks for.
    ///
    /// # Errors
    /// Why not.
    pub async fn begin(&self, entity: &Arc<Entity>, walk: Walk) -> Result<Progress, Refused> {
        if !self.standing.leads() || self.parts.hierarchy.watermark.staleness().is_none() {
            return Err(Refused::NotLeading);
        }
        if entity.query.is_some() && matches!(walk.which, Which::Rows(_)) {
            return Err(Refused::NoKeys(entity.name.clone()));
        }
        let since = self.parts.hierarchy.watermark.restarted();
        let total = self.parts.keys.estimate(entity, (&walk.which, walk.order), walk.limit, since).await;
        let total = total.map_err(|error| match error {
            KeysError::Refused(what) => Refused::Statement(what),
            KeysError::Away(error) => Refused::Away(error.to_string()),
        })?;
        let kind = Kind { hot: false, walk: Some(walk), resume: true };
        let Start::Begun(job) = self.start(entity, Trigger::Operator, kind) else {
            return Err(Refused::Running(entity.name.clone()));
        };
        job.tell(|progress| progress.total = Some(total));
        Ok(job.progress())
    }

    /// Ends the job of an entity.
    ///
    /// # Errors
    /// If there is none.
    pub fn cancel(&self, entity: &Entity) -> Result<Progress, Refused> {
        let job = self.jobs.lock().get(entity.id).cloned().flatten().filter(|job| job.is_running());
        let job = job.ok_or_else(|| Refused::Idle(entity.name.clone()))?;
        job.cancel.cancel();
        Ok(job.progress())
    }

    /// Has a job run, unless one is under way.
    fn start(&self, entity: &Arc<Entity>, trigger: Trigger, kind: Kind) -> Start {
        let mut jobs = self.jobs.lock();
        let Some(slot) = jobs.get_mut(entity.id) else { return Start::Nothing };
        if slot.as_ref().is_some_and(|job| job.is_running()) {
            return Start::Running;
        }
        if kind.walk.is_none() && self.parts.hot.most_read(entity.id).is_empty() {
            return Start::Nothing;
        }
        // Counted before it runs: jobs that begin together see each other.
        let term = self.term.load(Ordering::Relaxed);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let job = Arc::new(Job::new((number, entity.clone()), (trigger, term), kind, &self.hot_jobs));
        // Received for as long as anything runs; afterwards nothing is begun.
        if self.begin.send(job.clone()).is_err() {
            return Start::Nothing;
        }
        *slot = Some(job.clone());
        if trigger == Trigger::Operator {
            self.asked.lock()[entity.id] = Some(job.clone());
        }
        Start::Begun(job)
    }

    /// Warms what is to be warmed, until stopped.
    pub async fn run(self: &Arc<Self>, stop: CancellationToken) {
        let Some(mut begun) = self.begun.lock().take() else { return };
        let mut running = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut memorized = Instant::now();
        let mut seen: Option<Vec<Seen>> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(job) = begun.recv() => {
                    let warming = self.clone();
                    running.spawn(async move { warming.perform(&job).await });
                }
                Some(_) = running.join_next(), if !running.is_empty() => {}
                _ = tick.tick() => {
                    self.look(&mut seen).await;
                    if memorized.elapsed() >= MEMORIZE && self.standing.leads() {
                        memorized = Instant::now();
                        self.parts.hot.fade();
                        self.memorize(seen.as_deref()).await;
                    }
                }
            }
            self.parts.metrics.jobs(running.len());
        }
        self.jobs.lock().iter().flatten().for_each(|job| job.cancel.cancel());
        // While connections to L2 are still there. The stream may have ended already: then this instance leads no more, and nobody
        // else did when it was looked last.
        let farewell = async {
            self.memorize(seen.as_deref()).await;
            while running.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Keeps what is read most, and what was warmed, once it is known what others have kept: that would be lost. Also where
    /// nothing has changed, for notes are forgotten that nobody renews.
    async fn memorize(&self, seen: Option<&[Seen]>) {
        let l2 = self.parts.hierarchy.l2.as_ref();
        let Some((l2, seen)) = l2.zip(seen) else { return };
        for entity in &self.parts.hierarchy.entities {
            memory::keep(l2, &self.parts.hot, entity).await;
        }
        self.keep_warmed(l2, seen).await;
    }
}
