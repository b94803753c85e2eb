//! Rows of random types, nested in each other, inserted, updated and deleted at random: the stream, the fill and Postgres
//! agree on each.
//!
//! `WALCACHE_TYPES_SEED` repeats a run whose seed was printed; `WALCACHE_FUZZ_SECONDS` goes on with other seeds for that
//! long.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::corpus::{self, Section};
use super::{has_untold, number_columns, same, wanted};
use crate::harness::{Entity, Scene, Stage, plugin};

const TABLES: usize = 3;
const COLUMNS: usize = 7;
const ROWS: i32 = 40;

/// How deep types are nested in each other.
const DEPTH: usize = 3;

/// The stages that a process may have are few.
const MAX_ROUNDS: usize = 60;

/// What names and texts are made of, so that each quoting rule has something to do.
const LETTERS: [&str; 28] = [
    "a", "B", "0", "-", ".", " ", "\"", "\\", "'", ",", ";", ":", "(", ")", "{", "}", "[", "]", "=", "\n", "\t",
    "\u{1}", "\u{7f}", "é", "\u{2028}", "e\u{301}", "😀", "NULL",
];

/// Scalar types that a range can be over.
const ORDERED: [&str; 14] = [
    "int4",
    "int8",
    "numeric",
    "float8",
    "text",
    "bpchar",
    "date",
    "timestamp",
    "timestamptz",
    "time",
    "interval",
    "inet",
    "uuid",
    "bytea",
];

/// A type of which values can be made.
#[derive(Debug, Clone)]
struct Type {
    /// What SQL calls it.
    sql: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// One of the corpus, with its values.
    Listed(Vec<String>),
    /// `int2vector` and `oidvector`: their arrays take literals only.
    Vector(Vec<String>),
    Array(Box<Type>),
    Domain(Box<Type>),
    Enum(Vec<String>),
    Range(Box<Type>),
    Multirange(Box<Type>),
    Composite(Vec<Type>),
}

/// Makes types and values.
struct Maker {
    rng: StdRng,
    sections: Vec<Section>,
    /// The statements that create the types so far.
    ddl: String,
    types: usize,
}

impl Maker {
    /// A type whose parts are nested up to a depth.
    fn make(&mut self, depth: usize) -> Type {
        let choice = if depth == 0 { 0 } else { self.rng.random_range(0..12) };
        match choice {
            0 => self.listed(),
            1 => self.enumeration(),
            2 => self.range(),
            3 => {
                let range = self.range();
                Type { sql: range.sql.replace("_range", "_multirange"), kind: Kind::Multirange(Box::new(range)) }
            }
            4..6 => {
                let base = self.make(depth - 1);
                let sql = self.name("domain");
                writeln!(self.ddl, "CREATE DOMAIN {sql} AS {};", base.sql).unwrap();
                Type { sql, kind: Kind::Domain(Box::new(base)) }
            }
            6..9 => {
                let element = self.make(depth - 1);
                match element.kind {
                    // An array of these is one of more dimensions, which every array may have.
                    Kind::Array(_) => element,
                    _ => Type { sql: format!("{}[]", element.sql), kind: Kind::Array(Box::new(element)) },
                }
            }
            _ => self.composite(depth),
        }
    }

    fn name(&mut self, kind: &str) -> String {
        self.types += 1;
        format!("t{}_{kind}", self.types)
    }

    fn listed(&mut self) -> Type {
        let with_arrays: Vec<&Section> = self.sections.iter().filter(|section| section.has_arrays).collect();
        let section = *with_arrays.choose(&mut self.rng).unwrap();
        let kind = match section.name.as_str() {
            "int2vector" | "oidvector" => Kind::Vector,
            _ => Kind::Listed,
        };
        Type { sql: section.name.clone(), kind: kind(section.values.clone()) }
    }

    fn enumeration(&mut self) -> Type {
        let sql = self.name("enum");
        // Labels differ from each other by their number.
        let labels: Vec<String> = (0..3).map(|i| format!("{}{i}", self.text(6))).collect();
        let list: Vec<String> = labels.iter().map(|label| literal(label)).collect();
        writeln!(self.ddl, "CREATE TYPE {sql} AS ENUM ({});", list.join(", ")).unwrap();
        Type { sql, kind: Kind::Enum(labels) }
    }

    fn range(&mut self) -> Type {
        let subtype = if self.rng.random_bool(0.2) {
            self.enumeration()
        } else {
            let name = *ORDERED.choose(&mut self.rng).unwrap();
            let section = self.sections.iter().find(|section| section.name == name).expect("it is in the corpus");
            Type { sql: section.name.clone(), kind: Kind::Listed(section.values.clone()) }
        };
        let sql = self.name("range");
        let multirange = sql.replace("_range", "_multirange");
        let options = format!("subtype = {}, multirange_type_name = {multirange}", subtype.sql);
        writeln!(self.ddl, "CREATE TYPE {sql} AS RANGE ({options});").unwrap();
        Type { sql, kind: Kind::Range(Box::new(subtype)) }
    }

    fn composite(&mut self, depth: usize) -> Type {
        let attributes: Vec<Type> = (0..self.rng.random_range(0..5)).map(|_| self.make(depth - 1)).collect();
        let sql = self.name("composite");
        let mut list: Vec<String> = Vec::new();
        let mut dropped = String::new();
        for (i, attribute) in attributes.iter().enumerate() {
            if self.rng.random_bool(0.2) {
                list.push(format!("dropped{i} int"));
                write!(dropped, "ALTER TYPE {sql} DROP ATTRIBUTE dropped{i};").unwrap();
            }
            list.push(format!("{} {}", self.column(i), attribute.sql));
        }
        writeln!(self.ddl, "CREATE TYPE {sql} AS ({});{dropped}", list.join(", ")).unwrap();
        Type { sql, kind: Kind::Composite(attributes) }
    }

    /// A name for a column or attribute that no other one has.
    fn column(&mut self, number: usize) -> String {
        let name = format!("{}{number}", self.text(5));
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn text(&mut self, longest: usize) -> String {
        let length = self.rng.random_range(0..=longest);
        (0..length).map(|_| *LETTERS.choose(&mut self.rng).unwrap()).collect()
    }

    /// An expression of a type, null now and then.
    fn value(&mut self, of: &Type) -> String {
        if self.rng.random_bool(0.12) {
            return format!("NULL::{}", of.sql);
        }
        match &of.kind {
            Kind::Listed(values) => {
                self.scalar(&of.sql).unwrap_or_else(|| values.choose(&mut self.rng).unwrap().clone())
            }
            Kind::Vector(values) => values.choose(&mut self.rng).unwrap().clone(),
            Kind::Enum(labels) => format!("{}::{}", literal(labels.choose(&mut self.rng).unwrap()), of.sql),
            Kind::Domain(base) => format!("({})::{}", self.value(base), of.sql),
            Kind::Range(subtype) => self.range_value(&of.sql, subtype),
            Kind::Multirange(range) => {
                let Kind::Range(subtype) = &range.kind else { unreachable!("a multirange is of ranges") };
                // Null is no part of one.
                let parts: Vec<String> = (0..self.rng.random_range(0..3))
                    .map(|_| format!("coalesce({}, 'empty')", self.range_value(&range.sql, subtype)))
                    .collect();
                format!("{}({})", of.sql, parts.join(", "))
            }
            Kind::Composite(attributes) => {
                let fields: Vec<String> = attributes.iter().map(|attribute| self.value(attribute)).collect();
                format!("ROW({})::{}", fields.join(", "), of.sql)
            }
            Kind::Array(element) => self.array(&of.sql, element),
        }
    }

    fn range_value(&mut self, range: &str, subtype: &Type) -> String {
        let (a, b) = (self.value(subtype), self.value(subtype));
        let bounds = *["[)", "[]", "(]", "()"].choose(&mut self.rng).unwrap();
        // Without a bound where a value is null.
        format!(
            "(SELECT {range}(CASE WHEN a > b THEN b ELSE a END, CASE WHEN a > b THEN a ELSE b END, '{bounds}') \
             FROM (SELECT {a} AS a, {b} AS b) AS bounds)"
        )
    }

    fn array(&mut self, sql: &str, element: &Type) -> String {
        let lengths: Vec<usize> = match self.rng.random_range(0..10) {
            0 => return format!("ARRAY[]::{sql}"),
            1..8 => vec![self.rng.random_range(1..=3)],
            _ => (0..self.rng.random_range(2..=3)).map(|_| self.rng.random_range(1..=2)).collect(),
        };
        let array = format!("ARRAY{}::{sql}", self.dimension(element, &lengths));
        if self.rng.random_bool(0.7) {
            return array;
        }
        let bounds = lengths.iter().map(|length| {
            let lower = self.rng.random_range(-9..9);
            format!("[{lower}:{}]", lower + *length as i32 - 1)
        });
        format!("('{}=' || {array}::text)::{sql}", bounds.collect::<String>())
    }

    fn dimension(&mut self, element: &Type, lengths: &[usize]) -> String {
        let parts: Vec<String> = (0..lengths[0])
            .map(|_| match (&lengths[1..], &element.kind) {
                ([], Kind::Vector(_)) => self.value(element).replace(&format!("::{}", element.sql), ""),
                ([], _) => self.value(element),
                (inner, _) => self.dimension(element, inner),
            })
            .collect();
        format!("[{}]", parts.join(", "))
    }

    /// A value that is not in the corpus, for some types.
    fn scalar(&mut self, sql: &str) -> Option<String> {
        if self.rng.random_bool(0.4) {
            return None;
        }
        // From the year 99 to the year 255513.
        let micros = |rng: &mut StdRng| rng.random_range(-60_000_000_000_000_000i64..8_000_000_000_000_000_000);
        let text = match sql {
            "text" | "varchar" | "bpchar" => literal(&self.text(12)),
            "name" => literal(&self.text(7)),
            "int8" => self.rng.random::<i64>().to_string(),
            "int4" => self.rng.random::<i32>().to_string(),
            "float8" => format!("'{:e}'", f64::from_bits(self.rng.random())).replace("inf", "Infinity"),
            "float4" => format!("'{:e}'", f32::from_bits(self.rng.random())).replace("inf", "Infinity"),
            "numeric" => format!("{}e{}", self.rng.random::<i64>(), self.rng.random_range(-40..40)),
            "bytea" => format!("'\\x{:x}'", self.rng.random::<u128>() | 1 << 127),
            "uuid" => format!("'{:032x}'", self.rng.random::<u128>()),
            "timestamp" | "timestamptz" | "date" => {
                format!("timestamp '2000-01-01' + {} * interval '1 microsecond'", micros(&mut self.rng))
            }
            "interval" => format!(
                "make_interval(months => {}, days => {}, secs => {})",
                self.rng.random_range(-99..99),
                self.rng.random_range(-99..99),
                self.rng.random_range(-9999.0..9999.0)
            ),
            "json" | "jsonb" => {
                format!("json_build_object({}::text, {}::text)", literal(&self.text(5)), literal(&self.text(9)))
            }
            _ => return None,
        };
        Some(format!("({text})::{sql}"))
    }
}

/// A text as an SQL literal.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[tokio::test]
async fn random_rows_of_random_types() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seed = number("WALCACHE_TYPES_SEED");
    let seconds = Duration::from_secs(number("WALCACHE_FUZZ_SECONDS").unwrap_or(0));
    let began = Instant::now();
    let (mut rounds, mut compared) = (0, 0);
    loop {
        let seed = seed.unwrap_or_else(|| rand::rng().random());
        println!("WALCACHE_TYPES_SEED={seed}");
        compared += round(StdRng::seed_from_u64(seed)).await;
        rounds += 1;
        if began.elapsed() >= seconds || rounds == MAX_ROUNDS {
            break;
        }
    }
    println!("{compared} images compared in {rounds} rounds");
}

/// Makes tables and compares what comes of their rows; gives the number of images that were compared.
async fn round(rng: StdRng) -> usize {
    let stage = Stage::shared("random").await;
    stage.execute(corpus::PRELUDE).await;
    let sql = stage.sql().await;
    let mut maker = Maker { rng, sections: corpus::sections(&sql).await, ddl: String::new(), types: 0 };
    let mut tables: Vec<Vec<(String, Type)>> = Vec::new();
    for table in 0..TABLES {
        let named: Vec<(String, Type)> = (0..COLUMNS).map(|i| (maker.column(i), maker.make(DEPTH))).collect();
        let columns: Vec<String> = named.iter().map(|(name, of)| format!("{name} {}", of.sql)).collect();
        // The whole old row is in the stream, so that values out of line are never left out.
        let identity = format!("ALTER TABLE table{table} REPLICA IDENTITY FULL");
        writeln!(maker.ddl, "CREATE TABLE table{table} (id int4 PRIMARY KEY, {}); {identity};", columns.join(", "))
            .unwrap();
        tables.push(named);
    }
    // Shown where the test fails.
    println!("{}", maker.ddl);
    stage.execute(&maker.ddl).await;
    let scene = Scene::on(stage, |config| {
        (0..TABLES).fold(config, |config, table| {
            let name = format!("table{table}");
            config
                .entity(Entity::new(&format!("streamed{table}"), &name).set("populate", true))
                .entity(Entity::new(&format!("filled{table}"), &name).set("on_change", "invalidate"))
        })
    })
    .await;
    let mut compared = 0;
    let mut there = vec![BTreeSet::new(); TABLES];
    for _ in 0..3 {
        scene.write(&format!("BEGIN;\n{}COMMIT;", writes(&mut maker, &tables, &mut there))).await;
        for table in 0..TABLES {
            let rows = wanted(&scene, &format!("table{table}")).await;
            let numbers = number_columns(&scene, &format!("table{table}")).await;
            for id in 0..ROWS {
                let entry = scene.stored(&format!("streamed{table}:{id}")).await;
                let response = scene.get(&format!("filled{table}/{id}")).await;
                let Some(row) = rows.get(&id) else {
                    assert!(entry.is_none_or(|entry| entry.value == "null"), "table{table}/{id} is not there");
                    assert_eq!(response.status, 404, "table{table}/{id}");
                    continue;
                };
                match entry {
                    Some(entry) => {
                        assert_eq!(entry.lo, entry.hi, "an event's label");
                        same(&format!("table{table}/{id} from the stream"), &entry.value, row);
                    }
                    None if plugin() == "wal2json" && has_untold(row, &numbers) => {}
                    None => panic!("table{table}/{id} did not come"),
                }
                same(&format!("table{table}/{id} from a fill"), &response.text(), row);
                compared += 2;
            }
        }
    }
    for table in (0..TABLES).filter(|_| plugin() != "wal2json") {
        let opaque = format!("walcache_cache_invalidations_total{{entity=\"streamed{table}\",cause=\"opaque\"}}");
        assert!(scene.metric(&opaque).await.is_none_or(|n| n == 0.0), "{opaque}");
    }
    assert!(compared > TABLES * ROWS as usize, "{compared} images");
    compared
}

/// Statements by which rows come, change, or go; `there` are the ids of those that are there.
fn writes(maker: &mut Maker, tables: &[Vec<(String, Type)>], there: &mut [BTreeSet<i32>]) -> String {
    let mut sql = String::new();
    for (table, columns) in tables.iter().enumerate() {
        for id in 0..ROWS {
            let gone = there[table].contains(&id) && maker.rng.random_bool(0.3);
            if gone {
                writeln!(sql, "DELETE FROM table{table} WHERE id = {id};").unwrap();
                there[table].remove(&id);
            }
            // One that is not there comes; one that has just gone may come back in the same transaction.
            if !there[table].contains(&id) && (!gone || maker.rng.random_bool(0.5)) {
                let values: Vec<String> = columns.iter().map(|(_, of)| maker.value(of)).collect();
                writeln!(sql, "INSERT INTO table{table} VALUES ({id}, {});", values.join(", ")).unwrap();
                there[table].insert(id);
                if maker.rng.random_bool(0.7) {
                    continue;
                }
            }
            let mut sets = Vec::new();
            for (name, of) in columns {
                if maker.rng.random_bool(0.5) {
                    sets.push(format!("{name} = {}", maker.value(of)));
                }
            }
            if !sets.is_empty() && there[table].contains(&id) {
                writeln!(sql, "UPDATE table{table} SET {} WHERE id = {id};", sets.join(", ")).unwrap();
            }
        }
    }
    sql
}
