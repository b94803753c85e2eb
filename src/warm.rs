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
//! - there is one batch under way at a time, of all entities, so no more than one connection is used;
//! - it begins only while readers use no more than half of the permits and of the connections, and wait for none;
//! - after it nothing begins for as long as it took: the slower Postgres is, the less it is asked;
//! - nothing begins while replication is behind by more than `freshness.stale_after`, or L2 is not trusted;
//! - of one entity no more than `rate` keys a second.
//!
//! A new generation of an entity begins its job anew. A walk leaves its place in L2 after each page, so that it goes on
//! there after a crash, or on another instance.

mod job;
pub mod keys;
mod memory;
mod place;
pub mod progress;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::job::{Job, Kind};
use self::keys::{Keys, KeysError, Which};
pub use self::progress::{Phase, Progress, State, Trigger};
use crate::cache::Hierarchy;
use crate::cache::fill::Filler;
use crate::cache::hot::HotSets;
use crate::cache::warm::Warmer;
use crate::config::{WarmConfig, WarmOn, WarmOrder};
use crate::entity::{Entity, Generation};
use crate::lsn::Lsn;
use crate::metrics::{Commanded, WarmMetrics};

/// How often it is looked what is to be warmed.
const TICK: Duration = Duration::from_millis(100);
/// How often hot sets are kept in L2.
const MEMORIZE: Duration = Duration::from_secs(30);
/// How long keeping them may take when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(1);

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
    fn signature(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::default();
        (&self.which, self.order).hash(&mut hasher);
        hasher.finish()
    }
}

/// What warming needs to know of the daemon.
pub trait Standing: Send + Sync + 'static {
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
    begin: mpsc::UnboundedSender<Arc<Job>>,
    begun: Mutex<Option<mpsc::UnboundedReceiver<Arc<Job>>>>,
    /// How many jobs have not warmed their hot sets yet.
    hot_jobs: watch::Sender<usize>,
    /// Held by the batch that is under way; and when the next one may begin.
    turn: tokio::sync::Mutex<Instant>,
}

/// What is known of an entity from one look to the next.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    generation: Generation,
    /// When it is to be warmed again.
    due: Option<Instant>,
}

impl<S: Standing> Warming<S> {
    /// Warms nothing yet.
    pub fn new(parts: Parts, standing: S) -> Arc<Self> {
        let (begin, begun) = mpsc::unbounded_channel();
        Arc::new(Warming {
            jobs: Mutex::new(vec![None; parts.hierarchy.entities.len()]),
            parts,
            standing,
            begin,
            begun: Mutex::new(Some(begun)),
            hot_jobs: watch::Sender::new(0),
            turn: tokio::sync::Mutex::new(Instant::now()),
        })
    }

    /// How entities' jobs stand: those under way, and the last ones.
    pub fn progress(&self) -> Vec<Progress> {
        self.jobs.lock().iter().flatten().map(|job| job.progress()).collect()
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
        let job = self.start(entity, Trigger::Operator, kind).ok_or_else(|| Refused::Running(entity.name.clone()))?;
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
    fn start(&self, entity: &Arc<Entity>, trigger: Trigger, kind: Kind) -> Option<Arc<Job>> {
        let mut jobs = self.jobs.lock();
        let slot = jobs.get_mut(entity.id)?;
        if slot.as_ref().is_some_and(|job| job.is_running()) {
            return None;
        }
        if kind.walk.is_none() && self.parts.hot.most_read(entity.id).is_empty() {
            // There is nothing to do.
            return None;
        }
        // Counted before it runs: jobs that begin together see each other.
        let job = Arc::new(Job::new(entity.clone(), trigger, kind, &self.hot_jobs));
        *slot = Some(job.clone());
        // Received for as long as anything runs; afterwards nothing is begun.
        self.begin.send(job.clone()).ok()?;
        Some(job)
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
                    if memorized.elapsed() >= MEMORIZE {
                        memorized = Instant::now();
                        self.memorize().await;
                    }
                }
            }
            self.parts.metrics.jobs(running.len());
        }
        self.jobs.lock().iter().flatten().for_each(|job| job.cancel.cancel());
        // While connections to L2 are still there.
        let farewell = async {
            self.memorize().await;
            while running.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Keeps what is read most.
    async fn memorize(&self) {
        if let Some(l2) = self.parts.hierarchy.l2.as_ref().filter(|_| self.standing.leads()) {
            for entity in &self.parts.hierarchy.entities {
                memory::keep(l2, &self.parts.hot, entity).await;
            }
        }
    }

    /// Whether fills can be kept.
    fn is_able(&self) -> bool {
        let hierarchy = &self.parts.hierarchy;
        self.standing.leads()
            && hierarchy.watermark.staleness().is_some()
            && hierarchy.l2.as_ref().is_none_or(|l2| l2.is_trusted())
    }

    /// Looks what is to be warmed.
    async fn look(&self, seen: &mut Option<Vec<Seen>>) {
        if self.standing.is_superseded() {
            if seen.take().is_some() {
                info!("another instance applies changes: nothing more is warmed here");
            }
            self.jobs.lock().iter().flatten().for_each(|job| job.cancel.cancel());
            return;
        }
        if !self.is_able() {
            return;
        }
        let entities = &self.parts.hierarchy.entities;
        let Some(seen) = seen else {
            *seen = Some(self.take_over().await);
            return;
        };
        // All of them at once, so that no job begins before it is known which hot sets come first.
        let (now, mut raised) = (Instant::now(), false);
        for (entity, seen) in entities.iter().zip(seen.iter_mut()) {
            let config = self.parts.config.get(entity.id).and_then(Option::as_ref);
            let on = |on| config.filter(|config| config.on.contains(&on)).map(Walk::new);
            // After the generation was raised: an entity that is not cached now will have another one when it is.
            let generation = entity.generation();
            if generation > seen.generation && entity.is_servable() {
                seen.generation = generation;
                raised = true;
                let kind = Kind { hot: true, walk: on(WarmOn::Generation), resume: false };
                self.start(entity, Trigger::Generation, kind);
            }
            if seen.due.is_some_and(|due| due <= now) {
                let kind = Kind { hot: true, walk: config.map(Walk::new), resume: false };
                self.start(entity, Trigger::Schedule, kind);
            }
            if self.is_running(entity.id) || seen.due.is_none_or(|due| due <= now) {
                seen.due = config.and_then(|config| config.every).map(|every| now + every);
            }
        }
        if raised {
            self.note_generations(seen).await;
        }
        self.obey(self.parts.hierarchy.watermark.load());
    }

    fn is_running(&self, entity: usize) -> bool {
        self.jobs.lock().get(entity).is_some_and(|job| job.as_ref().is_some_and(|job| job.is_running()))
    }

    /// Begins what transactions asked for that are applied now.
    fn obey(&self, applied: Lsn) {
        for entity in self.parts.warmer.take_entities(applied) {
            let entity = &self.parts.hierarchy.entities[entity];
            let walk = Walk::new(&self.walk(entity));
            let known = entity.query.is_none() || matches!(walk.which, Which::Select(_));
            let kind = Kind { hot: true, walk: known.then_some(walk), resume: false };
            // One that runs warms what the transaction has written, too, or its events see to it.
            let begun = self.start(entity, Trigger::Command, kind).is_some();
            self.parts.warmer.count(if begun { Commanded::Done } else { Commanded::Dropped });
        }
    }

    /// This instance has begun to apply changes: hot sets that others have kept are read, what is to be warmed at the
    /// start is begun, and what others were at goes on.
    async fn take_over(&self) -> Vec<Seen> {
        let entities = &self.parts.hierarchy.entities;
        let generations = match &self.parts.hierarchy.l2 {
            Some(l2) => memory::generations(l2).await,
            None => Default::default(),
        };
        let mut kinds = Vec::with_capacity(entities.len());
        for entity in entities {
            let config = self.parts.config.get(entity.id).and_then(Option::as_ref);
            // Without L2 all is new.
            let is_new = generations.get(&entity.name).is_none_or(|warmed| *warmed < entity.generation().0);
            let begins = |on: &WarmOn| *on == WarmOn::Start || is_new;
            let mut walk = config.filter(|config| config.on.iter().any(begins)).map(Walk::new);
            if let Some(l2) = &self.parts.hierarchy.l2 {
                memory::recall(l2, &self.parts.hot, entity).await;
                let configured = Walk::new(&self.walk(entity));
                if walk.is_none() && place::find(l2, entity, entity.generation(), &configured).await.is_some() {
                    walk = Some(configured);
                }
            }
            kinds.push(Kind { hot: true, walk, resume: true });
        }
        let now = Instant::now();
        let begin = |(entity, kind): (&Arc<Entity>, Kind)| {
            let config = self.parts.config.get(entity.id).and_then(Option::as_ref);
            let seen =
                Seen { generation: entity.generation(), due: config.and_then(|c| c.every).map(|every| now + every) };
            self.start(entity, Trigger::Start, kind);
            seen
        };
        let seen: Vec<Seen> = entities.iter().zip(kinds).map(begin).collect();
        self.note_generations(&seen).await;
        seen
    }

    async fn note_generations(&self, seen: &[Seen]) {
        let Some(l2) = &self.parts.hierarchy.l2 else { return };
        let names = self.parts.hierarchy.entities.iter().map(|entity| entity.name.as_str());
        memory::keep_generations(l2, names.zip(seen.iter().map(|seen| seen.generation))).await;
    }
}
