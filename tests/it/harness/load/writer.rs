//! Writers: transactions of a few statements each, on few hot and many cold rows.
//!
//! Rows come in pairs here and there: both are written with the same version, in one transaction, always. Some
//! transactions write a row twice, roll back to a savepoint, or roll back altogether: what never was committed has
//! versions of its own, by which it would be recognised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio_postgres::Client;
use walcache::lsn::Lsn;

use super::{OWN, Shared};
use crate::harness::histories::{Histories, Transaction};

/// Rows that are written most: every second statement.
const HOT: usize = 8;
/// Of so many rows, the last two are a pair.
const GROUP: usize = 8;

/// What one statement, or a few that belong together, is to do.
enum Step {
    Put(usize),
    Delete(usize),
    /// The row gets another key; what was there goes.
    Move(usize, usize),
    Twice(usize),
    /// Rolled back to a savepoint.
    Undone(usize),
    PutPair(usize),
    DeletePair(usize),
    /// Has the row's entry dropped, and warmed where that is wanted.
    Invalidate(usize, bool),
    InvalidateAll,
}

/// The other row of a pair.
pub(super) fn partner(row: usize) -> Option<usize> {
    match row % GROUP {
        r if r == GROUP - 2 => Some(row + 1),
        r if r == GROUP - 1 => Some(row - 1),
        _ => None,
    }
}

impl Step {
    fn draw(rows: usize, rng: &mut StdRng) -> Step {
        let mut any = || if rng.random() { rng.random_range(0..HOT) } else { rng.random_range(0..rows) };
        let (row, other) = (any(), any());
        let dice = rng.random_range(0..20);
        match partner(row) {
            _ if rng.random_range(0..200) == 0 => Step::InvalidateAll,
            _ if rng.random_range(0..12) == 0 => Step::Invalidate(row, rng.random()),
            Some(partner) if dice < 4 => Step::DeletePair(row.min(partner)),
            Some(partner) => Step::PutPair(row.min(partner)),
            None if dice < 3 => Step::Delete(row),
            None if dice < 6 && row != other && partner(other).is_none() => Step::Move(row, other),
            None if dice < 8 => Step::Twice(row),
            None if dice < 9 => Step::Undone(row),
            None => Step::Put(row),
        }
    }

    fn rows(&self) -> Vec<usize> {
        match *self {
            Step::Put(row) | Step::Delete(row) | Step::Twice(row) | Step::Undone(row) => vec![row],
            // Neither changes a row: others may write it meanwhile.
            Step::Invalidate(..) | Step::InvalidateAll => vec![],
            Step::Move(row, other) => vec![row, other],
            Step::PutPair(row) | Step::DeletePair(row) => vec![row, row + 1],
        }
    }

    /// Its SQL; notes the states that it leaves.
    fn sql(&self, histories: &Histories, changes: &mut BTreeMap<usize, Option<i64>>) -> Vec<String> {
        let version = histories.version();
        let delete = |row: usize| format!("DELETE FROM counters WHERE id = {row}");
        match *self {
            Step::Put(row) => {
                changes.insert(row, Some(version));
                vec![upsert(row, version)]
            }
            Step::Delete(row) => {
                changes.insert(row, None);
                vec![delete(row)]
            }
            Step::Move(row, other) => {
                // Only of what is known to be there: else nothing would move, and nobody would know.
                let newest = histories.newest(row);
                let there = changes.get(&row).copied().or(newest.done.map(|_| newest.value)).flatten().is_some();
                if !there {
                    return Step::Put(row).sql(histories, changes);
                }
                changes.extend([(row, None), (other, Some(version))]);
                let update = format!("UPDATE counters SET id = {other}, version = {version} WHERE id = {row}");
                vec![delete(other), update]
            }
            Step::Twice(row) => {
                let last = histories.version();
                changes.insert(row, Some(last));
                vec![upsert(row, version), upsert(row, last)]
            }
            Step::Undone(row) => {
                vec!["SAVEPOINT s".into(), upsert(row, version), "ROLLBACK TO SAVEPOINT s".into()]
            }
            Step::Invalidate(row, false) => vec![format!("SELECT walcache.invalidate('counter', '{row}')")],
            Step::Invalidate(row, true) => {
                vec![format!("SELECT walcache.invalidate('counter', '{row}'), walcache.warm('counter', '{row}')")]
            }
            Step::InvalidateAll => vec!["SELECT walcache.invalidate_all('counter')".into()],
            Step::PutPair(row) => {
                changes.extend([(row, Some(version)), (row + 1, Some(version))]);
                vec![upsert(row, version), upsert(row + 1, version)]
            }
            Step::DeletePair(row) => {
                changes.extend([(row, None), (row + 1, None)]);
                vec![delete(row), delete(row + 1)]
            }
        }
    }
}

/// Writes a row, whether it is there or not.
pub(in super::super) fn upsert(row: usize, value: i64) -> String {
    format!(
        "INSERT INTO counters VALUES ({row}, {value}) ON CONFLICT (id) DO UPDATE SET version = excluded.version, note = 'v{value}'"
    )
}

/// A writer's connection.
struct Session {
    sql: Client,
    /// The log's end after its last commit: whatever it commits next lies beyond.
    last: Option<Lsn>,
}

/// Writes one transaction after the other, and records each.
pub(super) async fn write(shared: Arc<Shared>, pace: Option<Duration>, mut rng: StdRng) {
    let mut session: Option<Session> = None;
    while !shared.stop.is_cancelled() {
        let Some(Session { sql, last }) = session.as_mut().filter(|session| !session.sql.is_closed()) else {
            session = connect(&shared).await;
            continue;
        };
        let steps: Vec<Step> =
            (0..rng.random_range(1..=5)).map(|_| Step::draw(shared.histories.len(), &mut rng)).collect();
        let rolled_back = rng.random_range(0..25) == 0;
        let rows: BTreeSet<usize> = steps.iter().flat_map(Step::rows).collect();
        let turns = shared.histories.turns(&rows).await;
        let mut changes = BTreeMap::new();
        let mut statements: Vec<String> = vec!["BEGIN".into()];
        statements.extend(steps.iter().flat_map(|step| step.sql(&shared.histories, &mut changes)));
        if rolled_back {
            // Nothing is recorded: whoever reads these versions reads what never was.
            statements.push("ROLLBACK".into());
            if sql.batch_execute(&statements.join("; ")).await.is_err() {
                session = None;
            }
            continue;
        }
        let transaction = turns.begin(&changes, *last);
        // By this it is known afterwards whether it was committed, should nobody say.
        statements.push(format!("INSERT INTO outcomes VALUES ({}, true)", transaction.number));
        statements.push("COMMIT".into());
        let at = match sql.batch_execute(&statements.join("; ")).await {
            Ok(()) => position(sql).await,
            Err(_) => None,
        };
        match at {
            Some(at) => {
                *last = Some(at);
                let number = transaction.number;
                transaction.committed(at);
                demand_own(&shared, &rows, at, number);
            }
            None => {
                session = None;
                find_out(&shared, transaction).await;
                continue;
            }
        }
        shared.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(pace) = pace {
            tokio::time::sleep(pace).await;
        }
    }
}

async fn connect(shared: &Shared) -> Option<Session> {
    match shared.stage.postgres.connect(&shared.stage.name).await {
        Ok(sql) => Some(Session { sql, last: None }),
        Err(_) => {
            shared.pause().await;
            None
        }
    }
}

async fn position(sql: &Client) -> Option<Lsn> {
    let row = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.ok()?;
    row.get::<_, &str>(0).parse().ok()
}

/// A reader may demand these writes now.
fn demand_own(shared: &Shared, rows: &BTreeSet<usize>, at: Lsn, number: u64) {
    let mut own = shared.own.lock();
    own.extend(rows.iter().take(1).map(|row| (*row, at, number)));
    while own.len() > OWN {
        own.pop_front();
    }
}

/// Asks whether a transaction was committed whose acknowledgement did not come, for as long as the load goes on; the
/// outcome stays unknown otherwise.
async fn find_out(shared: &Shared, transaction: Transaction<'_>) {
    while !shared.stop.is_cancelled() {
        let known = async {
            let sql = shared.stage.postgres.connect(&shared.stage.name).await.ok()?;
            let number = transaction.number;
            // Waits for the transaction, should it still be under way, and keeps it from being committed later.
            let claim = format!("INSERT INTO outcomes VALUES ({number}, false) ON CONFLICT DO NOTHING");
            sql.batch_execute(&claim).await.ok()?;
            let look = format!("SELECT committed FROM outcomes WHERE transaction = {number}");
            let committed: bool = sql.query_one(&look, &[]).await.ok()?.get(0);
            Some((committed, position(&sql).await?))
        };
        match known.await {
            Some((false, _)) => {
                transaction.aborted().into_iter().for_each(|violation| shared.wrong(violation));
                return;
            }
            Some((true, at)) => {
                transaction.committed(at);
                shared.writes.fetch_add(1, Ordering::Relaxed);
                return;
            }
            None => shared.pause().await,
        }
    }
}
