//! Which server is followed: one and the same for stream, gate and queries, and nothing of another one is served.

use tokio_postgres::Client;
use tracing::{info, warn};

use super::Context;
use super::error::SessionError;
use crate::apply::claim::draw;
use crate::capture::CaptureError;
use crate::capture::connect::Connection;
use crate::config::Config;
use crate::lsn::Lsn;
use crate::source::{Server, SourceError, System};

/// The gate and the catalog must speak of the server whose log is streamed.
///
/// # Errors
/// If they speak of another, or of a standby.
pub(super) fn compare(stream: Option<&Server>, queries: Option<&Server>) -> Result<(), SourceError> {
    // Where one does not tell, nothing can be compared.
    let (Some(stream), Some(queries)) = (stream, queries) else { return Ok(()) };
    if let Some(standby) = [stream, queries].into_iter().find(|server| server.system.is_none()) {
        return Err(SourceError::Standby(standby.to_string()));
    }
    if !stream.is(queries) {
        return Err(SourceError::SeveralServers { stream: stream.to_string(), queries: queries.to_string() });
    }
    Ok(())
}

/// Another server than before is to be followed: nothing of before is served any more, nor asked of the old one, which
/// may still run. Reads go to the new one until the stream has caught up.
///
/// # Errors
/// If the new one gives no generation.
pub(super) async fn abandon(context: &Context, source: &Client, system: &System) -> Result<(), SessionError> {
    let generation = draw(source, context.hierarchy.newest_generation()).await?;
    warn!(
        generation = generation.0,
        system = system.identifier,
        timeline = system.timeline,
        "the source is another system or timeline than before: nothing that was cached is served"
    );
    if let Some(l2) = &context.hierarchy.l2 {
        l2.distrust();
    }
    context.hierarchy.restart(Lsn::ZERO, generation);
    // Those in use are dropped when they come back: see `Rows::read`.
    context.pool.retain(|_, _| false);
    Ok(())
}

/// Makes the slot one that standbys keep in step, or one that they do not.
///
/// # Errors
/// If the connection fails; a server that refuses does not keep the slot from being read.
pub(super) async fn alter(connection: &mut Connection, config: &Config) -> Result<(), SessionError> {
    let (slot, failover) = (&config.source.slot, config.source.failover_slot);
    match connection.set_failover(failover).await {
        Ok(()) => info!(slot, failover, "altered the slot: whether standbys keep it in step"),
        // It streams nevertheless.
        Err(error @ CaptureError::Server { .. }) => {
            warn!(slot, failover, %error, "the slot cannot be altered; standbys do not learn of it as source.failover_slot says");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
