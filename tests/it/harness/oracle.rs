//! The judge: what Postgres itself says each entry must be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::AsyncCommands;
use tokio_postgres::Client;

use super::failure::INCONSISTENT;
use super::scene::{Scene, Stored};
use super::{Response, eventually};
use crate::harness::config::Entity;

/// What the settings of a session must be for `row_to_json` to read as promised, whatever the database's defaults are.
const PINNED: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; \
                      SET extra_float_digits = 1; SET bytea_output = 'hex'; SET xmloption = 'content'; \
                      SET lc_monetary = 'C'; SET quote_all_identifiers = off";

/// Compares what a daemon has cached, and what it answers, with its source.
pub struct Oracle<'a> {
    scene: &'a Scene,
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries in L2 that may be served.
    pub servable: usize,
    /// Entries in L2 of older generations.
    pub outdated: usize,
    /// Answers over HTTP.
    pub answers: usize,
}

impl<'a> Oracle<'a> {
    /// The oracle of a scene.
    pub fn new(scene: &'a Scene) -> Self {
        Oracle { scene }
    }

    /// When all that was committed is applied: every servable entry in L2 equals the row in Postgres, and so does the
    /// answer for each key that is in Postgres or in L2, also after it was cached by asking.
    ///
    /// # Panics
    /// Naming each key that differs, and both values.
    pub async fn verify(&self) -> Compared {
        self.scene.applied().await;
        let mut compared = Compared::default();
        let sql = self.scene.stage.sql().await;
        pinned(&sql).await;
        let mut wrong = Vec::new();
        for entity in self.scene.config.entities() {
            if let Some(query) = entity.as_query() {
                self.verify_query(entity, &query, &sql, &mut compared, &mut wrong).await;
                continue;
            }
            let rows = rows(&sql, entity, &self.scene.config.publications()).await;
            let mut keys: BTreeSet<String> = rows.keys().cloned().collect();
            // Before anything is filled, and after everything was.
            for _ in 0..2 {
                for (key, entry) in self.entries(entity.name()).await {
                    let Some(entry) = entry else {
                        compared.outdated += 1;
                        continue;
                    };
                    compared.servable += 1;
                    let wanted = rows.get(&key).map_or("null", String::as_str);
                    if entry.value != wanted {
                        wrong.push(format!("{}:{key} in L2\n  is    {entry:?}\n  wants {wanted}", entity.name()));
                    }
                    keys.insert(key);
                }
                for key in &keys {
                    let response = self.answer(entity.name(), key).await;
                    compared.answers += 1;
                    let (status, wanted) = rows.get(key).map_or((404, None), |row| (200, Some(row)));
                    let same = response.status == status && wanted.is_none_or(|row| response.text() == **row);
                    if !same {
                        let from = response.header("x-cache");
                        wrong.push(format!(
                            "{}:{key} from {from}\n  is    {} {}\n  wants {status} {wanted:?}",
                            entity.name(),
                            response.status,
                            response.text()
                        ));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{INCONSISTENT}{} differ from Postgres:\n{}", wrong.len(), wrong.join("\n"));
        compared
    }

    /// As [`Oracle::verify`], of the keys of a query that stand in L2.
    async fn verify_query(
        &self,
        entity: &Entity,
        query: &toml::Table,
        sql: &Client,
        compared: &mut Compared,
        wrong: &mut Vec<String>,
    ) {
        for (key, entry) in self.entries(entity.name()).await {
            let wanted = query_result(sql, query, &key).await;
            match entry {
                Some(entry) => {
                    compared.servable += 1;
                    if entry.value != wanted.as_deref().unwrap_or("null") {
                        wrong.push(format!("{}:{key} in L2\n  is    {entry:?}\n  wants {wanted:?}", entity.name()));
                    }
                }
                None => compared.outdated += 1,
            }
            for _ in 0..2 {
                let response = self.answer(entity.name(), &key).await;
                compared.answers += 1;
                let is_right = match &wanted {
                    Some(wanted) => response.status == 200 && response.text() == *wanted,
                    None => response.status == 404,
                };
                if !is_right {
                    wrong.push(format!("{}:{key}\n  is    {response:?}\n  wants {wanted:?}", entity.name()));
                }
            }
        }
    }

    /// What is answered in the end: a busy machine may keep a read waiting for too long, which says nothing of what is cached.
    async fn answer(&self, entity: &str, key: &str) -> Response {
        eventually("be answered", || async {
            let response = self.scene.get(&format!("{entity}/{}", in_url(key))).await;
            if response.status == 503 { Err(format!("{response:?}")) } else { Ok(response) }
        })
        .await
    }

    /// The entries of an entity in L2 by key; `None` for those that may not be served.
    async fn entries(&self, entity: &str) -> BTreeMap<String, Option<Stored>> {
        let mut l2 = self.scene.l2.clone();
        let fence: HashMap<String, String> = l2.hgetall("~walcache:fence").await.expect("the fence is a hash");
        let generation = ["gen".to_owned(), format!("gen:{entity}")].iter().filter_map(|g| fence.get(g)).max().cloned();
        let generation = generation.unwrap_or_default();
        let mut entries = BTreeMap::new();
        for key in self.scene.keys(entity).await {
            // It may have expired, or be a lease.
            if let Some(entry) = self.scene.stored(&format!("{entity}:{key}")).await {
                let servable = entry.generation >= generation;
                entries.insert(key, servable.then_some(entry));
            }
        }
        entries
    }
}

/// Pins a session's settings to those that the values are promised in.
pub async fn pinned(sql: &Client) -> &Client {
    sql.batch_execute(PINNED).await.expect("settings");
    sql
}

/// What a query gives for a key, as it stands in Redis: by Postgres' own PREPARE and EXECUTE, row by row. `None` where its shape is
/// `one` and there is no row.
pub async fn query_result(sql: &Client, query: &toml::Table, key: &str) -> Option<String> {
    let text = |name: &str| query[name].as_str().expect("a text").to_owned();
    let types: Vec<&str> =
        query["params"].as_table().expect("params").values().filter_map(toml::Value::as_str).collect();
    let part = |part: &str| {
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(part).collect();
        format!("'{}'", String::from_utf8(bytes).expect("UTF-8").replace('\'', "''"))
    };
    let values: Vec<String> = key.split(',').map(part).collect();
    let script = format!(
        "PREPARE oracle ({}) AS SELECT row_to_json(q.*)::text FROM ({}\n) AS q; EXECUTE oracle ({}); DEALLOCATE oracle",
        types.join(", "),
        text("query"),
        values.join(", ")
    );
    let messages = sql.simple_query(&script).await.unwrap_or_else(|e| panic!("{e}: {:?}\n{script}", e.as_db_error()));
    let rows: Vec<&str> = messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    match query.get("shape").and_then(toml::Value::as_str) {
        Some("one") => rows.first().map(|row| (*row).to_owned()),
        _ => Some(format!("[{}]", rows.join(","))),
    }
}

/// The condition on a table's rows that the publications state; `true` where one of them states none.
async fn published(sql: &Client, table: &str, publications: &[&str]) -> String {
    // Before Postgres 15 there are no filters, and no such column.
    let query = "SELECT coalesce('(' || (to_jsonb(t) ->> 'rowfilter') || ')', 'true') FROM pg_publication_tables t \
                 WHERE t.pubname = ANY ($1) AND format('%I.%I', t.schemaname, t.tablename)::regclass = $2::text::regclass";
    let filters = sql.query(query, &[&publications, &table]).await.expect("the table's filters");
    let filters: Vec<&str> = filters.iter().map(|row| row.get(0)).collect();
    if filters.is_empty() { "true".to_owned() } else { filters.join(" OR ") }
}

/// Every row of an entity as JSON, by its key as it stands in Redis.
async fn rows(sql: &Client, entity: &Entity, publications: &[&str]) -> BTreeMap<String, String> {
    let table = entity.table_name();
    let keys = "SELECT a.attname::text FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n) \
                JOIN pg_attribute a ON a.attnum = k.attnum WHERE i.indrelid = $1::text::regclass AND i.indisprimary \
                AND a.attrelid = i.indrelid ORDER BY k.n";
    let keys = sql.query(keys, &[&table]).await.expect("the key's columns");
    // Not a cast to text, which cuts the blanks of char(n) off; concat prints as the type's output does.
    let keys: Vec<String> = match entity.list("key") {
        Some(key) => key.iter().map(|name| format!("concat(t.{})", quote(name))).collect(),
        None => keys.iter().map(|row| format!("concat(t.{})", quote(row.get(0)))).collect(),
    };
    let condition = published(sql, table, publications).await;
    let value = match entity.list("columns") {
        Some(columns) => {
            let columns: Vec<String> = columns.iter().map(|c| format!("t.{}", quote(c))).collect();
            format!("(SELECT row_to_json(v.*)::text FROM (SELECT {}) AS v)", columns.join(", "))
        }
        None => "row_to_json(t.*)::text".to_owned(),
    };
    let query =
        format!("SELECT ARRAY[{}] AS key, {value} AS value FROM {table} AS t WHERE {condition}", keys.join(", "));
    let rows = sql.query(&query, &[]).await.unwrap_or_else(|e| panic!("{e}: {query}"));
    rows.iter()
        .map(|row| (row.get::<_, Vec<String>>("key").iter().map(|p| in_redis(p)).collect::<Vec<_>>().join(","), row))
        .map(|(key, row)| (key, row.get("value")))
        .collect()
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// One part of a key as it stands in Redis.
pub fn in_redis(part: &str) -> String {
    part.chars()
        .map(|c| match c {
            '%' | ',' | '\x7f' | '\0'..='\x1f' => format!("%{:02X}", c as u32),
            other => other.to_string(),
        })
        .collect()
}

/// A whole key in Redis as it stands in a URL: each part percent-encoded once, the commas between them literal.
fn in_url(key: &str) -> String {
    let parts = key.split(',').map(|part| {
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(part).collect();
        encode(&String::from_utf8(bytes).expect("UTF-8"))
    });
    parts.collect::<Vec<_>>().join(",")
}

/// One part of a key as it stands in a URL.
pub fn encode(part: &str) -> String {
    percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string()
}
