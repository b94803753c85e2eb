//! What the database needs before the daemon runs, applied.
//!
//! It is what an inspection finds and marks with a phase. Whatever else it finds is refused before anything is changed:
//! a table without replica identity, once published, would break the application's own writes.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::catalog::{self, Finding, Phase, Severity};
use crate::config::{Config, SourceConfig};
use crate::migrate;
use crate::source::{SourceError, SourceUrl};
use crate::sql::{quote_ident, quote_literal};

/// Mending one thing may show the next (a partitioned table that must be added once its publication goes by roots).
const ROUNDS: usize = 3;

/// Why a database cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The source refused.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Findings that setup does not mend.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Finding>),
}

/// The findings that setup mends, in the order of their phases; each has its SQL.
///
/// # Errors
/// Where there is an error that setup does not mend, or the catalog cannot be read.
pub async fn steps(client: &Client, config: &Config) -> Result<Vec<Finding>, SetupError> {
    let mut inspection = catalog::inspect(client, config).await?;
    let of_warming = catalog::inspect_warming(client, config, &inspection).await?;
    let findings = std::mem::take(&mut inspection.findings).into_iter().chain(of_warming);
    let (mut steps, others): (Vec<Finding>, Vec<Finding>) = findings.partition(|f| f.setup.is_some());
    let refused: Vec<Finding> = others.into_iter().filter(|f| f.severity == Severity::Error).collect();
    if !refused.is_empty() {
        return Err(SetupError::Refused(refused));
    }
    steps.sort_by_key(|finding| finding.setup);
    Ok(steps)
}

/// What became of a setup.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether there was anything to do.
    pub changed: bool,
    /// What was left out for want of rights, and what the server said: walcache runs without it.
    pub left_out: Vec<(Finding, SourceError)>,
}

/// Applies the steps until there are none, and tells `done` of each.
///
/// # Errors
/// As [`steps`], and where a statement fails that is needed.
pub async fn apply(
    client: &mut Client,
    config: &Config,
    mut done: impl FnMut(&Finding),
) -> Result<Applied, SetupError> {
    let mut applied = Applied::default();
    for _ in 0..ROUNDS {
        let mut steps = steps(client, config).await?;
        steps.retain(|step| applied.left_out.iter().all(|(left_out, _)| left_out.code != step.code));
        if steps.is_empty() {
            break;
        }
        apply_round(client, &steps, config, &mut applied, &mut done).await?;
    }
    Ok(applied)
}

/// All but migrations, event triggers and the slot are one transaction.
async fn apply_round(
    client: &mut Client,
    steps: &[Finding],
    config: &Config,
    applied: &mut Applied,
    done: &mut impl FnMut(&Finding),
) -> Result<(), SourceError> {
    let failed = |error| SourceError::postgres("apply setup", error);
    let of = |phase: Phase| steps.iter().filter(move |step| step.setup == Some(phase));
    for step in of(Phase::Role) {
        let sql = if step.code == "role_missing" { create_role(&config.source)? } else { sql_of(step).to_owned() };
        client.batch_execute(&sql).await.map_err(failed)?;
        done(step);
    }
    if of(Phase::Schema).next().is_some() {
        migrate::migrate(client).await?;
        of(Phase::Schema).for_each(&mut *done);
    }
    let transaction = client.transaction().await.map_err(failed)?;
    for step in of(Phase::Grant).chain(of(Phase::Publication)) {
        transaction.batch_execute(sql_of(step)).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    of(Phase::Grant).chain(of(Phase::Publication)).for_each(&mut *done);
    applied.changed |= steps.iter().any(|step| step.setup != Some(Phase::Announce));
    for step in of(Phase::Announce) {
        let transaction = client.transaction().await.map_err(failed)?;
        // Dropped without a commit, it is rolled back.
        match transaction.batch_execute(sql_of(step)).await {
            Ok(()) => {
                transaction.commit().await.map_err(failed)?;
                applied.changed = true;
                done(step);
            }
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                applied.left_out.push((step.clone(), failed(error)));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    // Not in a transaction that has written: the server refuses that.
    for step in of(Phase::Slot) {
        client.batch_execute(sql_of(step)).await.map_err(failed)?;
        done(step);
    }
    Ok(())
}

fn sql_of(step: &Finding) -> &str {
    step.sql.as_deref().unwrap_or_default()
}

/// Makes the role of `source.url`. Its password leaves this process as a verifier only: statements may be logged.
fn create_role(source: &SourceConfig) -> Result<String, SourceError> {
    let url = SourceUrl::parse(&source.url)?;
    let password = url.password().map(postgres_protocol::password::scram_sha_256);
    let password = password.map(|verifier| format!(" PASSWORD {}", quote_literal(&verifier))).unwrap_or_default();
    Ok(format!("CREATE ROLE {} LOGIN REPLICATION{password}", quote_ident(url.user())))
}
