//! Rows: the columns that a message lists, and what they are by the catalog.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Located;
use super::json::{Quoted, Reader, Scalar, unescape};
use crate::change::{Datum, Relation, RelationColumn, ReplicaIdentity, Tuple};
use crate::decode::Problem;
use crate::entity::{Entity, Generation, StreamedTable};

const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;

/// Where the bytes of a text are.
#[derive(Debug, Clone)]
pub(super) enum Text {
    /// As they stand in the message.
    Message(Range<usize>),
    /// In the scratch buffer: they had to be put together.
    Scratch(Range<usize>),
    /// Always the same.
    Fixed(&'static [u8]),
}

impl Text {
    pub(super) fn bytes<'a>(&self, message: &'a [u8], scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Text::Message(range) => &message[range.clone()],
            Text::Scratch(range) => &scratch[range.clone()],
            Text::Fixed(text) => text,
        }
    }

    pub(super) fn of(quoted: Quoted<'_>, scratch: &mut Vec<u8>) -> Result<Text, Located> {
        if !quoted.escaped {
            return Ok(Text::Message(quoted.start..quoted.start + quoted.raw.len()));
        }
        let start = scratch.len();
        unescape(quoted, scratch)?;
        Ok(Text::Scratch(start..scratch.len()))
    }
}

/// A column of a row as the message tells it.
#[derive(Debug)]
pub(super) struct Listed {
    name: Text,
    type_oid: u32,
    /// Told of new rows only.
    position: Option<i64>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Null,
    Untold,
    Text(Text),
}

impl Value {
    fn datum<'a>(&self, message: &'a [u8], scratch: &'a [u8]) -> Datum<'a> {
        match self {
            Value::Null => Datum::Null,
            Value::Untold => Datum::Untold,
            Value::Text(text) => Datum::Text(text.bytes(message, scratch)),
        }
    }
}

/// Reads `[{"name":..,"typeoid":..,"value":..,"position":..},..]` into `row`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    numbers_as_text: bool,
    scratch: &mut Vec<u8>,
    row: &mut Vec<Listed>,
) -> Result<(), Located> {
    row.clear();
    reader.expect(b'[', "an array")?;
    let mut first = true;
    while reader.element(&mut first)? {
        let at = reader.offset();
        reader.expect(b'{', "an object")?;
        let (mut name, mut type_oid, mut position, mut value) = (None, None, None, None);
        let mut first = true;
        while let Some(field) = reader.field(&mut first)? {
            match field {
                b"name" => name = Some(Text::of(reader.quoted()?, scratch)?),
                b"typeoid" => type_oid = Some(oid(integer(reader)?, at)?),
                b"position" => position = Some(integer(reader)?),
                b"value" => value = Some(reader.scalar()?),
                _ => reader.skip()?,
            }
        }
        let missing = |name| (Problem::MissingField(name), at);
        let type_oid = type_oid.ok_or((Problem::TooOld("typeoid"), at))?;
        let value = value_of(value.ok_or_else(|| missing("value"))?, type_oid, numbers_as_text, scratch)?;
        row.push(Listed { name: name.ok_or_else(|| missing("name"))?, type_oid, position, value });
    }
    Ok(())
}

pub(super) fn integer(reader: &mut Reader<'_>) -> Result<i64, Located> {
    let at = reader.offset();
    let Scalar::Number(digits, _) = reader.scalar()? else { return Err((Problem::Syntax("a number"), at)) };
    std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or((Problem::Syntax("an integer"), at))
}

/// wal2json prints oids as signed numbers.
fn oid(number: i64, at: usize) -> Result<u32, Located> {
    let wrapped = i32::try_from(number).map(|n| n.cast_unsigned());
    wrapped.or_else(|_| u32::try_from(number)).map_err(|_| (Problem::Syntax("an oid"), at))
}

/// The value in its type's text output form.
fn value_of(scalar: Scalar<'_>, type_oid: u32, numbers_as_text: bool, scratch: &mut Vec<u8>) -> Result<Value, Located> {
    Ok(match scalar {
        Scalar::Null if !numbers_as_text && matches!(type_oid, FLOAT4 | FLOAT8 | NUMERIC) => Value::Untold,
        Scalar::Null => Value::Null,
        Scalar::True => Value::Text(Text::Fixed(b"t")),
        Scalar::False => Value::Text(Text::Fixed(b"f")),
        Scalar::Number(digits, start) => Value::Text(Text::Message(start..start + digits.len())),
        Scalar::Text(quoted) if type_oid == BYTEA => {
            // The digits come without what says that they are hexadecimal.
            let start = scratch.len();
            scratch.extend_from_slice(b"\\x");
            unescape(quoted, scratch)?;
            Value::Text(Text::Scratch(start..scratch.len()))
        }
        Scalar::Text(quoted) if type_oid == BOOL => return Err((Problem::Syntax("true or false"), quoted.start)),
        Scalar::Text(quoted) => Value::Text(Text::of(quoted, scratch)?),
    })
}

/// A table of an entity.
#[derive(Debug)]
pub(super) struct Table {
    /// What the catalog says of it.
    pub(super) facts: StreamedTable,
    /// What its changes are of: itself, or the table that it is a partition of.
    pub(super) relation: Arc<Relation>,
    /// For each of its columns, the place in the relation.
    places: Vec<usize>,
    /// Whether the relation was handed on, for all tables whose rows bear it.
    pub(super) announced: Arc<AtomicBool>,
    /// An entity that is made of it, and its generation then: a raised one may stand for another shape.
    of: (Arc<Entity>, Generation),
    /// Its relation while its rows are not what the catalog says.
    pub(super) stranger: Option<Arc<Relation>>,
    /// `"schema"."table"`, as notices name it.
    pub(super) quoted: String,
}

/// A row's tuples.
pub(super) struct Tuples<'a> {
    pub(super) relation: Arc<Relation>,
    pub(super) new: Option<Tuple<'a>>,
    /// The old tuple, and whether it is the whole row.
    pub(super) old: Option<(Tuple<'a>, bool)>,
}

impl Tuples<'_> {
    /// Whether values of the new row are in neither tuple.
    pub(super) fn leave_out(&self) -> bool {
        let whole = matches!(self.old, Some((_, true)));
        !whole && self.new.iter().flatten().any(|datum| *datum == Datum::Unchanged)
    }
}

/// What a message says of a row.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) message: &'a [u8],
    pub(super) scratch: &'a [u8],
    pub(super) new: Option<&'a [Listed]>,
    pub(super) old: Option<&'a [Listed]>,
    /// Whether the new row may lack values that lie out of line and did not change.
    pub(super) is_update: bool,
}

impl Table {
    pub(super) fn new(
        facts: StreamedTable,
        relation: Arc<Relation>,
        announced: Arc<AtomicBool>,
        of: (Arc<Entity>, Generation),
    ) -> Self {
        let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
        // A partition has every column of its table; one that lacks any is read as a stranger.
        let places = facts.columns.iter().map_while(|column| place(&column.name)).collect();
        let quoted = format!("\"{}\".\"{}\"", facts.schema, facts.name);
        Table { facts, relation, places, announced, of, stranger: None, quoted }
    }

    /// Whether the catalog may have been looked at since.
    pub(super) fn is_outdated(&self) -> bool {
        self.of.0.generation() != self.of.1
    }

    /// The relation of a table as the catalog has it.
    pub(super) fn relation(root: &StreamedTable) -> Relation {
        let column = |column: &crate::entity::StreamedColumn| RelationColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: -1,
            in_identity: false,
        };
        Relation {
            oid: root.oid,
            schema: root.schema.clone(),
            name: root.name.clone(),
            identity: IDENTITY,
            columns: root.columns.iter().map(column).collect(),
        }
    }

    /// The row by the catalog's columns, if they are exactly those that the message lists.
    pub(super) fn known<'a>(&self, told: Told<'a>) -> Option<Tuples<'a>> {
        if self.places.len() != self.facts.columns.len() || self.places.len() != self.relation.columns.len() {
            return None;
        }
        let new = match told.new {
            Some(listed) => Some(self.known_new(listed, told)?),
            None => None,
        };
        let old = match told.old {
            Some(listed) => Some(self.known_old(listed, told)?),
            None => None,
        };
        Some(Tuples { relation: self.relation.clone(), new, old })
    }

    fn known_new<'a>(&self, listed: &[Listed], told: Told<'a>) -> Option<Tuple<'a>> {
        let mut tuple = vec![Datum::Unchanged; self.places.len()];
        let mut columns = self.facts.columns.iter().zip(&self.places);
        for seen in listed {
            loop {
                let (column, place) = columns.next()?;
                if seen.position == Some(column.position.into()) {
                    let same = seen.type_oid == column.type_oid
                        && seen.name.bytes(told.message, told.scratch) == column.name.as_bytes();
                    if !same {
                        return None;
                    }
                    if !column.computed {
                        tuple[*place] = seen.value.datum(told.message, told.scratch);
                    } else {
                        tuple[*place] = Datum::Untold;
                    }
                    break;
                }
                // Left out: unchanged, or dropped since.
                if !(told.is_update && column.out_of_line) {
                    return None;
                }
            }
        }
        columns.all(|(column, _)| told.is_update && column.out_of_line).then_some(tuple)
    }

    fn known_old<'a>(&self, listed: &[Listed], told: Told<'a>) -> Option<(Tuple<'a>, bool)> {
        let mut tuple = vec![Datum::Null; self.places.len()];
        let mut columns = self.facts.columns.iter().zip(&self.places);
        for seen in listed {
            let name = seen.name.bytes(told.message, told.scratch);
            let (column, place) = columns.find(|(column, _)| column.name.as_bytes() == name)?;
            if column.type_oid != seen.type_oid {
                return None;
            }
            tuple[*place] = if column.computed { Datum::Untold } else { seen.value.datum(told.message, told.scratch) };
        }
        Some((tuple, listed.len() == self.places.len()))
    }

    /// The row by the columns that the message lists. Its relation is nobody's, so that it makes no image: what differs
    /// from the catalog may be the meaning of a name.
    pub(super) fn strange<'a>(&mut self, told: Told<'a>) -> Result<Tuples<'a>, Located> {
        let mut columns: Vec<RelationColumn> = Vec::new();
        let mut place = |seen: &Listed| -> Result<usize, Located> {
            let name = std::str::from_utf8(seen.name.bytes(told.message, told.scratch));
            let name = name.map_err(|_| (Problem::InvalidUtf8, 0))?;
            if let Some(at) = columns.iter().position(|c| c.name == name && c.type_oid == seen.type_oid) {
                return Ok(at);
            }
            let (name, type_oid) = (name.to_owned(), seen.type_oid);
            columns.push(RelationColumn { name, type_oid, type_modifier: -1, in_identity: false });
            Ok(columns.len() - 1)
        };
        let mut places = |listed: Option<&[Listed]>| -> Result<Vec<usize>, Located> {
            listed.unwrap_or_default().iter().map(&mut place).collect()
        };
        let (new, old) = (places(told.new)?, places(told.old)?);
        let count = columns.len();
        let fill = |listed: Option<&[Listed]>, places: &[usize], rest: Datum<'a>| {
            listed.map(|listed| {
                let mut tuple = vec![rest; count];
                for (seen, place) in listed.iter().zip(places) {
                    tuple[*place] = seen.value.datum(told.message, told.scratch);
                }
                tuple
            })
        };
        let (schema, name) = (&self.relation.schema, &self.relation.name);
        let relation = match &self.stranger {
            Some(before) if before.columns == columns && before.schema == *schema && before.name == *name => {
                before.clone()
            }
            _ => Arc::new(Relation { oid: 0, schema: schema.clone(), name: name.clone(), identity: IDENTITY, columns }),
        };
        Ok(Tuples {
            relation,
            new: fill(told.new, &new, Datum::Unchanged),
            old: fill(told.old, &old, Datum::Null).map(|tuple| (tuple, false)),
        })
    }
}

/// Which columns it has shows in each message only. Of an update that tells nothing of the old row, nothing is known.
const IDENTITY: ReplicaIdentity = ReplicaIdentity::Index;
