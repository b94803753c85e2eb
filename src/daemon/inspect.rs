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

/// Inspects the source until it answers, and refuses what cannot work. What is not configured of the sessions' settings is
/// filled in: all that come later have the same.
///
/// # Errors
/// [`DaemonError::Findings`], and whatever an operator must mend.
pub(super) async fn inspect(config: &mut Config, stop: &CancellationToken) -> Result<Vec<Resolved>, DaemonError> {
    let mut backoff = crate::retry::forever(Duration::from_millis(100), config.source.reconnect_max);
    loop {
        // Each statement has its limit; all of them together take as long as there are entities.
        match look(config).await {
            Ok((inspection, entities, search_path)) => {
                config.source.search_path = search_path;
                return judge(config, inspection, entities);
            }
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

async fn look(config: &Config) -> Result<(Inspection, Vec<Looked>, String), SourceError> {
    let client = source::connect(&config.source, Some(STATEMENT_TIMEOUT)).await?;
    let search_path = source::search_path(&client, config.source.dead_after).await?;
    let inspection = catalog::inspect(&client, config).await?;
    if inspection.is_ok() || !inspection.has_slot {
        return Ok((inspection, Vec::new(), search_path));
    }
    let all: Vec<usize> = (0..config.entities.len()).collect();
    let entities = catalog::resolve(&client, config, &all).await?;
    Ok((inspection, entities, search_path))
}

fn judge(config: &Config, inspection: Inspection, entities: Vec<Looked>) -> Result<Vec<Resolved>, DaemonError> {
    for finding in inspection.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
        warn!(code = finding.code, remedy = finding.remedy, "{} {}", finding.subject, finding.what);
    }
    if inspection.is_ok() {
        let cached = |(shape, signature): (Option<Shape>, u64)| {
            shape.map(|shape| Resolved { standing: Standing::Cached, signature, shape: Some(shape) })
        };
        let entities = inspection.entities.into_iter().map(cached).collect::<Option<_>>();
        return entities.ok_or(DaemonError::Findings(inspection.findings));
    }
    let of_entities: Vec<&Finding> = entities.iter().flat_map(|(_, findings)| findings).collect();
    // The entities were looked at later: what was locked before that may not be by then.
    let is_error = |finding: &&Finding| finding.severity == Severity::Error && !catalog::tells_of_lock(finding);
    let mut errors = inspection.findings.iter().filter(is_error);
    let is_of_one = |error: &Finding| {
        error.code != catalog::PUBLICATION_MISSING && of_entities.iter().any(|known| known.is_same(error))
    };
    if entities.is_empty() || errors.any(|error| !is_of_one(error)) {
        return Err(DaemonError::Findings(inspection.findings));
    }
    for (entity, (_, findings)) in config.entities.iter().zip(&entities) {
        for finding in findings {
            let (entity, code, remedy) = (&entity.name, finding.code, &finding.remedy);
            if catalog::tells_of_lock(finding) {
                warn!(entity, code, remedy, "the entity is not cached yet: {} {}", finding.subject, finding.what);
            } else {
                error!(entity, code, remedy, "the entity is not cached: {} {}", finding.subject, finding.what);
            }
        }
    }
    Ok(entities.into_iter().map(|(resolved, _)| resolved).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(code: &'static str) -> Finding {
        let (subject, what, remedy) = ("entity e".to_owned(), "is as it is".to_owned(), "mend it".to_owned());
        Finding { severity: Severity::Error, code, subject, what, remedy, sql: None, setup: None }
    }

    /// What comes of it when these are found at first, and these of the entity afterwards.
    fn judged(found: &[&'static str], later: &[&'static str], has_slot: bool) -> Option<Standing> {
        let findings: Vec<Finding> = found.iter().copied().map(finding).collect();
        let inspection =
            Inspection { findings, entities: vec![(None, 0)], has_slot, announces_ddl: true, costs: Vec::new() };
        let later: Vec<Finding> = later.iter().copied().map(finding).collect();
        let standing = if later.is_empty() { Standing::Cached } else { Standing::Uncached(later[0].to_string()) };
        let looked = (Resolved { standing, shape: None, signature: 0 }, later);
        let entities = if has_slot { vec![looked] } else { Vec::new() };
        let judged = judge(&Config::default(), inspection, entities).ok()?;
        Some(judged.into_iter().next()?.standing)
    }

    #[test]
    fn a_lock_of_a_moment_is_no_reason_not_to_start() {
        for lock in ["query_locked", "table_locked"] {
            assert_eq!(judged(&[lock], &[], true), Some(Standing::Cached), "{lock}");
            let still = judged(&[lock], &[lock], true);
            assert!(still.as_ref().is_some_and(Standing::is_locked), "{lock}: {still:?}");
            assert_eq!(judged(&[lock], &[], false), None, "{lock}: the first run of all");
            assert_eq!(judged(&[lock, "wal_level"], &[], true), None, "{lock}: something else is wrong");
        }
        let of_one = judged(&["replica_identity"], &["replica_identity"], true);
        assert!(matches!(of_one, Some(Standing::Uncached(_))), "{of_one:?}");
        assert_eq!(judged(&["replica_identity"], &[], true), None);
    }
}
