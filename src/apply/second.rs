//! What L2 is to the leader: not there, claimed, or away for longer than is tolerated.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tracing::{info, warn};

use super::batch::Batch;
use super::claim::{self, Claim, Position, Scripts};
use super::writer::Writer;
use super::{ApplyError, Config, Start};
use crate::cache::Hierarchy;
use crate::cache::l2::L2;
use crate::cache::voids::Field;
use crate::entity::{Entity, Generation};
use crate::lsn::Lsn;

/// The second tier.
pub(super) enum Second {
    /// There is none.
    None,
    /// Claimed: batches are written there.
    Claimed(Writer),
    /// Away: batches are applied without it, and it is distrusted until it is claimed.
    Away(Away),
}

/// An L2 that is away.
pub(super) struct Away {
    l2: Arc<L2>,
    scripts: Arc<Scripts>,
    /// Why it will not have everything when it is back.
    missed: Option<&'static str>,
    /// Connects.
    returning: AbortOnDrop,
}

/// A task that connects, and ends with its owner.
struct AbortOnDrop(JoinHandle<MultiplexedConnection>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What L2 lacks once something was applied without it. The watermark alone does not tell: it stands still while a
/// transaction is applied in pieces.
const MISSED: &str = "L2 missed changes while it was away";

impl Second {
    /// Claims L2, if there is one; gives up once it was away for too long.
    pub(super) async fn open<L>(start: &Start<'_, L>) -> Result<Self, ApplyError> {
        let Some(l2) = &start.hierarchy.l2 else { return Ok(Second::None) };
        let scripts = Arc::new(Scripts::default());
        if let Some(claim) = claim_within(l2, &scripts, start).await? {
            return Ok(Second::Claimed(Writer::new(l2.clone(), scripts, start.config, claim)));
        }
        l2.distrust();
        start.outage.go_without();
        warn!(
            away_seconds = start.outage.lasts().unwrap_or_default().as_secs(),
            "going on without L2: it is distrusted, and starts a new generation when it is back"
        );
        let returning = connect(l2.clone());
        Ok(Second::Away(Away { l2: l2.clone(), scripts, missed: start.position.broken, returning }))
    }

    /// Whether it is written to.
    pub(super) fn is_claimed(&self) -> bool {
        matches!(self, Second::Claimed(_))
    }

    /// Whether a new generation of everything began when it was claimed.
    pub(super) fn started_over(&self) -> bool {
        matches!(self, Second::Claimed(writer) if writer.started_over())
    }

    /// Why it will not have everything when it is back, beside what the watermark tells.
    pub(super) fn missed(&self) -> Option<&'static str> {
        match self {
            Second::Away(away) => away.missed,
            _ => None,
        }
    }

    /// Fills the gaps of a batch's texts. Where nothing is written, none need be filled.
    pub(super) async fn fill_gaps(&mut self, hierarchy: &Hierarchy, batch: &mut Batch) -> Result<(), ApplyError> {
        match self {
            Second::Claimed(writer) => writer.fill_gaps(hierarchy, batch).await,
            Second::Away(_) | Second::None => Ok(()),
        }
    }

    /// Writes floors that were raised in this process to the fence, up to the label `high`.
    pub(super) async fn set_floors(&mut self, floors: &[Field], high: Lsn) -> Result<(), ApplyError> {
        match self {
            Second::Claimed(writer) => writer.set_floors(floors, high).await?,
            Second::Away(away) => away.missed = Some(MISSED),
            Second::None => {}
        }
        Ok(())
    }

    /// Removes fields of the fence that are needed no more.
    pub(super) async fn unset(&mut self, fields: &[Field]) -> Result<(), ApplyError> {
        match self {
            Second::Claimed(writer) => writer.unset(fields).await,
            // A new generation begins when it is back, without any of them.
            Second::Away(_) | Second::None => Ok(()),
        }
    }

    /// Writes a batch's entries; see [`Writer::write`].
    pub(super) async fn write(
        &mut self,
        entities: &[Arc<Entity>],
        batch: &mut Batch,
    ) -> Result<Vec<usize>, ApplyError> {
        match self {
            Second::Claimed(writer) => return writer.write(entities, batch).await,
            Second::Away(away) if !batch.ops.is_empty() => away.missed = Some(MISSED),
            Second::Away(_) | Second::None => {}
        }
        Ok(Vec::new())
    }

    /// What was written is acknowledged; whether there was anything to acknowledge.
    pub(super) fn acknowledge(&self) -> bool {
        match self {
            Second::Claimed(writer) => {
                writer.acknowledge();
                true
            }
            _ => false,
        }
    }

    /// Raises entities' generations, in this process first: should L2 fail, what it had must not be served meanwhile.
    /// The next claim sees to it that L2 knows.
    pub(super) async fn raise(&mut self, entities: &[&Entity], generation: Generation) -> Result<(), ApplyError> {
        entities.iter().for_each(|entity| entity.raise(generation));
        match self {
            Second::Claimed(writer) => writer.raise(entities, generation).await?,
            Second::Away(away) => away.missed = Some(MISSED),
            Second::None => {}
        }
        Ok(())
    }

    /// Entities that have waited to join are in the tiers from now on.
    pub(super) async fn have_joined(&mut self, entities: &[&Entity]) -> Result<(), ApplyError> {
        match self {
            Second::Claimed(writer) if !entities.is_empty() => writer.have_joined(entities).await,
            // A claim tells what is known by then.
            _ => Ok(()),
        }
    }

    /// Raises the generation of all entities, in this process first.
    pub(super) async fn raise_all(
        &mut self,
        entities: &[Arc<Entity>],
        generation: Generation,
    ) -> Result<(), ApplyError> {
        entities.iter().for_each(|entity| entity.raise(generation));
        match self {
            Second::Claimed(writer) => writer.raise_all(generation).await?,
            Second::Away(away) => away.missed = Some(MISSED),
            Second::None => {}
        }
        Ok(())
    }

    /// Waits until an L2 that is away can be connected to; for ever if it is not away.
    pub(super) async fn returned(&mut self) -> MultiplexedConnection {
        if let Second::Away(away) = self
            && let Ok(connection) = (&mut away.returning.0).await
        {
            return connection;
        }
        std::future::pending().await
    }

    /// Claims an L2 that is back; says whether it is claimed now.
    pub(super) async fn rejoin(
        &mut self,
        connection: MultiplexedConnection,
        hierarchy: &Hierarchy,
        source: &Client,
        config: Config,
        position: &Position<'_>,
    ) -> Result<bool, ApplyError> {
        let Second::Away(away) = self else { return Ok(false) };
        match claim::claim(connection, hierarchy, &away.l2, &away.scripts, source, position).await {
            Ok(claim) => {
                info!("L2 is claimed again");
                *self = Second::Claimed(Writer::new(away.l2.clone(), away.scripts.clone(), config, claim));
                Ok(true)
            }
            Err(ApplyError::L2(error)) => {
                info!(%error, "L2 answers, but does not take what is written");
                away.returning = connect(away.l2.clone());
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }
}

/// Claims L2, again and again while Redis is away; `None` once that has taken too long.
async fn claim_within<L>(l2: &Arc<L2>, scripts: &Scripts, start: &Start<'_, L>) -> Result<Option<Claim>, ApplyError> {
    let mut backoff = crate::retry::forever(Duration::from_millis(50), Duration::from_secs(2));
    let mut said = false;
    let attempt = async || {
        let connection = l2.connect().await?;
        claim::claim(connection, &start.hierarchy, l2, scripts, &start.source, &start.position).await
    };
    let end = include_str!("../../sql/log_end.sql");
    // It lets itself be claimed and takes nothing that is written: that must have an end, too.
    if start.outage.lasts().is_some()
        && start.outage.is_past_bound(claim::position(&start.source, end).await?.bytes_since(start.position.applied))
    {
        return Ok(None);
    }
    loop {
        let attempt = tokio::select! {
            attempt = attempt() => attempt,
            () = start.cancel.cancelled() => return Err(ApplyError::Cancelled),
        };
        match attempt {
            Err(ApplyError::L2(e)) => {
                start.outage.failed();
                l2.refused(&e);
                if !said {
                    warn!(error = %e, "claim L2: trying again until it answers");
                    said = true;
                }
                let backlog = claim::position(&start.source, end).await?.bytes_since(start.position.applied);
                if start.outage.is_past_bound(backlog) {
                    return Ok(None);
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.next()) => {}
                    () = start.cancel.cancelled() => return Err(ApplyError::Cancelled),
                }
            }
            other => {
                start.outage.claimed();
                return other.map(Some);
            }
        }
    }
}

/// Connects to L2 in the background, however long that takes.
fn connect(l2: Arc<L2>) -> AbortOnDrop {
    AbortOnDrop(tokio::spawn(async move {
        let mut backoff = crate::retry::forever(Duration::from_millis(300), Duration::from_secs(2));
        loop {
            // At first, too: whoever comes here has just tried in vain.
            tokio::time::sleep(backoff.next()).await;
            if let Ok(connection) = l2.connect().await {
                return connection;
            }
        }
    }))
}
