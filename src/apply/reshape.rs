//! Changes of the schema: what is looked up in the catalog decides how entities stand, and whether what is cached of them
//! may still be served.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Client;
use tracing::{error, info};

use super::claim::{self, draw};
use super::joining::{self, is_joining};
use super::second::Second;
use super::{Applier, ApplyError, LookUpShape, Metrics};
use crate::cache::Hierarchy;
use crate::entity::{Entity, Published, Resolved, Standing};
use crate::metrics::Cause;

impl<L: LookUpShape> Applier<L> {
    /// Looks an entity up; if it has changed, everything cached of before becomes unservable.
    ///
    /// # Errors
    /// If L2 or the source fails.
    pub async fn reshape(&mut self, id: usize) -> Result<(), ApplyError> {
        self.reshape_now(&[id]).await.inspect_err(|e| self.note(e))
    }

    /// As [`Applier::reshape`], of all entities that may have changed.
    ///
    /// # Errors
    /// If L2 or the source fails.
    pub async fn look_around(&mut self) -> Result<(), ApplyError> {
        self.look_around_now().await.inspect_err(|e| self.note(e))
    }

    pub(super) async fn look_around_now(&mut self) -> Result<(), ApplyError> {
        let changed = self.shapes.changed(&self.source, &self.hierarchy.entities).await?;
        self.look_at(&changed, true).await
    }

    pub(super) async fn reshape_now(&mut self, ids: &[usize]) -> Result<(), ApplyError> {
        self.look_at(ids, false).await
    }

    /// Looks entities up, in one pass; where that is asked, also whether others have joined meanwhile.
    async fn look_at(&mut self, ids: &[usize], whether_joined: bool) -> Result<(), ApplyError> {
        let looked = self.shapes.look_up(&self.source, ids).await?;
        let mut found: HashMap<usize, Resolved> = ids.iter().copied().zip(looked).collect();
        let entities = &self.hierarchy.entities;
        for entity in entities.iter().filter(|entity| whether_joined && is_joining(entity)) {
            // Its signature is that of the last look, which still holds.
            found.entry(entity.id).or_insert_with(|| Resolved {
                standing: Standing::Cached,
                shape: Some((*entity.shape()).clone()),
                signature: entity.seen(),
            });
        }
        let mut wanted: Vec<(usize, Published)> = Vec::new();
        for (id, found) in &found {
            let entity = &entities[*id];
            match (&found.standing, &found.shape) {
                (Standing::Cached, Some(shape)) => {
                    if !(entity.is_servable() && entity.shape().published == shape.published) {
                        wanted.push((*id, shape.published.clone()));
                    }
                }
                _ => self.joining.forget(*id),
            }
        }
        let joined = self.joined(&wanted).await?;
        for (id, _) in wanted.iter().filter(|(id, _)| !joined.contains(id)) {
            found.entry(*id).and_modify(|found| found.standing = joining::standing());
        }
        renew(&self.source, &self.hierarchy, found, &self.metrics, Some(&mut self.second)).await
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
    let changed = shapes.changed(source, &hierarchy.entities).await?;
    let looked = shapes.look_up(source, &changed).await?;
    let mut found: HashMap<usize, Resolved> = changed.into_iter().zip(looked).collect();
    for (id, found) in &mut found {
        let entity = &hierarchy.entities[*id];
        let published = found.shape.as_ref().map(|shape| &shape.published);
        let was_published_so = published == Some(&entity.shape().published);
        if found.standing == Standing::Cached && (!was_published_so || is_joining(entity)) {
            // Whether it has joined is for whoever leads to find out.
            found.standing = joining::standing();
        }
    }
    renew(source, hierarchy, found, metrics, None).await
}

/// What was found of an entity that is new, and how it stood before.
struct Renewal<'h> {
    entity: &'h Arc<Entity>,
    found: Resolved,
    before: Arc<Standing>,
}

/// Takes over what was found of entities; of those of which it is anything new, everything cached of before becomes
/// unservable.
async fn renew(
    source: &Client,
    hierarchy: &Hierarchy,
    found: HashMap<usize, Resolved>,
    metrics: &Metrics,
    mut second: Option<&mut Second>,
) -> Result<(), ApplyError> {
    let mut renewals = Vec::new();
    for (id, found) in found {
        let entity = &hierarchy.entities[id];
        let before = entity.standing();
        if found.standing == *before && found.shape.as_ref().is_none_or(|shape| *shape == *entity.shape()) {
            entity.set_seen(found.signature);
            // It may have been taken out of the tiers by something else than a look.
            metrics.apply.servable(id, entity.is_servable());
        } else {
            renewals.push(Renewal { entity, found, before });
        }
    }
    if renewals.is_empty() {
        return Ok(());
    }
    renewals.sort_by_key(|renewal| renewal.entity.id);
    for Renewal { entity, found, .. } in renewals.iter().filter(|renewal| renewal.found.standing != Standing::Cached) {
        // Its reads go to the database from now on, and nothing that is cached is served again.
        entity.set_standing(found.standing.clone());
        metrics.apply.servable(entity.id, false);
    }
    // After all looks, and before the shapes are replaced: whoever fails in between would leave them with the old
    // generation, and the next look would find nothing changed. Events up to where the log ends now may be of an old
    // shape, which their relation's columns do not always tell.
    let looked_at = claim::insert_position(source).await?;
    let generation = draw(source, hierarchy.newest_generation()).await?;
    let mut streamed_otherwise = None;
    for Renewal { entity, found, .. } in &mut renewals {
        entity.set_images_after(looked_at);
        if let Some(shape) = found.shape.take() {
            let known = entity.shape();
            // What waits for the gate was planned under the keys of before.
            let has_other_keys = !known.key.is_empty() && known.key != shape.key;
            if has_other_keys || !known.is_streamed_as(&shape) {
                streamed_otherwise.get_or_insert_with(|| entity.name.clone());
            }
            // The shape first: see `Entity::reshape`.
            entity.reshape(shape);
        }
    }
    let leads = second.is_some();
    match &mut second {
        Some(second) => {
            let raised: Vec<&Entity> = renewals.iter().map(|renewal| &**renewal.entity).collect();
            second.raise(&raised, generation).await?;
        }
        None => renewals.iter().for_each(|renewal| renewal.entity.raise(generation)),
    }
    let mut joined = Vec::new();
    for Renewal { entity, found, before } in renewals {
        if found.standing == Standing::Cached && is_joining(entity) {
            joined.push(&**entity);
        }
        if found.standing == Standing::Cached {
            entity.set_standing(Standing::Cached);
            metrics.apply.servable(entity.id, true);
        }
        entity.set_seen(found.signature);
        metrics.apply.invalidations(entity.id, Cause::Ddl, 1);
        let generation = generation.0;
        info!(
            entity = entity.name,
            generation,
            "starting a new generation: what the catalog says of its tables has changed (columns, rights, publication)"
        );
        say(entity, &before, &found.standing);
    }
    if let Some(second) = second {
        second.have_joined(&joined).await?;
    }
    match streamed_otherwise.filter(|_| leads) {
        // Rows that the stream has under names that were not known, or that were planned under other keys, are to come again.
        Some(name) => Err(ApplyError::StreamedOtherwise(name)),
        None => Ok(()),
    }
}

/// Logs how an entity stands, once for each change of that.
fn say(entity: &Entity, before: &Standing, now: &Standing) {
    if before == now {
        return;
    }
    match now {
        Standing::Cached => info!(entity = entity.name, "the entity is cached again"),
        // That ends by itself, mostly soon.
        locked if locked.is_locked() => {
            let why = locked.cause().unwrap_or_default();
            info!(entity = entity.name, why, "the entity is not cached until it can be looked at again");
        }
        Standing::Uncached(why) => {
            error!(entity = entity.name, %why, "the entity is not cached any more: reads go to Postgres; run `walcache check`");
        }
        Standing::Unreadable(why) => {
            error!(entity = entity.name, %why, "the entity cannot be read any more: reads are refused; run `walcache check`");
        }
    }
}
