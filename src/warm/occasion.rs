//! When entities are warmed: at the start, after a new generation, on schedule, and when an application asks for it.
//!
//! An occasion passes only when its job has begun, or there is nothing to do: while another job of the entity runs, it is
//! looked again with the next tick. What a job has warmed is known when it has ended, and only then noted in L2.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tracing::info;

use super::job::Kind;
use super::keys::Which;
use super::memory::{self, Warmed};
use super::{Leadership, Start, State, Trigger, Walk, Warming, place};
use crate::cache::l2::{L2, L2Error};
use crate::config::{WarmConfig, WarmOn};
use crate::entity::{Entity, Generation};
use crate::metrics::Commanded;

/// What is known of an entity from one look to the next.
#[derive(Debug)]
pub(super) struct Seen {
    /// The last generation whose occasion has passed.
    generation: Generation,
    /// What is to be begun because this instance has begun to apply changes.
    start: Option<Kind>,
    /// When it is to be warmed again.
    due: Option<Instant>,
    /// Applications have asked for it so often.
    commands: u64,
    /// What is noted of it.
    warmed: Warmed,
}

/// Milliseconds since 1970.
pub(super) fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// How long to wait for the next walk, `now` by the wall's clock; no longer than from one to the next, whatever that clock
/// says.
fn left(every: Duration, ended: u64, now: u64) -> Duration {
    match ended {
        0 => every,
        ended => every.saturating_sub(Duration::from_millis(now.saturating_sub(ended))),
    }
}

impl<S: Leadership> Warming<S> {
    /// Whether fills can be kept.
    fn is_able(&self) -> bool {
        let hierarchy = &self.parts.hierarchy;
        self.standing.leads()
            && hierarchy.watermark.staleness().is_some()
            && hierarchy.l2.as_ref().is_none_or(|l2| l2.is_trusted())
    }

    fn config(&self, entity: &Entity) -> Option<&WarmConfig> {
        self.parts.config.get(entity.id).and_then(Option::as_ref)
    }

    /// The walk that follows a new generation, if one does.
    fn on_generation(&self, entity: &Entity) -> Option<Walk> {
        self.config(entity).filter(|config| config.on.contains(&WarmOn::Generation)).map(Walk::new)
    }

    /// Looks what is to be warmed.
    pub(super) async fn look(&self, seen: &mut Option<Vec<Seen>>) {
        if self.standing.is_superseded() {
            self.term.fetch_add(1, Ordering::Relaxed);
            if let Some(seen) = seen.take() {
                info!("another instance applies changes: nothing more is warmed here");
                (0..seen.iter().map(|seen| seen.commands).sum())
                    .for_each(|_| self.parts.warmer.count(Commanded::Dropped));
            }
            self.jobs.lock().iter().flatten().for_each(|job| job.cancel.cancel());
            return;
        }
        if !self.is_able() {
            return;
        }
        let Some(seen) = seen else {
            match self.take_over().await {
                Ok(found) => *seen = Some(found),
                // The next look begins it anew.
                Err(error) => tracing::debug!(%error, "read what was warmed"),
            }
            return;
        };
        let has_news = self.settle(seen);
        for entity in self.parts.warmer.take_entities(self.parts.hierarchy.watermark.load()) {
            seen[entity].commands += 1;
        }
        // All of them at once, so that no job begins before it is known which hot sets come first.
        for (entity, seen) in self.parts.hierarchy.entities.iter().zip(seen.iter_mut()) {
            self.attend(entity, seen);
        }
        if has_news && let Some(l2) = &self.parts.hierarchy.l2 {
            self.keep_warmed(l2, seen).await;
        }
    }

    /// Notes in L2 what was warmed, if anything was.
    pub(super) async fn keep_warmed(&self, l2: &L2, seen: &[Seen]) {
        let names = self.parts.hierarchy.entities.iter().map(|entity| entity.name.as_str());
        let warmed = || seen.iter().map(|seen| seen.warmed);
        if warmed().any(|warmed| warmed != Warmed::default()) {
            memory::keep_warmed(l2, names.zip(warmed())).await;
        }
    }

    /// Takes note of the jobs that have ended; says whether L2 is to be told. What was begun before another instance has
    /// applied changes is past: the notes that were read since tell more.
    fn settle(&self, seen: &mut [Seen]) -> bool {
        let mut has_news = false;
        let term = self.term.load(Ordering::Relaxed);
        let ended = std::mem::take(&mut *self.ended.lock());
        for ended in ended.into_iter().filter(|ended| ended.term == term) {
            let (entity, seen) = (&self.parts.hierarchy.entities[ended.entity], &mut seen[ended.entity]);
            let (walk, done) = (ended.kind.walk.as_ref(), ended.state == State::Done);
            // It has done what a new generation asks for, or would fail again.
            let covers = ended.kind.hot && self.on_generation(entity).is_none_or(|wanted| walk == Some(&wanted));
            if let Some(generation) = ended.generation.filter(|_| covers) {
                seen.generation = seen.generation.max(generation);
                if done {
                    has_news |= seen.warmed.generation < generation.0;
                    seen.warmed.generation = seen.warmed.generation.max(generation.0);
                }
            }
            if let Some(config) = self.config(entity).filter(|config| walk == Some(&Walk::new(config))) {
                seen.due = config.every.map(|every| Instant::now() + every);
                if done {
                    seen.warmed.ended = wall();
                    has_news = true;
                }
            }
        }
        has_news
    }

    /// Begins a job of an entity, if there is an occasion.
    fn attend(&self, entity: &Arc<Entity>, seen: &mut Seen) {
        let now = Instant::now();
        // Before its job begins, which may be of a later one. An entity that is not cached now will have another one when
        // it is.
        let generation = entity.generation();
        let is_raised = || {
            let may_begin = self.paces[entity.id].lock().until().is_none_or(|until| until <= now);
            generation > seen.generation && entity.is_servable() && may_begin
        };
        let kind = |walk| Kind { hot: true, walk, resume: false };
        let (trigger, kind) = if let Some(kind) = &seen.start {
            (Trigger::Start, kind.clone())
        } else if is_raised() {
            (Trigger::Generation, kind(self.on_generation(entity)))
        } else if seen.due.is_some_and(|due| due <= now) {
            (Trigger::Schedule, kind(self.config(entity).map(Walk::new)))
        } else if seen.commands > 0 {
            let walk = Walk::new(&self.walk(entity));
            let is_known = entity.query.is_none() || matches!(walk.which, Which::Select(_));
            (Trigger::Command, kind(is_known.then_some(walk)))
        } else {
            return;
        };
        let is_begun = match self.start(entity, trigger, kind) {
            Start::Begun(_) => true,
            Start::Nothing => false,
            Start::Running => return,
        };
        match trigger {
            Trigger::Start => seen.start = None,
            Trigger::Generation => seen.generation = generation,
            // Until its end.
            Trigger::Schedule => seen.due = None,
            Trigger::Command | Trigger::Operator => {
                let result = if is_begun { Commanded::Done } else { Commanded::Dropped };
                (0..std::mem::take(&mut seen.commands)).for_each(|_| self.parts.warmer.count(result));
            }
        }
    }

    /// This instance has begun to apply changes: hot sets that others have kept are read, what is to be warmed at the
    /// start is begun, and what others were at goes on.
    async fn take_over(&self) -> Result<Vec<Seen>, L2Error> {
        let entities = &self.parts.hierarchy.entities;
        let l2 = self.parts.hierarchy.l2.as_ref();
        let notes = match l2 {
            Some(l2) => memory::warmed(l2).await?,
            None => BTreeMap::new(),
        };
        let mut seen = Vec::with_capacity(entities.len());
        for entity in entities {
            // Once: what is raised from now on is seen by the next look.
            let generation = entity.generation();
            let config = self.config(entity);
            let noted = notes.get(&entity.name).copied();
            // Without L2 all is new.
            let is_new = noted.is_none_or(|warmed| warmed.generation < generation.0);
            let warmed = noted.unwrap_or_default();
            let begins = |on: &WarmOn| *on == WarmOn::Start || is_new;
            let mut walk = config.filter(|config| config.on.iter().any(begins)).map(Walk::new);
            if let Some(l2) = l2 {
                memory::recall(l2, &self.parts.hot, entity).await?;
                if walk.is_none() {
                    let configured = Walk::new(&self.walk(entity));
                    let place = place::find(l2, entity, generation, &configured).await?;
                    walk = place.map(|place| Walk { limit: place.limit, rate: place.rate, ..configured });
                }
            }
            let due = config.and_then(|config| config.every);
            let due = due.map(|every| Instant::now() + left(every, warmed.ended, wall()));
            seen.push(Seen {
                generation,
                start: Some(Kind { hot: true, walk, resume: true }),
                due,
                commands: 0,
                warmed,
            });
        }
        for (entity, seen) in entities.iter().zip(&mut seen) {
            self.attend(entity, seen);
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::cache::Hierarchy;
    use crate::cache::fill::Filler;
    use crate::cache::hot::HotSets;
    use crate::cache::permits::Permits;
    use crate::cache::rows::Rows;
    use crate::cache::voids::Voids;
    use crate::cache::warm::Warmer;
    use crate::cache::watermark::Watermark;
    use crate::config::SourceConfig;
    use crate::entity::{Definition, Shape};
    use crate::lsn::Lsn;
    use crate::metrics::{CommandMetrics, FillMetrics, WarmMetrics};
    use crate::source;
    use crate::warm::Parts;
    use crate::warm::job::Job;
    use crate::warm::keys::Keys;

    #[test]
    fn a_schedule_goes_on_by_the_wall_s_clock() {
        let hour = Duration::from_secs(3600);
        let millis = |duration: Duration| duration.as_millis() as u64;
        let now = 1000 * millis(hour);
        assert_eq!(left(hour, 0, now), hour, "before the first time");
        assert_eq!(left(hour, now, now), hour);
        assert_eq!(left(hour, now - millis(hour) / 4, now), hour * 3 / 4);
        assert_eq!(left(hour, now - 5 * millis(hour), now), Duration::ZERO);
        assert_eq!(left(hour, now + 5 * millis(hour), now), hour, "the clock was set back");
    }

    /// Whether this instance applies changes; another one does where it does not.
    struct Leads(AtomicBool);

    impl Leadership for Arc<Leads> {
        fn leads(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        fn is_superseded(&self) -> bool {
            !self.leads()
        }
    }

    /// Warms one entity each hour, without L2. No Postgres is there.
    fn warming(leads: &Arc<Leads>) -> Arc<Warming<Arc<Leads>>> {
        let entity = Arc::new(Entity::new(0, Definition::rows("row", "public", "rows"), "", Shape::unknown(0)));
        let (watermark, voids) = (Watermark::default(), Voids::new(1));
        let hierarchy = Arc::new(Hierarchy { entities: vec![entity], l1: None, l2: None, watermark, voids });
        hierarchy.restart(Lsn::from_u64(10), Generation(1));
        hierarchy.watermark.mark(Lsn::from_u64(10), Instant::now());
        let source = SourceConfig { url: "postgres://me@127.0.0.1:1/mine".into(), ..SourceConfig::default() };
        let pool = source::pool(&source, Arc::default()).unwrap();
        let rows = Rows::new(pool, Permits::new(1, 1, FillMetrics::new()), source.fill_timeout);
        let config = WarmConfig { every: Some(Duration::from_secs(3600)), ..WarmConfig::default() };
        let parts = Parts {
            filler: Filler::new(hierarchy.clone(), rows, 1, 1, Arc::default()),
            keys: Keys::new(source, Arc::default()),
            hot: Arc::new(HotSets::new([0])),
            warmer: Arc::new(Warmer::new(CommandMetrics::new())),
            config: vec![Some(config)],
            stale_after: Duration::from_secs(3600),
            metrics: WarmMetrics::new(["row"]),
            hierarchy,
        };
        Warming::new(parts, leads.clone())
    }

    /// A job of the configured walk that has come to this end.
    async fn had(warming: &Warming<Arc<Leads>>, seen: &mut Option<Vec<Seen>>) -> Arc<Job> {
        let entity = &warming.parts.hierarchy.entities[0];
        let walk = Walk::new(&warming.walk(entity));
        let kind = Kind { hot: false, walk: Some(walk), resume: false };
        let Start::Begun(job) = warming.start(entity, Trigger::Operator, kind) else { panic!("it is not begun") };
        warming.look(seen).await;
        job
    }

    #[tokio::test]
    async fn what_was_begun_before_another_one_led_is_past() {
        let leads = Arc::new(Leads(AtomicBool::new(true)));
        let warming = warming(&leads);
        let mut seen = None;
        let due = |seen: &Option<Vec<Seen>>| seen.as_ref().and_then(|seen| seen[0].due);
        warming.look(&mut seen).await;
        let first = due(&seen);
        assert!(first.is_some());
        let job = had(&warming, &mut seen).await;
        job.cancel.cancel();
        warming.perform(&job).await;
        warming.look(&mut seen).await;
        assert!(due(&seen) > first, "its end counts");
        let job = had(&warming, &mut seen).await;
        leads.0.store(false, Ordering::Relaxed);
        warming.look(&mut seen).await;
        assert!(seen.is_none() && job.cancel.is_cancelled());
        leads.0.store(true, Ordering::Relaxed);
        warming.look(&mut seen).await;
        let noted = due(&seen);
        assert!(noted.is_some());
        // It ends only now.
        warming.perform(&job).await;
        warming.look(&mut seen).await;
        assert_eq!(due(&seen), noted);
        // What is begun from now on counts.
        let job = had(&warming, &mut seen).await;
        job.cancel.cancel();
        warming.perform(&job).await;
        warming.look(&mut seen).await;
        assert!(due(&seen) > noted);
    }
}
