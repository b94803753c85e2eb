//! The oracles of the fault tests.
//!
//! - O1: once writes have stopped and the daemon has caught up, whatever may be served equals Postgres;
//! - O4: the slot's confirmed position never passes a commit that was not applied.
//!
//! O2 and O3 are judged read by read under load: see `Load`. What is right is decided by `histories` alone.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value as Reply};
use serde_json::Value;
use walcache::lsn::Lsn;

use super::failure::INCONSISTENT;
use super::histories::{Claim, Kind, Violation};
use super::load::{Load, assert_none};
use super::shop::Shop;
use super::{Daemon, Stage, WAIT_LIMIT, current_lsn, eventually};

/// The fence's key, where there is no prefix.
const FENCE: &str = "~walcache:fence";

/// What stands at a key, and the fence at the same moment.
#[derive(Debug)]
pub struct Stored {
    text: Option<String>,
    fence: HashMap<String, String>,
}

/// An entry that may be served.
#[derive(Debug)]
pub struct Entry {
    /// Everything committed up to here is in it.
    pub lo: Lsn,
    /// Nothing committed after here is.
    pub hi: Lsn,
    /// What was done, by the fence, before the entry was read.
    pub done: Lsn,
    /// The value's JSON.
    pub value: Value,
}

impl Entry {
    /// The row's version; `None` if it is known to be absent.
    pub fn version(&self) -> Option<i64> {
        super::shop::version(&self.value)
    }
}

/// Takes an entry, if a reader may serve it, by the rules of the README: of this generation, and not of a transaction
/// that may still be under way.
pub fn servable(stored: &Stored, entity: &str) -> Option<Entry> {
    let (split, entry) = present(stored, entity)?;
    (split == 0 || entry.done >= entry.lo).then_some(entry)
}

/// As [`servable`], also those that are marked as split, with the mark.
fn present(stored: &Stored, entity: &str) -> Option<(i64, Entry)> {
    let text = stored.text.as_deref().filter(|text| text.starts_with("{\"lo\":"))?;
    let json: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON in Redis ({e}): {text}"));
    let generation = |field: &str| stored.fence.get(field).cloned().unwrap_or_default();
    let needed = generation("gen").max(generation(&format!("gen:{entity}")));
    if !stored.fence.contains_key("gen") || json["g"].as_str()? < needed.as_str() {
        return None;
    }
    let lsn = |name: &str| Lsn::from_hex16(json[name].as_str()?.as_bytes());
    let done = stored.fence.get("done").and_then(|done| Lsn::from_hex16(done.as_bytes())).unwrap_or_default();
    let entry = Entry { lo: lsn("lo")?, hi: lsn("hi")?, done, value: json["v"].clone() };
    Some((json["s"].as_i64()?, entry))
}

/// A reader of Redis.
pub struct Raw {
    connection: MultiplexedConnection,
}

impl Raw {
    /// Connects to the stage's Redis database.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn connect(stage: &Stage) -> Result<Raw, redis::RedisError> {
        Raw::connect_within(WAIT_LIMIT, stage).await
    }

    /// As [`Raw::connect`]; neither that nor an answer may take longer than `limit`.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn connect_within(limit: Duration, stage: &Stage) -> Result<Raw, redis::RedisError> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
        let client = Client::open(stage.l2_url())?;
        Ok(Raw { connection: client.get_multiplexed_async_connection_with_config(&config).await? })
    }

    /// A key and the fence, in one transaction.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn look(&mut self, key: &str) -> Result<Option<Stored>, redis::RedisError> {
        let mut both = redis::pipe();
        both.atomic().cmd("MGET").arg(key).cmd("HGETALL").arg(FENCE);
        let (texts, fence): (Vec<Option<String>>, HashMap<String, String>) =
            both.query_async(&mut self.connection).await?;
        Ok(Some(Stored { text: texts.into_iter().next().flatten(), fence }))
    }

    /// The fence, and then a key: in this order anything may happen in between.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn look_in_turn(&mut self, key: &str) -> Result<Stored, redis::RedisError> {
        let fence = redis::cmd("HGETALL").arg(FENCE).query_async(&mut self.connection).await?;
        let text = redis::cmd("GET").arg(key).query_async(&mut self.connection).await?;
        Ok(Stored { text, fence })
    }

    /// All keys of an entity.
    pub async fn keys(&mut self, entity: &str) -> Vec<String> {
        redis::cmd("KEYS").arg(format!("{entity}:*")).query_async(&mut self.connection).await.expect("list keys")
    }

    /// Any command.
    ///
    /// # Errors
    /// What Redis says.
    pub async fn run(&mut self, command: &[&str]) -> Result<Reply, redis::RedisError> {
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut self.connection).await
    }
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compared {
    /// Servable entries in Redis.
    pub entries: usize,
    /// Answers over HTTP.
    pub answers: usize,
}

impl Shop {
    /// O1. Writes must have stopped.
    pub async fn equals_postgres(&self, daemon: &Daemon) -> Compared {
        let (compared, violations) = self.compare(daemon).await;
        assert_none(&violations);
        assert_eq!(daemon.audit_findings().await, 0.0, "{INCONSISTENT}the auditor has found something");
        compared
    }

    /// Stops a load of which no read was refused; then O1, and something is cached.
    pub async fn ends_well(&self, load: Load, daemon: &Daemon) {
        let done = load.stop().await;
        assert_eq!(done.failed_reads, 0, "{done:?}");
        let compared = self.equals_postgres(daemon).await;
        assert!(compared.entries > 0, "{compared:?}");
    }

    /// O1, and what violates it. Writes must have stopped.
    pub async fn compare(&self, daemon: &Daemon) -> (Compared, Vec<Violation>) {
        let sql = self.sql().await;
        let end = current_lsn(&sql).await;
        // What was inserted into the log is not flushed, and so not streamed, before a commit after it is.
        sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.expect("write a commit");
        daemon.wait_applied(end).await;
        let rows: BTreeMap<usize, Value> = sql
            .query("SELECT id, row_to_json(c)::text FROM counters c", &[])
            .await
            .expect("read the table")
            .iter()
            .map(|row| (row.get::<_, i32>(0) as usize, serde_json::from_str(row.get(1)).expect("JSON")))
            .collect();
        let mut violations = Vec::new();
        let entries = self.entries_equal(&rows, &mut violations).await;
        let http = daemon.http();
        let ids: Vec<usize> = (0..self.histories.len())
            .chain(rows.keys().copied().filter(|id| *id >= self.histories.len()).take(200))
            .collect();
        let mut answers = 0;
        // Twice: from wherever, and then most of them from L1.
        for round in 0..2 {
            for id in &ids {
                // Right after a fault, reads of Postgres are refused at once for a moment: then one comes back.
                let response = eventually("be answered", || async {
                    let response = http.get(&format!("/v1/counter/{id}")).await;
                    if response.status == 503 { Err(format!("{response:?}")) } else { Ok(response) }
                })
                .await;
                let found = match response.status.as_u16() {
                    200 => Some(response.json()),
                    404 => None,
                    _ => panic!("round {round}, {id}: {response:?}"),
                };
                if found.as_ref() != rows.get(id) {
                    let what =
                        format!("round {round}, counter {id}: {found:?}, in Postgres {:?}; {response:?}", rows.get(id));
                    violations.push(Violation { kind: Kind::Differs, what });
                }
                answers += 1;
            }
        }
        let after = self.entries_equal(&rows, &mut violations).await;
        (Compared { entries: entries.max(after), answers }, violations)
    }

    /// What was recorded is what Postgres holds: else nothing that was judged by it means anything.
    pub async fn recorded_equals_postgres(&self) {
        let sql = self.sql().await;
        let rows = sql.query("SELECT id, version FROM counters", &[]).await.expect("read the table");
        let rows: HashMap<usize, i64> = rows.iter().map(|row| (row.get::<_, i32>(0) as usize, row.get(1))).collect();
        for row in 0..self.histories.len() {
            let newest = self.histories.newest(row);
            if newest.done.is_some() {
                assert_eq!(newest.value, rows.get(&row).copied(), "row {row}: the record is wrong: {newest:?}");
            }
        }
    }

    async fn entries_equal(&self, rows: &BTreeMap<usize, Value>, violations: &mut Vec<Violation>) -> usize {
        let mut raw = Raw::connect(&self.stage).await.expect("connect to Redis");
        let mut entries = 0;
        for key in raw.keys("counter").await {
            let stored = raw.look(&key).await.expect("read an entry").expect("looked");
            let Some((_, entry)) = present(&stored, "counter") else { continue };
            let id: usize = key["counter:".len()..].parse().expect("a number");
            let found = (!entry.value.is_null()).then_some(&entry.value);
            if found != rows.get(&id) {
                let what = format!("{key} in Redis: {stored:?}, in Postgres {:?}", rows.get(&id));
                violations.push(Violation { kind: Kind::Differs, what });
            }
            entries += 1;
        }
        entries
    }

    /// O4, while no daemon runs: every entry contains all that was committed up to what the slot has confirmed.
    pub async fn confirmed_is_applied(&self) -> usize {
        let (entries, violations) = self.confirmed_and_applied().await;
        assert_none(&violations);
        entries
    }

    /// O4, while no daemon runs, and what violates it.
    pub async fn confirmed_and_applied(&self) -> (usize, Vec<Violation>) {
        let confirmed = self.confirmed_when_free().await;
        self.contain(confirmed).await
    }

    /// Every servable entry in Redis contains all that was committed up to `lo`.
    pub async fn contains(&self, lo: Lsn) -> usize {
        let (entries, violations) = self.contain(lo).await;
        assert_none(&violations);
        entries
    }

    async fn contain(&self, lo: Lsn) -> (usize, Vec<Violation>) {
        let mut violations = Vec::new();
        let mut raw = Raw::connect(&self.stage).await.expect("connect to Redis");
        let mut entries = 0;
        for key in raw.keys("counter").await {
            let stored = raw.look(&key).await.expect("read an entry").expect("looked");
            let Some(entry) = servable(&stored, "counter") else { continue };
            let id: usize = key["counter:".len()..].parse().expect("a number");
            let claim = Claim { lo, ..Claim::default() };
            if let Err(wrong) = self.histories.judge(id, entry.version(), claim) {
                let what = format!("confirmed {lo}, but {key} was not brought there: {wrong}; {stored:?}");
                violations.push(Violation { kind: Kind::Unapplied, what });
            }
            entries += 1;
        }
        (entries, violations)
    }
}
