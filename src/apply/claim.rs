//! Claiming L2's fence: the leader's right to write, and the proof that nothing was lost there.
//!
//! Every connection that applies has an epoch of its own, drawn from a sequence in the source database. Whatever an
//! earlier connection still has under way is refused from then on, also that of a leader that was paused and resumed.
//! A broken connection ends the stream, too: the next one starts after what is done, and replays. Retrying only what
//! was not acknowledged would miss what a server forgot that came back in the middle of a batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::ApplyError;
use crate::cache::Hierarchy;
use crate::cache::l2::Script;
use crate::entity::{Entity, Generation};
use crate::lsn::Lsn;
use crate::source::SourceError;

/// The scripts that write under an epoch.
pub struct Scripts {
    pub(super) claim: Script,
    pub(super) fence: Script,
    pub(super) apply: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Scripts {
            claim: Script::new(include_str!("claim.lua")),
            fence: Script::new(include_str!("fence.lua")),
            apply: Script::new(include_str!("apply.lua")),
        }
    }
}

/// How long the source may take to draw a number, before its connection counts as broken.
const DRAW_TIMEOUT: Duration = Duration::from_secs(10);

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
}

/// What the claimant knows of the stream.
pub struct Position<'a> {
    /// Cluster, timeline, database and slot: LSNs compare only within one of these.
    pub source: &'a str,
    /// Everything up to here was applied before, by whomever.
    pub applied: Lsn,
    /// Why the stream cannot be a continuation of what was applied before, if it cannot.
    pub broken: Option<&'a str>,
}

/// What the source's sequence gives first.
const FIRST: Generation = Generation(1);

/// Draws the next number from `walcache.epoch`.
///
/// # Errors
/// If the source database does not give it.
pub async fn draw(source: &Client) -> Result<Generation, ApplyError> {
    let row = source.query_one(include_str!("../../sql/draw_epoch.sql"), &[]);
    let row = tokio::time::timeout(DRAW_TIMEOUT, row).await;
    let row = row.map_err(|_| SourceError::Timeout { what: "draw an epoch", after: DRAW_TIMEOUT })?;
    let row = row.map_err(ApplyError::Source)?;
    let number: i64 = row.try_get(0).map_err(ApplyError::Source)?;
    Ok(Generation(number as u64))
}

/// Connects to L2 and claims its fence. If what stands there is not all that was applied, or belongs to another
/// source, everything that is cached becomes unservable: a new generation begins.
///
/// # Errors
/// [`ApplyError::Fenced`] if a higher epoch stands; else if Redis or the source fails.
pub async fn claim(
    hierarchy: &Hierarchy,
    scripts: &Scripts,
    source: &Client,
    position: &Position<'_>,
) -> Result<Claim, ApplyError> {
    let l2 = &hierarchy.l2;
    let mut connection = l2.connect().await?;
    // After the connection: an attempt that does not get that far draws nothing.
    let drawn = draw(source).await?;
    let epoch = drawn.hex16();
    for script in [&scripts.claim, &scripts.fence, &scripts.apply] {
        script.load(&mut connection).await?;
    }
    let mut cmd = scripts.claim.command(1);
    cmd.arg(&l2.fence_key).arg(&epoch);
    let before = fields(scripts.claim.run(&mut connection, &cmd).await?);
    let lsn = |field: &str| before.get(field).and_then(|lsn| Lsn::from_hex16(lsn));
    let done = lsn("done").filter(|_| lsn("hw").is_some());
    let lost = match (position.broken, done) {
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
    let mut set: Vec<(String, Vec<u8>)> = Vec::new();
    let stored = |field: &str| before.get(field).and_then(|g| Generation::from_hex16(g)).unwrap_or_default();
    let mut generations: Vec<(Arc<Entity>, Generation)> = Vec::new();
    for entity in &hierarchy.entities {
        let (shape, generation) = (format!("shape:{}", entity.name), format!("gen:{}", entity.name));
        let signature = signature(entity);
        let known = before.get(&shape) == Some(&signature);
        if !known {
            set.push((shape, signature));
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
        for entity in &hierarchy.entities {
            entity.raise(drawn);
        }
        if position.broken.is_some() || position.applied < hierarchy.watermark.load() {
            // LSNs may be smaller than before, after a failover to another timeline also where the slot came along:
            // no entry is older than its generation now, so the fence starts over.
            hierarchy.restart(position.applied);
        }
    }
    let mut claim = Claim { connection, epoch, takeover, done };
    claim.set(hierarchy, scripts, None, &set).await?;
    for (entity, generation) in generations {
        entity.raise(generation);
    }
    l2.claimed(done);
    Ok(claim)
}

/// Whatever decides how an entity's entries read, for the fence.
fn signature(entity: &Entity) -> Vec<u8> {
    let what = format!("{}.{} {:016x}", entity.schema, entity.table, entity.shape().signature());
    Lsn::from_u64(crate::entity::hash(what.as_bytes())).hex16().to_vec()
}

impl Claim {
    /// Sets fields of the fence, if it shows `acknowledged` as done at least; an empty value removes one.
    ///
    /// # Errors
    /// [`ApplyError::Fenced`] if another epoch stands; [`ApplyError::WentBack`] if less is done; else if Redis fails.
    pub async fn set(
        &mut self,
        hierarchy: &Hierarchy,
        scripts: &Scripts,
        acknowledged: Option<Lsn>,
        fields: &[(String, Vec<u8>)],
    ) -> Result<(), ApplyError> {
        let mut cmd = scripts.fence.command(1);
        cmd.arg(&hierarchy.l2.fence_key).arg(&self.epoch);
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

    /// Raises an entity's generation, in L2 first. Takes its present shape for what the generation stands for.
    ///
    /// # Errors
    /// As [`Claim::set`].
    pub async fn raise(
        &mut self,
        hierarchy: &Hierarchy,
        scripts: &Scripts,
        entity: &Entity,
        generation: Generation,
    ) -> Result<(), ApplyError> {
        let fields = [
            (format!("gen:{}", entity.name), generation.hex16().to_vec()),
            (format!("shape:{}", entity.name), signature(entity)),
        ];
        self.set(hierarchy, scripts, None, &fields).await?;
        entity.raise(generation);
        Ok(())
    }
}

fn fields(value: Value) -> HashMap<String, Vec<u8>> {
    redis::from_redis_value(value).unwrap_or_default()
}

impl From<RedisError> for ApplyError {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some("FENCED") => ApplyError::Fenced,
            Some("WENTBACK") => ApplyError::WentBack,
            _ => ApplyError::L2(error),
        }
    }
}
