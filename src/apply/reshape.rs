//! Changes of the schema: what is looked up in the catalog decides how entities stand, and whether what is cached of them
//! may still be served.

use tokio_postgres::Client;
use tracing::{error, info};

use super::claim::{self, draw};
use super::second::Second;
use super::{Applier, ApplyError, LookUpShape, Metrics};
use crate::cache::Hierarchy;
use crate::entity::{Entity, Resolved, Standing};
use crate::metrics::Cause;

/// Why an entity is not cached yet whose table has just come into the publications: see [`super::joining`].
pub(super) const JOINING: &str = "transactions are open that ran when its table was published as it is now";

/// Stands for no look at all.
const UNSEEN: u64 = 0;

/// Takes an entity out of the tiers that may have been published only just now, until a look finds that it has joined.
pub(super) fn hold_back(entity: &Entity) {
    if entity.is_servable() {
        entity.set_standing(Standing::Uncached(JOINING.to_owned()));
        entity.set_seen(UNSEEN);
    }
}

impl<L: LookUpShape> Applier<L> {
    /// Looks an entity up; if it has changed, everything cached of before becomes unservable.
    ///
    /// # Errors
    /// If L2 or the source fails.
    pub async fn reshape(&mut self, id: usize) -> Result<(), ApplyError> {
        self.reshape_now(id).await.inspect_err(|e| self.note(e))
    }

    /// As [`Applier::reshape`], of all entities that may have changed.
    ///
    /// # Errors
    /// If L2 or the source fails.
    pub async fn look_around(&mut self) -> Result<(), ApplyError> {
        self.look_around_now().await.inspect_err(|e| self.note(e))
    }

    pub(super) async fn look_around_now(&mut self) -> Result<(), ApplyError> {
        for id in self.shapes.changed(&self.source, &self.hierarchy.entities).await? {
            self.reshape_now(id).await?;
        }
        Ok(())
    }

    pub(super) async fn reshape_now(&mut self, id: usize) -> Result<(), ApplyError> {
        let mut found = self.shapes.look_up(&self.source, &self.hierarchy.entities[id]).await?;
        if let (Standing::Cached, Some(shape)) = (&found.standing, &found.shape) {
            let entity = self.hierarchy.entities[id].clone();
            let was_published_so = entity.is_servable() && entity.shape().published == shape.published;
            if !was_published_so && !self.has_joined(id, &shape.published).await? {
                found.standing = Standing::Uncached(JOINING.to_owned());
                // The next look finds it changed, and asks again.
                found.signature = UNSEEN;
            }
        }
        renew(&self.source, &self.hierarchy, id, found, &self.metrics, Some(&mut self.second)).await
    }
}

/// As [`Applier::look_around`], of an instance that does not lead: it reads Postgres, and must know what to read there. In
/// memory only; should it lead, its claim sees to L2.
///
/// # Errors
/// If the source fails.
pub async fn look_without_leading<L: LookUpShape>(
    shapes: &L,
    source: &Client,
    hierarchy: &Hierarchy,
    metrics: &Metrics,
) -> Result<(), ApplyError> {
    for id in shapes.changed(source, &hierarchy.entities).await? {
        let entity = &hierarchy.entities[id];
        let mut found = shapes.look_up(source, entity).await?;
        let published = found.shape.as_ref().map(|shape| &shape.published);
        let was_published_so = published == Some(&entity.shape().published);
        if found.standing == Standing::Cached && (!was_published_so || entity.standing().cause() == Some(JOINING)) {
            // Whether it has joined is for whoever leads to find out.
            found.standing = Standing::Uncached(JOINING.to_owned());
            found.signature = UNSEEN;
        }
        renew(source, hierarchy, id, found, metrics, None).await?;
    }
    Ok(())
}

/// Takes over what was found; if it is anything new, everything cached of before becomes unservable.
async fn renew(
    source: &Client,
    hierarchy: &Hierarchy,
    id: usize,
    found: Resolved,
    metrics: &Metrics,
    second: Option<&mut Second>,
) -> Result<(), ApplyError> {
    let entity = &hierarchy.entities[id];
    let before = entity.standing();
    let same_shape = found.shape.as_ref().is_none_or(|shape| *shape == *entity.shape());
    if same_shape && found.standing == *before {
        entity.set_seen(found.signature);
        return Ok(());
    }
    let cached = found.standing == Standing::Cached;
    if !cached {
        // Its reads go to the database from now on, and nothing that is cached is served again.
        entity.set_standing(found.standing.clone());
        metrics.apply.servable(id, false);
    }
    // Before the shape is replaced: whoever fails in between would leave it with the old generation, and the next look
    // would find nothing changed. Events up to where the log ends now may be of the old shape, which their relation's
    // columns do not always tell.
    entity.set_images_after(claim::insert_position(source).await?);
    let generation = draw(source, hierarchy.newest_generation()).await?;
    let streamed_as_before = found.shape.as_ref().is_none_or(|shape| entity.shape().is_streamed_as(shape));
    // The shape first: see `Entity::reshape`.
    if let Some(shape) = found.shape {
        entity.reshape(shape);
    }
    let leads = second.is_some();
    match second {
        Some(second) => second.raise(entity, generation).await?,
        None => entity.raise(generation),
    }
    if cached {
        entity.set_standing(Standing::Cached);
        metrics.apply.servable(id, true);
    }
    entity.set_seen(found.signature);
    metrics.apply.invalidations(id, Cause::Ddl, 1);
    info!(entity = entity.name, generation = generation.0, "starting a new generation: the table's shape has changed");
    say(entity, &before, &found.standing);
    // Rows that the stream has under names that were not known are to come again.
    if leads && !streamed_as_before { Err(ApplyError::Repartitioned(entity.name.clone())) } else { Ok(()) }
}

/// Logs how an entity stands, once for each change of that.
fn say(entity: &Entity, before: &Standing, now: &Standing) {
    if before == now {
        return;
    }
    match now {
        Standing::Cached => info!(entity = entity.name, "the entity is cached again"),
        Standing::Uncached(why) => {
            error!(entity = entity.name, %why, "the entity is not cached any more: reads go to Postgres; run `walcache check`");
        }
        Standing::Unreadable(why) => {
            error!(entity = entity.name, %why, "the entity cannot be read any more: reads are refused; run `walcache check`");
        }
    }
}
