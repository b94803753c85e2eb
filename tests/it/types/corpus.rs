//! Edge values of every type, alone and inside arrays, domains and composites, with Postgres as the oracle.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{ODD_DEFAULTS, arrive};
use crate::harness::{Entity, Scene, Stage};

/// Types of values that no column ever holds, as nothing gives such a value.
const WITHOUT_VALUES: [&str; 3] = [
    // Within GiST indexes.
    "gtsvector",
    // Within BRIN indexes.
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

/// What the values refer to.
pub(super) const PRELUDE: &str = r#"
    CREATE SCHEMA corpus;
    CREATE TABLE corpus.analyzed (a int DEFAULT 1 + 2, b int);
    INSERT INTO corpus.analyzed SELECT i % 3, i % 3 FROM generate_series(1, 100) i;
    CREATE STATISTICS corpus.statistics (ndistinct, dependencies, mcv) ON a, b FROM corpus.analyzed;
    ANALYZE corpus.analyzed;
    CREATE TABLE corpus."od""d, \ table" (a int, "b "" \ c" text);
    CREATE FUNCTION corpus."f, ("(text, corpus."od""d, \ table"[]) RETURNS text LANGUAGE sql AS 'SELECT $1';"#;

/// A type with its values.
#[derive(Debug, Clone)]
pub(super) struct Section {
    /// The type as SQL names it.
    pub(super) name: String,
    /// Expressions of that type.
    pub(super) values: Vec<String>,
    /// Whether there is an array type of it.
    pub(super) has_arrays: bool,
    oid: u32,
}

/// The types and values of `type_values.txt` that this server has, after [`PRELUDE`].
pub(super) async fn sections(sql: &Client) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut extension = None;
    let lines = include_str!("../../data/type_values.txt").lines();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(header) => {
                let (name, from) = header.split_once(" from ").map_or((header, None), |(n, from)| (n, Some(from)));
                if let Some(from) = from.filter(|_| extension != from)
                    && sql.batch_execute(&format!("CREATE EXTENSION {from} CASCADE")).await.is_err()
                {
                    println!("there is no extension {from} here");
                }
                extension = from;
                sections.push(Section { name: name.to_owned(), values: Vec::new(), has_arrays: false, oid: 0 });
            }
            None => {
                let section = sections.last_mut().expect("a type comes first");
                section.values.push(format!("({line})::{}", section.name));
            }
        }
    }
    let mut here = Vec::new();
    for mut section in sections {
        let query = "SELECT oid, typarray <> 0 FROM pg_type WHERE oid = to_regtype($1)";
        let Some(row) = sql.query_opt(query, &[&section.name]).await.unwrap() else {
            println!("there is no type {} here", section.name);
            continue;
        };
        (section.oid, section.has_arrays) = (row.get(0), row.get(1));
        // Such as xml in a server that was built without it.
        if let Err(error) = sql.batch_execute(&format!("SELECT {}", section.values[0])).await {
            assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{section:?}: {error}");
            println!("type {} is not supported here", section.name);
            section.values = vec![format!("NULL::{}", section.name)];
        }
        if section.name == "interval" {
            // Postgres 14 takes no intervals of more than 2^31 hours.
            let mut values = Vec::new();
            for value in std::mem::take(&mut section.values) {
                match sql.batch_execute(&format!("SELECT {value}")).await {
                    Ok(()) => values.push(value),
                    Err(error) => {
                        assert_eq!(error.code(), Some(&SqlState::INTERVAL_FIELD_OVERFLOW), "{value}: {error}");
                        println!("there is no {value} here");
                    }
                }
            }
            section.values = values;
        }
        here.push(section);
    }
    here
}

/// The types that a table of this database could have and that the values leave out.
async fn left_out(sql: &Client, sections: &[Section]) -> BTreeSet<String> {
    let oids: Vec<u32> = sections.iter().map(|section| section.oid).collect();
    let query = "SELECT t.typname::text FROM pg_type t
        WHERE t.typnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
          AND t.typtype IN ('b', 'd', 'e', 'r', 'm') AND t.typcategory <> 'A' AND t.oid <> ALL ($1)";
    // Vectors are arrays to the catalog, and types of their own to everybody else.
    let vectors = "SELECT t.typname::text FROM pg_type t
        WHERE t.typname IN ('int2vector', 'oidvector') AND t.oid <> ALL ($1)";
    let mut names = BTreeSet::new();
    for query in [query, vectors] {
        names.extend(sql.query(query, &[&oids]).await.unwrap().iter().map(|row| row.get::<_, String>(0)));
    }
    names
}

/// The statements that make a table of one column for each of these types.
fn table(name: &str, columns: &[(String, Vec<String>)]) -> String {
    let rows = columns.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let list: Vec<String> = columns.iter().enumerate().map(|(i, (of, _))| format!("c{i} {of}")).collect();
    let mut sql = format!("CREATE TABLE corpus.{name} (id int4 PRIMARY KEY, {});\n", list.join(", "));
    sql.push_str(&format!("ALTER TABLE corpus.{name} REPLICA IDENTITY FULL;\n"));
    for row in 0..rows {
        let values = columns.iter().map(|(_, values)| values.get(row).map_or("NULL", String::as_str));
        let values: Vec<&str> = values.collect();
        sql.push_str(&format!("INSERT INTO corpus.{name} VALUES ({row}, {});\n", values.join(", ")));
    }
    sql
}

/// Arrays of a type: with nulls, of two dimensions, with bounds of their own, and empty.
fn arrays(of: &str, values: &[String]) -> Vec<String> {
    let array = |inner: &str| format!("ARRAY[{inner}]::{of}[]");
    let (all, first, last) = (values.join(", "), &values[0], &values[values.len() - 1]);
    vec![
        array(&format!("{all}, NULL")),
        array(&format!("[{first}, {last}], [NULL, {first}]")),
        format!("('[-3:{}]=' || {}::text)::{of}[]", values.len() as i32 - 4, array(&all)),
        format!("('[0:0][5:6]=' || {}::text)::{of}[]", array(&format!("[{last}, NULL]"))),
        array(""),
    ]
}

#[tokio::test]
async fn edge_values_of_every_type_alone_and_inside_others() {
    let stage = Stage::shared("corpus").await;
    stage.execute(PRELUDE).await;
    let sql = stage.sql().await;
    let sections = sections(&sql).await;
    let left_out = left_out(&sql, &sections).await;
    assert_eq!(left_out, WITHOUT_VALUES.map(str::to_owned).into(), "types without values in type_values.txt");

    let (mut scalars, mut lists, mut composites, mut nested) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut types = String::new();
    for (i, section) in sections.iter().enumerate() {
        let Section { name, values, has_arrays, .. } = section;
        scalars.push((name.clone(), values.clone()));
        if !has_arrays {
            continue;
        }
        // In ARRAY[] the vectors would count as arrays, and make one of more dimensions.
        let is_vector = name.ends_with("vector") && name != "tsvector";
        let bare = |value: &String| if is_vector { value.replace(&format!("::{name}"), "") } else { value.clone() };
        let elements: Vec<String> = values.iter().map(bare).collect();
        lists.push((format!("{name}[]"), arrays(name, &elements)));
        types.push_str(&format!(
            "CREATE DOMAIN corpus.d{i} AS {name}; CREATE TYPE corpus.\"c\"\"{i}\" AS (v {name}, \"d, \\\"\"\" corpus.d{i}, a {name}[]);\n",
        ));
        let composite = format!("corpus.\"c\"\"{i}\"");
        let row = |(value, element): (&String, &String)| {
            format!("ROW({value}, {value}, ARRAY[{element}, NULL])::{composite}")
        };
        let rows: Vec<String> = values.iter().zip(&elements).map(row).collect();
        nested.push((format!("{composite}[]"), arrays(&composite, &rows)));
        composites.push((composite, rows));
    }
    stage.execute(&types).await;
    let tables = [("scalars", scalars), ("lists", lists), ("composites", composites), ("nested", nested)];
    for (name, columns) in &tables {
        stage.execute(&table(name, columns)).await;
    }
    // Not before: they decide how literals are read, too.
    stage.execute(ODD_DEFAULTS).await;
    let scene = Scene::on(stage, |config| {
        tables.iter().fold(config, |config, (name, _)| {
            let table = format!("corpus.{name}");
            config
                .entity(Entity::new(&format!("streamed-{name}"), &table).set("populate", true))
                .entity(Entity::new(&format!("filled-{name}"), &table).set("on_change", "invalidate"))
        })
    })
    .await;
    for (name, _) in &tables {
        let rows =
            arrive(&scene, &format!("corpus.{name}"), &format!("streamed-{name}"), &format!("filled-{name}")).await;
        assert!(rows >= 5, "{rows} rows of {name}");
    }
    scene.verify().await;
}
