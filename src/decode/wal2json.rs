//! Messages of wal2json, format version 2, with the options that [`crate::capture`] asks for.
//!
//! It names tables and does not announce them, and of a row's columns it leaves out what is unchanged and out of line. So
//! each row is compared with what the catalog says of the table ([`Shape::tables`]): only where names, types and places are
//! exactly the same does the row bear the relation that entities are made of. Anything else bears a relation of its own,
//! which no entity has, and drops entries. Partitions are read as the table that they are of.
//!
//! [`Shape::tables`]: crate::entity::Shape

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::change::{Change, Event, Message, OldTuple};
use crate::decode::{DecodeError, Problem};
use crate::entity::Entity;
use crate::lsn::Lsn;
use json::{Reader, Scalar};
use row::{Listed, Table, Text, Told};

mod json;
mod row;
#[cfg(test)]
mod tests;
mod time;

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

#[derive(Debug)]
enum Place {
    Ours(Box<Table>),
    Elsewhere,
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

    /// Takes note that a table is no entity's: see [`Event::Unplaced`].
    pub fn set_elsewhere(&mut self, schema: &str, name: &str) {
        self.tables.entry(table_key(schema, name)).or_insert(Place::Elsewhere);
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

    fn begin(&mut self, mut reader: Reader<'_>, each: Each<'_>) -> Result<(), Located> {
        if self.in_transaction {
            return Err((Problem::TransactionOpen, 0));
        }
        let (mut xid, mut commit_lsn, mut commit_micros) = (None, None, None);
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            let at = reader.offset();
            match field {
                b"xid" => {
                    let number = u32::try_from(row::integer(&mut reader)?);
                    xid = Some(number.map_err(|_| (Problem::Syntax("a transaction id"), at))?);
                }
                b"timestamp" => {
                    let micros = time::unix_micros(reader.quoted()?.raw);
                    commit_micros = Some(micros.ok_or((Problem::CommitTime, at))?);
                }
                // Where the commit record begins; "nextlsn" is where it ends, as the commit says again.
                b"lsn" => commit_lsn = Some(lsn(&mut reader)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let missing = |name| (Problem::MissingField(name), at);
        let xid = xid.ok_or_else(|| missing("xid"))?;
        let commit_lsn = commit_lsn.ok_or_else(|| missing("lsn"))?;
        let commit_micros = commit_micros.ok_or_else(|| missing("timestamp"))?;
        self.in_transaction = true;
        each(Event::Begin { xid, commit_lsn, commit_micros });
        Ok(())
    }

    fn commit(&mut self, mut reader: Reader<'_>, each: Each<'_>) -> Result<(), Located> {
        self.demand_transaction()?;
        let mut end_lsn = None;
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            match field {
                b"nextlsn" => end_lsn = Some(lsn(&mut reader)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let end_lsn = end_lsn.ok_or((Problem::MissingField("nextlsn"), reader.offset()))?;
        self.in_transaction = false;
        each(Event::Commit { end_lsn });
        Ok(())
    }

    fn logical_message(&mut self, mut reader: Reader<'_>, message: &[u8], each: Each<'_>) -> Result<(), Located> {
        let (mut transactional, mut prefix, mut content) = (None, None, None);
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            let at = reader.offset();
            match field {
                b"transactional" => {
                    transactional = Some(match reader.scalar()? {
                        Scalar::True => true,
                        Scalar::False => false,
                        _ => return Err((Problem::Syntax("true or false"), at)),
                    });
                }
                b"prefix" => prefix = Some(Text::of(reader.quoted()?, &mut self.scratch)?),
                b"content" => content = Some(Text::of(reader.quoted()?, &mut self.scratch)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let missing = |name| (Problem::MissingField(name), at);
        let transactional = transactional.ok_or_else(|| missing("transactional"))?;
        if transactional {
            self.demand_transaction()?;
        }
        let prefix = prefix.ok_or_else(|| missing("prefix"))?;
        let prefix =
            std::str::from_utf8(prefix.bytes(message, &self.scratch)).map_err(|_| (Problem::InvalidUtf8, at))?;
        let content = content.ok_or_else(|| missing("content"))?;
        let content = content.bytes(message, &self.scratch);
        each(Event::Message(Message { transactional, prefix, content }));
        Ok(())
    }

    /// A row's change, or a table that was emptied: a message for each of several.
    fn change(&mut self, action: u8, mut reader: Reader<'_>, message: &[u8], each: Each<'_>) -> Result<(), Located> {
        self.demand_transaction()?;
        let (mut has_new, mut has_old) = (false, false);
        let (mut has_schema, mut has_table) = (false, false);
        self.name.clear();
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            match field {
                b"schema" if !has_schema => {
                    json::unescape(reader.quoted()?, &mut self.name)?;
                    self.name.push(0);
                    has_schema = true;
                }
                b"table" if has_schema && !has_table => {
                    json::unescape(reader.quoted()?, &mut self.name)?;
                    has_table = true;
                    // Of another table it is not needed what else the message says.
                    if !self.is_ours(reader.offset(), each)? {
                        return Ok(());
                    }
                }
                b"columns" => {
                    has_new = true;
                    row::read(&mut reader, self.numbers_as_text, &mut self.scratch, &mut self.new)?;
                }
                b"identity" => {
                    has_old = true;
                    row::read(&mut reader, self.numbers_as_text, &mut self.scratch, &mut self.old)?;
                }
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let Some(Place::Ours(table)) = self.tables.get_mut(&self.name).filter(|_| has_table) else {
            return Err((Problem::MissingField("table"), at));
        };
        if action == b'T' {
            announce(table, each);
            each(Event::Change(Change::Truncate { relations: vec![table.relation.clone()] }));
            return Ok(());
        }
        if !has_new && action != b'D' {
            return Err((Problem::MissingField("columns"), at));
        }
        let told = Told {
            message,
            scratch: &self.scratch,
            new: (action != b'D').then_some(&self.new[..]),
            old: (action != b'I' && has_old).then_some(&self.old[..]),
            is_update: action == b'U',
        };
        let tuples = match table.known(told) {
            Some(tuples) => {
                announce(table, each);
                table.stranger = None;
                if tuples.leave_out() {
                    // Unchanged, or of a column that was dropped: the catalog tells, before anything is made of it.
                    each(Event::Relation(tuples.relation.clone()));
                }
                tuples
            }
            None => {
                let tuples = table.strange(told)?;
                if table.stranger.is_none() {
                    each(Event::Relation(tuples.relation.clone()));
                }
                table.stranger = Some(tuples.relation.clone());
                tuples
            }
        };
        let relation = tuples.relation;
        let old = match tuples.old {
            None => OldTuple::None,
            Some((tuple, true)) => OldTuple::Full(tuple),
            Some((tuple, false)) => OldTuple::Key(tuple),
        };
        each(Event::Change(match (action, tuples.new) {
            (b'I', Some(new)) => Change::Insert { relation, new },
            (b'U', Some(new)) => Change::Update { relation, old, new },
            _ if old == OldTuple::None => Change::Untold { relation },
            _ => Change::Delete { relation, old },
        }));
        Ok(())
    }

    /// Whether the table that was just named is an entity's; says so where it is not, or not known.
    fn is_ours(&mut self, at: usize, each: Each<'_>) -> Result<bool, Located> {
        if matches!(self.tables.get(&self.name), Some(Place::Ours(table)) if table.is_outdated()) {
            self.look_up_tables();
        }
        match self.tables.get(&self.name) {
            Some(Place::Ours(_)) => return Ok(true),
            Some(Place::Elsewhere) => each(Event::Elsewhere),
            None => {
                let names = std::str::from_utf8(&self.name).map_err(|_| (Problem::InvalidUtf8, at))?;
                let (schema, name) = names.split_once('\0').unwrap_or_default();
                each(Event::Unplaced { schema, name });
            }
        }
        Ok(false)
    }

    fn demand_transaction(&self) -> Result<(), Located> {
        if self.in_transaction { Ok(()) } else { Err((Problem::NoTransaction, 0)) }
    }

    fn look_up_tables(&mut self) {
        let before = std::mem::take(&mut self.tables);
        for entity in &self.entities {
            // Before the shape: see `Entity::reshape`.
            let generation = entity.generation();
            let shape = entity.shape();
            for tables in shape.streamed() {
                let Some(root) = tables.first() else { continue };
                let relation = Table::relation(root);
                let key = table_key(&root.schema, &root.name);
                let same = |place: &Place| match place {
                    Place::Ours(table) if *table.relation == relation => {
                        Some((table.relation.clone(), table.announced.clone()))
                    }
                    _ => None,
                };
                let known = self.tables.get(&key).or_else(|| before.get(&key)).and_then(same);
                let (relation, announced) = known.unwrap_or_else(|| (Arc::new(relation), Arc::default()));
                for facts in tables {
                    let of = (entity.clone(), generation);
                    let table = Table::new(facts.clone(), relation.clone(), announced.clone(), of);
                    self.tables.insert(table_key(&facts.schema, &facts.name), Place::Ours(Box::new(table)));
                }
            }
        }
        for (key, place) in before {
            if matches!(place, Place::Elsewhere) {
                self.tables.entry(key).or_insert(place);
            }
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

fn table_key(schema: &str, name: &str) -> Vec<u8> {
    [schema.as_bytes(), b"\0", name.as_bytes()].concat()
}

fn lsn(reader: &mut Reader<'_>) -> Result<Lsn, Located> {
    let at = reader.offset();
    let text = std::str::from_utf8(reader.quoted()?.raw).ok();
    text.and_then(|text| text.parse().ok()).ok_or((Problem::Syntax("an LSN"), at))
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
