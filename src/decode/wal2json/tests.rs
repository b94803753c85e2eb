//! Captured streams with the events expected of them, rows that differ from the catalog, and arbitrary bytes.

use super::*;
use crate::decode::pgoutput::tests::fixture;
use crate::entity::{Definition, Shape, StreamedColumn, StreamedTable};

mod captured;
mod messages;
mod mutated;
mod tables;

const INT: u32 = 23;
const TEXT: u32 = 25;
const BEGIN: &[u8] = br#"{"action":"B","xid":9,"timestamp":"2000-01-01 00:00:00+00","lsn":"0/7","nextlsn":"0/8"}"#;

/// `name type position`, with `~` where a value may be left out, and `=` where it is computed when it is read.
fn column(text: &str) -> StreamedColumn {
    let [name, type_oid, position] =
        text.rsplitn(3, ' ').collect::<Vec<_>>()[..].try_into().map(|[p, t, n]: [&str; 3]| [n, t, p]).unwrap();
    StreamedColumn {
        name: name.trim_start_matches(['~', '=']).to_owned(),
        type_oid: type_oid.parse().unwrap(),
        position: position.parse().unwrap(),
        out_of_line: name.starts_with('~'),
        computed: name.starts_with('='),
    }
}

/// A table of schema `public`, or of the one before its first `/`.
fn table(oid: u32, name: &str, columns: &[&str]) -> StreamedTable {
    let (schema, name) = name.split_once('/').unwrap_or(("public", name));
    let columns = columns.iter().map(|text| column(text)).collect();
    StreamedTable { oid, schema: schema.into(), name: name.into(), columns, version: String::new() }
}

fn shape(tables: Vec<StreamedTable>) -> Shape {
    let oid = tables.first().map_or(0, |table| table.oid);
    Shape { table_oid: oid, whole_row: true, partitioned: tables.len() > 1, tables, ..Shape::unknown(0) }
}

fn entity(tables: Vec<StreamedTable>) -> Arc<Entity> {
    let (schema, name) = tables.first().map(|table| (table.schema.clone(), table.name.clone())).unwrap_or_default();
    Arc::new(Entity::new(0, Definition::rows("e", &schema, &name), "", shape(tables)))
}

/// The tables of `capture.sh`.
fn captured_tables() -> Vec<Arc<Entity>> {
    let plain = |oid, name, columns: &[&str]| entity(vec![table(oid, name, columns)]);
    vec![
        plain(1, "item", &["id 23 1", "~name 25 2", "~price 1700 3"]),
        plain(2, "whole", &["id 23 1", "~name 25 2"]),
        plain(3, "by_index", &["id 23 1", "~code 25 2"]),
        plain(4, "bare", &["id 23 1"]),
        plain(5, "document", &["id 23 1", "~title 25 2", "~body 25 3"]),
        plain(6, "parent", &["id 23 1"]),
        plain(7, "child", &["id 23 1", "parent 23 2"]),
        plain(8, "beside", &["id 23 1"]),
        plain(9, "person", &["id 23 1", "~name 25 2"]),
        plain(10, "a \"b\" ünï/sélect", &["the, id 23 1", "\" 18 2"]),
        plain(11, "no_columns", &[]),
        plain(
            12,
            "kinds",
            &[
                "id 23 1",
                "~bytes 17 2",
                "yes 16 3",
                "real 700 4",
                "double 701 5",
                "~number 1700 6",
                "~tags 1009 7",
                "oid 26 8",
                "~text 25 10",
                "twice 23 11",
            ],
        ),
        entity(vec![
            table(13, "split", &["id 23 1", "~note 25 2"]),
            table(14, "split_low", &["id 23 1", "~note 25 2"]),
            table(15, "split_high", &["~note 25 2", "id 23 3"]),
            table(16, "split_high_one", &["~note 25 1", "id 23 2"]),
        ]),
    ]
}

fn decoder(entities: Vec<Arc<Entity>>) -> Decoder {
    Decoder::new(entities, false)
}

fn events(decoder: &mut Decoder, message: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut events = Vec::new();
    decoder.decode(message, &mut |event| events.push(fixture::describe(&event)))?;
    Ok(events)
}

fn lines(text: &str) -> Vec<Vec<u8>> {
    let lines =
        text.lines().take_while(|line| *line != "----").filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.as_bytes().to_vec()).collect()
}

fn captured() -> Vec<(std::path::PathBuf, String)> {
    let paths = std::fs::read_dir(fixture::path("wal2json")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
    files.sort();
    files
}

/// What rows of `public.t (id, ~big, plain)` make of it in one transaction.
fn made_of(messages: &[&str]) -> Vec<String> {
    let facts = table(7, "t", &["id 23 1", "~big 25 2", "plain 23 4"]);
    let mut decoder = decoder(vec![entity(vec![facts])]);
    events(&mut decoder, BEGIN).unwrap();
    messages.iter().flat_map(|message| events(&mut decoder, message.as_bytes()).unwrap()).collect()
}

fn row(columns: &[(&str, u32, &str, u32)]) -> String {
    let columns = columns.iter().map(|(name, type_oid, value, position)| {
        format!(r#"{{"name":"{name}","typeoid":{type_oid},"value":{value},"position":{position}}}"#)
    });
    format!("[{}]", columns.collect::<Vec<_>>().join(","))
}

fn change(action: char, columns: &[(&str, u32, &str, u32)]) -> String {
    let identity = r#"[{"name":"id","typeoid":23,"value":1}]"#;
    format!(
        r#"{{"action":"{action}","xid":9,"lsn":"0/6","schema":"public","table":"t","columns":{},"identity":{identity}}}"#,
        row(columns)
    )
}
