//! The configuration file of a test's daemon.

use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use toml::{Table, Value};

/// The output plugin that the whole run is with: `WALCACHE_TEST_PLUGIN`, or pgoutput.
///
/// # Panics
/// If it is another than walcache has.
pub fn plugin() -> &'static str {
    static PLUGIN: LazyLock<String> = LazyLock::new(|| {
        let plugin = std::env::var("WALCACHE_TEST_PLUGIN").unwrap_or_else(|_| "pgoutput".to_owned());
        assert!(["pgoutput", "wal2json"].contains(&plugin.as_str()), "WALCACHE_TEST_PLUGIN={plugin}");
        plugin
    });
    &PLUGIN
}

/// Whether a test is about publications, which only pgoutput has, and this run is with another plugin. It says so, and
/// how many did.
pub fn needs_publications(test: &str) -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let skipped = plugin() != "pgoutput";
    if skipped {
        let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        println!("SKIPPED ({count}): {test} is about publications, and {} reads none", plugin());
    }
    skipped
}

/// A configuration in the making; [`Config::to_toml`] is what a user would write.
#[derive(Debug, Clone)]
pub struct Config {
    table: Table,
    entities: Vec<Entity>,
}

/// One `[[entity]]`.
#[derive(Debug, Clone)]
pub struct Entity {
    table: Table,
    /// What makes it a query, as it is written.
    query: Option<String>,
}

impl Config {
    /// Source, slot and publication, Redis and key prefix; both listeners on a free port of 127.0.0.1.
    pub fn new(source: &str, slot: &str, publication: &str, redis: &str, prefix: &str) -> Self {
        Config { table: Table::new(), entities: Vec::new() }
            .set("source", "url", source)
            .set("source", "slot", slot)
            .set("source", "publication", publication)
            .set("source", "plugin", plugin())
            .set("l2", "url", redis)
            .set("l2", "prefix", prefix)
            .set("http", "listen", "127.0.0.1:0")
            .set("admin", "listen", "127.0.0.1:0")
    }

    /// Sets `key` of `[section]`.
    pub fn set(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        let section = self.table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        section.as_table_mut().expect("sections are tables").insert(key.to_owned(), value.into());
        self
    }

    /// Leaves `[section]` out.
    pub fn without(mut self, section: &str) -> Self {
        self.table.remove(section);
        self
    }

    /// Adds an entity.
    pub fn entity(mut self, entity: Entity) -> Self {
        self.entities.push(entity);
        self
    }

    /// The publications, one or a list.
    pub fn publications(&self) -> Vec<&str> {
        match &self.table["source"]["publication"] {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        }
    }

    /// The entities.
    pub fn entities(&self) -> &[Entity] {
        &self.entities
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let mut text = self.table.to_string();
        for entity in &self.entities {
            text.push_str("\n[[entity]]\n");
            for (key, value) in &entity.table {
                // Values as they stand on one line: a table of a table would need a heading.
                writeln!(text, "{key} = {value}").expect("a String takes everything");
            }
            text.push_str(entity.query.as_deref().unwrap_or_default());
            text.push('\n');
        }
        text
    }
}

impl Entity {
    /// The rows of `table` (`public.products`) as entity `name`. What is read most is not warmed, or else tests that
    /// look at what is cached would see entries that they have not read.
    pub fn new(name: &str, table: &str) -> Self {
        Entity { table: Table::new(), query: None }.set("name", name).set("table", table).set("hot_set", 0)
    }

    /// The results of a query as entity `name`: `params`, `query` and `depends_on` as they are written in the file.
    pub fn query(name: &str, text: &str) -> Self {
        Entity { table: Table::new(), query: Some(text.to_owned()) }.set("name", name).set("hot_set", 0)
    }

    /// What makes it a query, if it is one.
    pub fn as_query(&self) -> Option<Table> {
        self.query.as_ref().map(|text| text.parse().expect("the query's part is TOML"))
    }

    /// An entity as it stands in a configuration file, without its header.
    pub fn written(toml: &str) -> Self {
        let table = toml.parse().unwrap_or_else(|e| panic!("{e}: {toml}"));
        Entity { table, query: None }.set("hot_set", 0)
    }

    /// Sets a key of the entity, such as `("on_change", "invalidate")`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.table.insert(key.to_owned(), value.into());
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.table["name"].as_str().expect("a name is text")
    }

    /// The table, as it is written in SQL.
    pub fn table_name(&self) -> &str {
        self.table["table"].as_str().expect("a table's name is text")
    }

    /// A key of the entity that is a list of names.
    pub fn list(&self, key: &str) -> Option<Vec<&str>> {
        self.table.get(key)?.as_array().map(|list| list.iter().filter_map(Value::as_str).collect())
    }
}
