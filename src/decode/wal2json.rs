//! Messages of wal2json, format version 2, with the options that [`crate::capture`] asks for.
//!
//! It names tables and does not announce them, and of a row's columns it leaves out what is unchanged and out of line. So
//! each row is compared with what the catalog says of the table ([`Shape::tables`]): only where names, types and places are
//! exactly the same does the row bear the relation that entities are made of. Anything else bears a relation of its own,
//! which no entity has, and drops entries. Partitions are read as the table that they are of.
//!
//! [`Shape::tables`]: crate::entity::Shape

mod change;
mod json;
mod row;
mod tables;
#[cfg(test)]
mod tests;
mod time;
mod transaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::json::Reader;
use self::row::{Listed, Table, Text};
use self::tables::{Place, table_key};
use crate::change::{Change, Event};
use crate::decode::{DecodeError, Problem};
use crate::entity::Entity;

/// Room that is kept for the next message.
const KEPT_SCRATCH: usize = 1 << 20;

/// Decodes the messages of one replication connection, in stream order.
#[derive(Debug)]
pub struct Decoder {
    entities: Vec<Arc<Entity>>,
    /// Whether numbers are quoted, so that NaN and the infinities are told (wal2json 2.6).
    numbers_as_text: bool,
    /// By schema and name, with NUL between them.
    tables: HashMap<Vec<u8>, Place>,
    in_transaction: bool,
    name: Vec<u8>,
    scratch: Vec<u8>,
    new: Vec<Listed>,
    old: Vec<Listed>,
}

/// A problem and its offset, while the kind of message is not yet named.
type Located = (Problem, usize);

type Each<'e> = &'e mut dyn FnMut(Event<'_>);

impl Decoder {
    /// A decoder for a connection that has just started to stream; whether its numbers are quoted.
    pub fn new(entities: Vec<Arc<Entity>>, numbers_as_text: bool) -> Self {
        let mut decoder = Decoder {
            entities,
            numbers_as_text,
            tables: HashMap::new(),
            in_transaction: false,
            name: Vec::new(),
            scratch: Vec::new(),
            new: Vec::new(),
            old: Vec::new(),
        };
        decoder.look_up_tables();
        decoder
    }

    /// Decodes one message (the payload of an XLogData message) and hands on the events that it makes.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not a message of the plugin, or not one that may come here. Nothing was handed on then.
    pub fn decode(&mut self, message: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), DecodeError> {
        let mut action = None;
        let done = self.message(message, &mut action, each);
        self.scratch.clear();
        self.scratch.shrink_to(KEPT_SCRATCH);
        done.map_err(|(problem, offset)| DecodeError { message: kind(action), offset, problem })
    }

    /// Decodes what is known of a message that is too large by its beginning, which holds more than its names.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of those that may be large: of a row, or a logical message.
    pub fn cut(&mut self, head: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), DecodeError> {
        let mut action = None;
        let done = self.beginning(head, &mut action, each);
        self.scratch.clear();
        done.map_err(|(problem, offset)| DecodeError { message: kind(action), offset, problem })
    }

    /// A notice that came in between: wal2json leaves changes out that it finds no identity for, and says so.
    pub fn notice(&mut self, fields: &[u8], each: &mut dyn FnMut(Event<'_>)) {
        let text = fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
        let Some(text) = text.and_then(|text| std::str::from_utf8(text).ok()) else { return };
        let left_out = ["no tuple identifier for ", "no tuple data for ", "no old tuple data for "];
        let Some((_, quoted)) =
            text.split_once(" in table ").filter(|_| left_out.iter().any(|start| text.starts_with(start)))
        else {
            return;
        };
        if self.tables.values().any(|place| matches!(place, Place::Ours(table) if table.is_outdated())) {
            self.look_up_tables();
        }
        let ours = self.tables.values().find_map(|place| match place {
            Place::Ours(table) if table.quoted == quoted => Some(table),
            _ => None,
        });
        if let Some(table) = ours {
            announce(table, each);
            each(Event::Change(Change::Untold { relation: table.relation.clone() }));
            return;
        }
        let names = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        if let Some((schema, name)) = names.and_then(|names| names.split_once("\".\"")) {
            let known = self.tables.contains_key(&table_key(schema, name));
            each(if known { Event::Elsewhere } else { Event::Unplaced { schema, name } });
        }
    }

    fn message(&mut self, message: &[u8], action: &mut Option<u8>, each: Each<'_>) -> Result<(), Located> {
        let mut reader = Reader::new(message);
        match tag(&mut reader, action)? {
            tag @ (b'I' | b'U' | b'D' | b'T') => self.change(tag, reader, message, each),
            b'B' => self.begin(reader, each),
            b'C' => self.commit(reader, each),
            b'M' => self.logical_message(reader, message, each),
            tag => Err((Problem::UnknownTag(tag), TAG)),
        }
    }

    fn beginning(&mut self, head: &[u8], action: &mut Option<u8>, each: Each<'_>) -> Result<(), Located> {
        let mut reader = Reader::new(head);
        let mut first = false;
        match tag(&mut reader, action)? {
            b'I' | b'U' | b'D' => {
                self.demand_transaction()?;
                self.name.clear();
                while let Some(field) = reader.field(&mut first)? {
                    match field {
                        b"schema" => {
                            json::unescape(reader.quoted()?, &mut self.name)?;
                            self.name.push(0);
                        }
                        b"table" => {
                            json::unescape(reader.quoted()?, &mut self.name)?;
                            if self.is_ours(reader.offset(), each)?
                                && let Some(Place::Ours(table)) = self.tables.get(&self.name)
                            {
                                announce(table, each);
                                each(Event::LargeChange(table.relation.clone()));
                            }
                            return Ok(());
                        }
                        _ => reader.skip()?,
                    }
                }
                Err((Problem::MissingField("table"), reader.offset()))
            }
            b'M' => {
                // A prefix that is cut off itself is nobody's whom we know.
                while let Ok(Some(field)) = reader.field(&mut first) {
                    if field != b"prefix" {
                        reader.skip()?;
                        continue;
                    }
                    let Ok(prefix) = reader.quoted() else { break };
                    let prefix = Text::of(prefix, &mut self.scratch)?;
                    let prefix = std::str::from_utf8(prefix.bytes(head, &self.scratch));
                    each(Event::LargeMessage(prefix.map_err(|_| (Problem::InvalidUtf8, reader.offset()))?));
                    break;
                }
                Ok(())
            }
            tag => Err((Problem::UnknownTag(tag), TAG)),
        }
    }
}

/// Where a message says what it is, in bytes from its beginning.
const TAG: usize = r#"{"action":"#.len();

/// Reads what a message is: the first thing that it says.
fn tag(reader: &mut Reader<'_>, action: &mut Option<u8>) -> Result<u8, Located> {
    reader.expect(b'{', "an object")?;
    if reader.field(&mut true)? != Some(b"action") {
        return Err((Problem::MissingField("action"), 0));
    }
    let tag = match reader.quoted()?.raw {
        [tag] => *tag,
        other => return Err((Problem::UnknownTag(other.first().copied().unwrap_or_default()), TAG)),
    };
    *action = Some(tag);
    Ok(tag)
}

fn announce(table: &Table, each: Each<'_>) {
    if !table.announced.swap(true, Ordering::Relaxed) {
        each(Event::Relation(table.relation.clone()));
    }
}

/// What errors call a message.
fn kind(action: Option<u8>) -> &'static str {
    match action {
        Some(b'B') => "Begin",
        Some(b'C') => "Commit",
        Some(b'D') => "Delete",
        Some(b'I') => "Insert",
        Some(b'M') => "Message",
        Some(b'T') => "Truncate",
        Some(b'U') => "Update",
        _ => "unknown",
    }
}
