//! walcache's own schema in the source database: migrations, and what applies them.

use tokio_postgres::Client;

use crate::source::SourceError;

/// A step of the schema. Its file is never edited once released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Counted from 1, without gaps.
    pub version: i32,
    /// The statements.
    pub sql: &'static str,
}

/// All of them, in order.
pub const MIGRATIONS: [Migration; 3] = [
    Migration { version: 1, sql: include_str!("../migrations/0001_walcache.sql") },
    Migration { version: 2, sql: include_str!("../migrations/0002_commands.sql") },
    Migration { version: 3, sql: include_str!("../migrations/0003_voids.sql") },
];

/// Key of the advisory lock that lets one process migrate at a time: `walcache` in ASCII.
const LOCK: i64 = 0x7761_6C63_6163_6865;

impl Migration {
    /// The statements with the note that they were applied.
    pub fn script(&self) -> String {
        format!("{}\nINSERT INTO walcache.migrations (version) VALUES ({});", self.sql.trim_end(), self.version)
    }
}

/// The versions that were applied; none where the schema does not exist.
///
/// # Errors
/// [`SourceError`], also where the role may not read them.
pub async fn applied(client: &Client) -> Result<Vec<i32>, SourceError> {
    let failed = |error| SourceError::postgres("read walcache.migrations", error);
    let exists = client.query_one(
        "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'walcache' AND tablename = 'migrations')",
        &[],
    );
    if !exists.await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = client.query(include_str!("../sql/migration_versions.sql"), &[]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Applies what is missing, all or nothing, and returns the versions applied now. A second run does nothing.
///
/// # Errors
/// [`SourceError`]; then nothing was changed.
pub async fn migrate(client: &mut Client) -> Result<Vec<i32>, SourceError> {
    let failed = |error| SourceError::postgres("migrate schema walcache", error);
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed)?;
    // Asked under the lock: another process may just have finished.
    let present = applied(transaction.client()).await?;
    let mut done = Vec::new();
    for migration in MIGRATIONS.iter().filter(|m| !present.contains(&m.version)) {
        transaction.batch_execute(&migration.script()).await.map_err(failed)?;
        done.push(migration.version);
    }
    transaction.commit().await.map_err(failed)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one() {
        for (i, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(usize::try_from(migration.version), Ok(i + 1));
        }
    }
}
