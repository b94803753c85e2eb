//! Claiming L2's fence: the leader's right to write, and the proof that nothing was lost there.
//!
//! Every connection that applies has an epoch of its own, drawn from a sequence in the source database. Whatever an
//! earlier connection still has under way is refused from then on, also that of a leader that was paused and resumed.
//! A broken connection ends the stream, too: the next one starts after what is done, and replays. Retrying only what
//! was not acknowledged would miss what a server forgot that came back in the middle of a batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tracing::{info, warn};

use super::ApplyError;
use super::joining::{hold_back, is_joining};
use crate::cache::Hierarchy;
use crate::cache::l2::{L2, Script};
use crate::cache::voids::Voids;
use crate::entity::{Entity, Generation};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;
use crate::source::within;

/// The scripts that write under an epoch.
pub struct Scripts {
    pub(super) claim: Script,
    pub(super) fence: Script,
    pub(super) apply: Script,
    pub(super) predecessors: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Scripts {
            claim: Script::new(include_str!("claim.lua")),
            fence: Script::new(include_str!("fence.lua")),
            apply: Script::new(include_str!("apply.lua")),
            predecessors: Script::new(include_str!("predecessors.lua")),
        }
    }
}

/// How long the source may take to draw a number, before its connection counts as broken.
pub(super) const DRAW_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to write to L2.
pub struct Claim {
    /// The connection that holds it.
    pub connection: MultiplexedConnection,
    /// Its epoch, as scripts compare it.
    pub epoch: [u8; 16],
    /// The high-water mark that stood when it was claimed: events up to there may be replays.
    pub takeover: Lsn,
    /// What the fence shows as done.
    pub done: Lsn,
    /// Whether a new generation of everything began with it.
    pub started_over: bool,
}

/// What the claimant knows of the stream.
pub struct Position<'a> {
    /// Cluster, timeline, database and slot: LSNs compare only within one of these.
    pub source: &'a str,
    /// Everything up to here was applied before, by whomever.
    pub applied: Lsn,
    /// Why the stream cannot be a continuation of what was applied before, if it cannot.
    pub broken: Option<&'static str>,
    /// Why L2 lacks something of it, if the claimant knows that it does.
    pub missed: Option<&'static str>,
}

/// What the source's sequence gives first.
const FIRST: Generation = Generation(1);

/// Draws the next number from `walcache.epoch`, beyond `above`: a sequence may stand behind what was once drawn from it,
/// on a promoted standby that lacks its last record, or in a backup that was restored.
///
/// # Errors
/// If the source database does not give it.
pub async fn draw(source: &Client, above: Generation) -> Result<Generation, ApplyError> {
    let first = ask(source, "draw an epoch", include_str!("../../sql/draw_epoch.sql"), &[]).await?;
    let first: i64 = first.try_get(0).map_err(ApplyError::Source)?;
    let missing = (above.0 + 1).saturating_sub(first as u64);
    if missing == 0 {
        return Ok(Generation(first as u64));
    }
    warn!(drawn = first, above = above.0, "the sequence walcache.epoch stands behind what was drawn from it: going on");
    let missing = i64::try_from(missing).unwrap_or(i64::MAX);
    let last = ask(source, "draw epochs", include_str!("../../sql/draw_more.sql"), &[&missing]).await?;
    Ok(Generation(last.try_get::<_, i64>(0).map_err(ApplyError::Source)? as u64))
}

/// Where the source's log ends, with all that is inserted and not flushed yet.
///
/// # Errors
/// If the source database does not tell.
pub async fn insert_position(source: &Client) -> Result<Lsn, ApplyError> {
    position(source, include_str!("../../sql/insert_position.sql")).await
}

/// A position of the source's log.
pub(super) async fn position(source: &Client, sql: &str) -> Result<Lsn, ApplyError> {
    let row = ask(source, "read a position of the log", sql, &[]).await?;
    let text: &str = row.try_get(0).map_err(ApplyError::Source)?;
    // Postgres prints positions that parse.
    Ok(text.parse().unwrap_or_default())
}

async fn ask(source: &Client, what: &'static str, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Result<Row, ApplyError> {
    within(what, DRAW_TIMEOUT, source.query_one(sql, with)).await?.map_err(ApplyError::Source)
}

/// Claims L2's fence over a new connection. If what stands there is not all that was applied, or belongs to another
/// source, everything that is cached becomes unservable: a new generation begins.
///
/// # Errors
/// [`ApplyError::Fenced`] if a higher epoch stands; else if Redis or the source fails.
pub async fn claim(
    mut connection: MultiplexedConnection,
    hierarchy: &Hierarchy,
    l2: &L2,
    scripts: &Scripts,
    source: &Client,
    position: &Position<'_>,
) -> Result<Claim, ApplyError> {
    // After the connection: an attempt that does not get that far draws nothing. Before the fence is claimed, so that
    // whoever claims it in between with a number drawn later has the higher one.
    let cmd = redis::cmd("HGETALL").arg(&l2.fence_key).take();
    let stands: HashMap<String, Vec<u8>> = cmd.query_async(&mut connection).await?;
    let numbers = stands.iter().filter(|(field, _)| *field == "epoch" || *field == "gen" || field.starts_with("gen:"));
    let highest = numbers.filter_map(|(_, digits)| Generation::from_hex16(digits)).max().unwrap_or_default();
    let drawn = draw(source, highest.max(hierarchy.newest_generation())).await?;
    let epoch = drawn.hex16();
    for script in [&scripts.claim, &scripts.fence, &scripts.apply, &scripts.predecessors] {
        script.load(&mut connection).await?;
    }
    let mut cmd = scripts.claim.command(1);
    cmd.arg(&l2.fence_key).arg(&epoch);
    let before = fields(scripts.claim.run(&mut connection, &cmd).await?);
    failpoint::reached(Point::Claimed);
    let lsn = |field: &str| before.get(field).and_then(|lsn| Lsn::from_hex16(lsn));
    let done = lsn("done").filter(|_| lsn("hw").is_some());
    let lost = match (position.broken.or(position.missed), done) {
        (Some(why), _) => Some(why.to_owned()),
        (None, None) => Some("L2 has no fence: it is new, was emptied or evicted it".to_owned()),
        (None, Some(_)) if before.get("source").map(Vec::as_slice) != Some(position.source.as_bytes()) => {
            Some("L2 was filled from another source, timeline or slot, or the source has crashed since".to_owned())
        }
        (None, Some(done)) if done < position.applied => {
            Some(format!("L2 lost writes: it has {done}, and {} was applied", position.applied))
        }
        _ => None,
    };
    // Events up to here may be of a shape before the one that is known now.
    let seen = insert_position(source).await?;
    let mut set: Vec<(String, Vec<u8>)> = Vec::new();
    let stored = |field: &str| before.get(field).and_then(|g| Generation::from_hex16(g)).unwrap_or_default();
    let mut generations: Vec<(Arc<Entity>, Generation)> = Vec::new();
    for entity in &hierarchy.entities {
        let (shape, generation) = (format!("shape:{}", entity.name), format!("gen:{}", entity.name));
        let fingerprint = fingerprint(entity);
        let known = before.get(&shape) == Some(&fingerprint);
        if !known || lost.is_some() {
            entity.set_images_after(seen);
        }
        if !known && position.broken.is_none() && entity.generation() == Generation::default() {
            // Perhaps published only since the last daemon ran: see `joining`.
            hold_back(entity);
        }
        if is_joining(entity) {
            // It is not known before it has joined: should this process end meanwhile, the next one is to wait, too.
            set.push((shape, Vec::new()));
        } else if !known {
            set.push((shape, fingerprint));
        }
        if lost.is_none() && !known {
            // New here, or its table or configuration has changed since: what may be left of it was not kept up.
            info!(
                entity = entity.name,
                generation = drawn.0,
                "starting a new generation: the entity is new or has changed"
            );
            set.push((generation, epoch.to_vec()));
            generations.push((entity.clone(), drawn));
        } else if lost.is_none() {
            let in_fence = stored("gen").max(stored(&generation));
            if entity.generation() > in_fence {
                // Raised by this process, and forgotten by a server that went back.
                set.push((generation, entity.generation().hex16().to_vec()));
            }
            generations.push((entity.clone(), in_fence));
        }
    }
    // What is no longer configured must not be taken for kept up when it comes back.
    let dropped = before.keys().filter(|field| {
        field.strip_prefix("shape:").is_some_and(|name| !hierarchy.entities.iter().any(|e| e.name == name))
    });
    set.extend(dropped.map(|field| (field.clone(), Vec::new())));
    set.extend(Voids::fields(&before, lost.is_none().then_some(&hierarchy.entities[..])));
    if lost.is_none() {
        hierarchy.voids.load(&hierarchy.entities, &before);
    }
    let (takeover, done) = match (&lost, lsn("hw"), done) {
        (None, Some(hw), Some(done)) => (hw, done),
        _ => {
            let at = position.applied.hex16().to_vec();
            set.push(("gen".into(), epoch.to_vec()));
            set.push(("source".into(), position.source.as_bytes().to_vec()));
            set.push(("hw".into(), at.clone()));
            set.push(("done".into(), at));
            // LSNs may start over; what was filled so far is of an older generation, which counts as absent.
            set.push(("filled".into(), Vec::new()));
            (position.applied, position.applied)
        }
    };
    if let Some(why) = &lost {
        // The first number that the source has ever given, and an L2 without a fence: there was nothing to lose.
        if drawn == FIRST && before.is_empty() {
            info!(generation = drawn.0, "starting the first generation");
        } else {
            warn!(
                generation = drawn.0,
                reason = why,
                "starting a new generation: everything cached so far is unservable"
            );
        }
        l2.distrust();
        if position.broken.is_some() || position.applied < hierarchy.watermark.load() {
            // LSNs may be smaller than before, after a failover to another timeline also where the slot came along.
            hierarchy.restart(position.applied, drawn);
        } else {
            hierarchy.entities.iter().for_each(|entity| entity.raise(drawn));
        }
    }
    let mut claim = Claim { connection, epoch, takeover, done, started_over: lost.is_some() };
    claim.set(l2, scripts, None, &set).await?;
    for (entity, generation) in generations {
        entity.raise(generation);
    }
    l2.claimed(drawn.0, done);
    Ok(claim)
}

/// Whatever decides how an entity's entries read, and which of them may be served, for the fence. Not how long they live:
/// entries of before keep the lives that they were given.
pub(super) fn fingerprint(entity: &Entity) -> Vec<u8> {
    let mut what = format!("{}.{} {:016x}", entity.schema, entity.table, entity.shape().fingerprint());
    if let Some(query) = &entity.query {
        what.push_str(&format!(" {query:?}"));
    }
    // Each of these only where it is set: else what is cached would be voided by an upgrade that changes nothing.
    if !entity.tags.is_empty() {
        // A floor is of a tag. Entries that were voided by one would come back under the tags of other templates.
        what.push_str(&format!(" {:?}", entity.tags));
    }
    if let Some(column) = &entity.lifetime.column {
        // What its row says is over must not be served; entries that were made before were not asked.
        what.push_str(&format!(" ttl_column {column:?}"));
    }
    Lsn::from_u64(crate::entity::hash(what.as_bytes())).hex16().to_vec()
}

impl Claim {
    /// Sets fields of the fence, if it shows `acknowledged` as done at least; an empty value removes one.
    ///
    /// # Errors
    /// [`ApplyError::Fenced`] if another epoch stands; [`ApplyError::WentBack`] if less is done; else if Redis fails.
    pub async fn set(
        &mut self,
        l2: &L2,
        scripts: &Scripts,
        acknowledged: Option<Lsn>,
        fields: &[(String, Vec<u8>)],
    ) -> Result<(), ApplyError> {
        let mut cmd = scripts.fence.command(1);
        cmd.arg(&l2.fence_key).arg(&self.epoch);
        match acknowledged {
            Some(done) => cmd.arg(&done.hex16()),
            None => cmd.arg(""),
        };
        for (field, value) in fields {
            cmd.arg(field).arg(value);
        }
        scripts.fence.run(&mut self.connection, &cmd).await?;
        Ok(())
    }
}

fn fields(value: Value) -> HashMap<String, Vec<u8>> {
    redis::from_redis_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
