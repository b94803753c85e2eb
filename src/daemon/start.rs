//! What must be right of the source database before anything is served.
//!
//! The first run of all is strict: whatever is wrong, of the server or of one table, is a mistake of somebody who is still
//! there to mend it. Setup and the first run leave the slot behind. From then on what is wrong with a table is that
//! entity's state, at a start as while the daemon runs: a table that was dropped must not take the other entities
//! along. What concerns all of them (the server, the role, the publication, the slot) is refused at any start.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::STATEMENT_TIMEOUT;
use super::error::DaemonError;
use crate::catalog::{self, Finding, Inspection, Severity};
use crate::config::Config;
use crate::entity::{Resolved, Shape, Standing};
use crate::source::{self, SourceError, Verdict};

/// Inspects the source until it answers, and refuses what cannot work.
///
/// # Errors
/// [`DaemonError::Findings`], and whatever an operator must mend.
pub(super) async fn inspect(config: &Config, stop: &CancellationToken) -> Result<Vec<Resolved>, DaemonError> {
    let mut backoff = crate::retry::forever(Duration::from_millis(100), config.source.reconnect_max);
    loop {
        // The server's own limit on statements does not help where the way to it is silent.
        let after = config.source.dead_after;
        let late = |_| Err(SourceError::Timeout { what: "inspect the source database", after });
        match tokio::time::timeout(after, look(config)).await.unwrap_or_else(late) {
            Ok((inspection, entities)) => return judge(config, inspection, entities),
            Err(error) if error.verdict() == Verdict::Retry => {
                warn!(%error, "the source database is not available; trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = stop.cancelled() => return Err(DaemonError::Stopped),
        }
    }
}

/// An entity by itself, and the errors that keep it from being cached.
type Looked = (Resolved, Vec<Finding>);

async fn look(config: &Config) -> Result<(Inspection, Vec<Looked>), SourceError> {
    let client = source::connect(&config.source, Some(STATEMENT_TIMEOUT)).await?;
    let inspection = catalog::inspect(&client, config).await?;
    let mut entities = Vec::new();
    if !inspection.is_ok() && inspection.has_slot {
        for entity in &config.entities {
            entities.push(catalog::resolve(&client, config, entity).await?);
        }
    }
    Ok((inspection, entities))
}

fn judge(config: &Config, inspection: Inspection, entities: Vec<Looked>) -> Result<Vec<Resolved>, DaemonError> {
    for finding in inspection.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
        warn!(code = finding.code, remedy = finding.remedy, "{} {}", finding.subject, finding.what);
    }
    if inspection.is_ok() {
        // Whatever it is, the first session looks again.
        let cached = |shape: Shape| Resolved { standing: Standing::Cached, signature: 0, shape: Some(shape) };
        let entities = inspection.shapes.into_iter().map(|shape| shape.map(cached)).collect::<Option<_>>();
        return entities.ok_or(DaemonError::Findings(inspection.findings));
    }
    let of_entities: Vec<&Finding> = entities.iter().flat_map(|(_, findings)| findings).collect();
    let mut errors = inspection.findings.iter().filter(|finding| finding.severity == Severity::Error);
    if entities.is_empty() || errors.any(|error| !of_entities.contains(&error)) {
        return Err(DaemonError::Findings(inspection.findings));
    }
    for (entity, (_, findings)) in config.entities.iter().zip(&entities) {
        for finding in findings {
            let (code, remedy) = (finding.code, &finding.remedy);
            error!(
                entity = entity.name,
                code, remedy, "the entity is not cached: {} {}", finding.subject, finding.what
            );
        }
    }
    Ok(entities.into_iter().map(|(resolved, _)| resolved).collect())
}
