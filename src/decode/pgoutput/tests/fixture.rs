//! Reading captured streams, and writing events down for comparison.

use std::path::PathBuf;

use crate::change::{Change, Datum, Event, OldTuple, Relation};

/// A file or directory in `tests/data`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The messages of a text with one in hex a line, apart from comments.
pub(crate) fn messages(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            (0..line.len()).step_by(2).map(byte).collect()
        })
        .collect()
}

/// All captured streams.
pub(crate) fn captured() -> Vec<Vec<Vec<u8>>> {
    let mut paths: Vec<_> = std::fs::read_dir(path("pgoutput")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let stream = |path| messages(std::fs::read_to_string(path).unwrap().split("----").next().unwrap());
    paths.into_iter().map(stream).collect()
}

/// An event in a line.
pub(crate) fn describe(event: &Event<'_>) -> String {
    match event {
        Event::Begin { xid, commit_lsn, commit_micros } => {
            format!("begin {xid} commit={commit_lsn} at={commit_micros}")
        }
        Event::Commit { end_lsn } => format!("commit end={end_lsn}"),
        Event::Message(message) => {
            let place = if message.transactional { "within" } else { "beside" };
            format!("message {} {place}: {:?}", message.prefix, String::from_utf8_lossy(message.content))
        }
        Event::Nothing => "nothing".to_owned(),
        Event::LargeChange(relation) => format!("large change of {}", name(relation)),
        Event::LargeMessage(prefix) => format!("large message {prefix}"),
        Event::Elsewhere => "elsewhere".to_owned(),
        Event::Unplaced { schema, name } => format!("unplaced {schema}.{name}"),
        Event::Change(Change::Untold { relation }) => format!("untold {}", name(relation)),
        Event::Relation(relation) => {
            let columns = relation.columns.iter().map(|column| {
                let star = if column.in_identity { "*" } else { "" };
                format!("{star}{} {}({})", column.name, column.type_oid, column.type_modifier)
            });
            let columns: Vec<String> = columns.collect();
            format!("relation {} {} {:?}: {}", relation.oid, name(relation), relation.identity, columns.join(", "))
        }
        Event::Change(Change::Insert { relation, new }) => format!("insert {} {}", name(relation), tuple(new)),
        Event::Change(Change::Update { relation, old: before, new }) => {
            format!("update {} {} to {}", name(relation), old(before), tuple(new))
        }
        Event::Change(Change::Delete { relation, old: before }) => format!("delete {} {}", name(relation), old(before)),
        Event::Change(Change::Truncate { relations }) => {
            let names: Vec<String> = relations.iter().map(|relation| name(relation)).collect();
            format!("truncate {}", names.join(", "))
        }
    }
}

fn name(relation: &Relation) -> String {
    format!("{}.{}", relation.schema, relation.name)
}

fn old(old: &OldTuple<'_>) -> String {
    match old {
        OldTuple::None => "unnamed".to_owned(),
        OldTuple::Key(key) => format!("key {}", tuple(key)),
        OldTuple::Full(row) => format!("row {}", tuple(row)),
    }
}

fn tuple(tuple: &[Datum<'_>]) -> String {
    let datum = |datum: &Datum<'_>| match datum {
        Datum::Null => "null".to_owned(),
        Datum::Unchanged => "unchanged".to_owned(),
        Datum::Untold => "untold".to_owned(),
        Datum::Text(text) => format!("{:?}", String::from_utf8_lossy(text)),
    };
    format!("({})", tuple.iter().map(datum).collect::<Vec<_>>().join(", "))
}
