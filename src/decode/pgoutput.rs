//! Messages of `pgoutput`, protocol version 1 (with logical messages, without binary values and without streaming of
//! open transactions).
//!
//! A [`Decoder`] belongs to one replication connection: Postgres announces each relation once per connection, before
//! its first change and after each change of its shape.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::change::{Change, Datum, Event, Message, OldTuple, Relation, RelationColumn, ReplicaIdentity, Tuple};
use crate::decode::{DecodeError, Problem};
use crate::lsn::Lsn;
use reader::Reader;

mod reader;
#[cfg(test)]
pub(crate) mod tests;

/// Microseconds from the Unix epoch to that of Postgres, 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The least bytes that a column takes in a relation message: flags, an empty name, type and modifier.
const MIN_COLUMN_BYTES: usize = 10;

/// Decodes the messages of one replication connection, in stream order.
#[derive(Debug, Default)]
pub struct Decoder {
    relations: HashMap<u32, Arc<Relation>, BuildHasherDefault<OidHasher>>,
    /// The relation of the last change: most often that of the next one too. Always equal to its entry in `relations`.
    last: Option<Arc<Relation>>,
    in_transaction: bool,
}

impl Decoder {
    /// A decoder for a connection that has just started to stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes one message (the payload of an XLogData message, from its tag on). Values borrow from it.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not a message of the protocol, or not one that may come here. The decoder is then as
    /// it was before.
    pub fn decode<'a>(&mut self, message: &'a [u8]) -> Result<Event<'a>, DecodeError> {
        let mut reader = Reader::new(message);
        self.message(&mut reader).map_err(|(problem, offset)| DecodeError {
            message: message.first().map_or("an empty", |&tag| name(tag)),
            offset,
            problem,
        })
    }

    /// Decodes what is known of a message by its beginning: the rest was not received, because it is too large.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of those that may be large: of a row, or a logical message.
    pub fn cut<'a>(&mut self, head: &'a [u8]) -> Result<Event<'a>, DecodeError> {
        let mut reader = Reader::new(head);
        let mut cut = || match reader.u8()? {
            b'I' | b'U' | b'D' => self.changed(&mut reader).map(Event::LargeChange),
            b'M' => {
                let _flags = reader.u8()?;
                let _lsn = reader.u64()?;
                // A prefix that is cut off itself is nobody's whom we know.
                Ok(reader.name().map_or(Event::Nothing, Event::LargeMessage))
            }
            tag => Err((Problem::UnknownTag(tag), 0)),
        };
        cut().map_err(|(problem, offset)| DecodeError {
            message: head.first().map_or("an empty", |&tag| name(tag)),
            offset,
            problem,
        })
    }

    fn message<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        match reader.u8()? {
            b'I' => self.insert(reader),
            b'U' => self.update(reader),
            b'D' => self.delete(reader),
            b'B' => self.begin(reader),
            b'C' => self.commit(reader),
            b'R' => self.relation(reader),
            b'T' => self.truncate(reader),
            b'M' => self.logical_message(reader),
            b'O' => origin(reader),
            b'Y' => type_name(reader),
            tag => Err((Problem::UnknownTag(tag), 0)),
        }
    }

    fn begin<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        if self.in_transaction {
            return Err((Problem::TransactionOpen, 0));
        }
        let commit_lsn = Lsn::from_u64(reader.u64()?);
        let at = reader.offset();
        let since_2000 = reader.i64()?;
        let commit_micros = since_2000.checked_add(POSTGRES_EPOCH_MICROS).ok_or((Problem::CommitTime, at))?;
        let xid = reader.u32()?;
        reader.end()?;
        self.in_transaction = true;
        Ok(Event::Begin { xid, commit_lsn, commit_micros })
    }

    fn commit<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        self.demand_transaction()?;
        match reader.u8()? {
            0 => {}
            found => return Err((Problem::UnknownKind { what: "commit flags", found }, 1)),
        }
        let _commit_lsn = reader.u64()?;
        let end_lsn = Lsn::from_u64(reader.u64()?);
        let _commit_time = reader.i64()?;
        reader.end()?;
        self.in_transaction = false;
        Ok(Event::Commit { end_lsn })
    }

    fn relation<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        let oid = reader.u32()?;
        // Postgres saves the bytes of the schema that is named most often.
        let schema = match reader.name()? {
            "" => "pg_catalog",
            schema => schema,
        };
        let name = reader.name()?;
        let at = reader.offset();
        let identity = match reader.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            found => return Err((Problem::UnknownKind { what: "replica identity", found }, at)),
        };
        let count = usize::from(reader.u16()?);
        reader.demand(count * MIN_COLUMN_BYTES)?;
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            columns.push(RelationColumn {
                // The other flags are left to Postgres to define, as its own subscriber does.
                in_identity: reader.u8()? & 1 != 0,
                name: reader.name()?.to_owned(),
                type_oid: reader.u32()?,
                type_modifier: reader.i32()?,
            });
        }
        reader.end()?;
        let relation = Arc::new(Relation { oid, schema: schema.to_owned(), name: name.to_owned(), identity, columns });
        self.relations.insert(oid, Arc::clone(&relation));
        self.last = Some(Arc::clone(&relation));
        Ok(Event::Relation(relation))
    }

    fn insert<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        let relation = self.changed(reader)?;
        let at = reader.offset();
        let new = match reader.u8()? {
            b'N' => tuple(reader, &relation)?,
            found => return Err((Problem::UnknownKind { what: "tuple kind", found }, at)),
        };
        reader.end()?;
        Ok(Event::Change(Change::Insert { relation, new }))
    }

    fn update<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        let relation = self.changed(reader)?;
        let mut at = reader.offset();
        let mut kind = reader.u8()?;
        let old = match kind {
            b'K' => OldTuple::Key(tuple(reader, &relation)?),
            b'O' => OldTuple::Full(tuple(reader, &relation)?),
            _ => OldTuple::None,
        };
        if old != OldTuple::None {
            at = reader.offset();
            kind = reader.u8()?;
        }
        let new = match kind {
            b'N' => tuple(reader, &relation)?,
            found => return Err((Problem::UnknownKind { what: "tuple kind", found }, at)),
        };
        reader.end()?;
        Ok(Event::Change(Change::Update { relation, old, new }))
    }

    fn delete<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        let relation = self.changed(reader)?;
        let at = reader.offset();
        let old = match reader.u8()? {
            b'K' => OldTuple::Key(tuple(reader, &relation)?),
            b'O' => OldTuple::Full(tuple(reader, &relation)?),
            found => return Err((Problem::UnknownKind { what: "tuple kind", found }, at)),
        };
        reader.end()?;
        Ok(Event::Change(Change::Delete { relation, old }))
    }

    fn truncate<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        self.demand_transaction()?;
        let count = reader.length()?;
        // CASCADE and RESTART IDENTITY: the relations that they reach are listed.
        let _options = reader.u8()?;
        reader.demand(count.saturating_mul(4))?;
        let mut relations = Vec::with_capacity(count);
        for _ in 0..count {
            relations.push(self.announced(reader)?);
        }
        reader.end()?;
        Ok(Event::Change(Change::Truncate { relations }))
    }

    fn logical_message<'a>(&self, reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
        let transactional = reader.u8()? & 1 != 0;
        if transactional {
            self.demand_transaction()?;
        }
        let _lsn = reader.u64()?;
        let prefix = reader.name()?;
        let length = reader.length()?;
        let content = reader.bytes(length)?;
        reader.end()?;
        Ok(Event::Message(Message { transactional, prefix, content }))
    }

    fn demand_transaction(&self) -> Result<(), Located> {
        if self.in_transaction { Ok(()) } else { Err((Problem::NoTransaction, 0)) }
    }

    /// Reads which relation a row change is of.
    fn changed(&mut self, reader: &mut Reader<'_>) -> Result<Arc<Relation>, Located> {
        self.demand_transaction()?;
        self.announced(reader)
    }

    /// Reads the oid of a relation that was announced before.
    fn announced(&mut self, reader: &mut Reader<'_>) -> Result<Arc<Relation>, Located> {
        let at = reader.offset();
        let oid = reader.u32()?;
        if let Some(last) = self.last.as_ref().filter(|last| last.oid == oid) {
            return Ok(Arc::clone(last));
        }
        let relation = self.relations.get(&oid).ok_or((Problem::UnknownRelation(oid), at))?;
        self.last = Some(Arc::clone(relation));
        Ok(Arc::clone(relation))
    }
}

/// A problem and its offset, while the kind of message is not yet named.
type Located = (Problem, usize);

fn tuple<'a>(reader: &mut Reader<'a>, relation: &Relation) -> Result<Tuple<'a>, Located> {
    let at = reader.offset();
    let (found, wanted) = (usize::from(reader.u16()?), relation.columns.len());
    if found != wanted {
        return Err((Problem::ColumnCount { found, wanted }, at));
    }
    // Each value takes a byte at the least, so that the count cannot claim more memory than the message has bytes.
    reader.demand(found)?;
    let mut tuple = Vec::with_capacity(found);
    for _ in 0..found {
        let at = reader.offset();
        tuple.push(match reader.u8()? {
            b't' => {
                let length = reader.length()?;
                Datum::Text(reader.bytes(length)?)
            }
            b'n' => Datum::Null,
            b'u' => Datum::Unchanged,
            b'b' => return Err((Problem::Binary, at)),
            found => return Err((Problem::UnknownKind { what: "value kind", found }, at)),
        });
    }
    Ok(tuple)
}

fn origin<'a>(reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
    let _lsn = reader.u64()?;
    let _name = reader.name()?;
    reader.end()?;
    Ok(Event::Nothing)
}

fn type_name<'a>(reader: &mut Reader<'a>) -> Result<Event<'a>, Located> {
    let _oid = reader.u32()?;
    let _schema = reader.name()?;
    let _name = reader.name()?;
    reader.end()?;
    Ok(Event::Nothing)
}

/// What errors call a message.
fn name(tag: u8) -> &'static str {
    match tag {
        b'B' => "Begin",
        b'C' => "Commit",
        b'D' => "Delete",
        b'I' => "Insert",
        b'M' => "Message",
        b'O' => "Origin",
        b'R' => "Relation",
        b'T' => "Truncate",
        b'U' => "Update",
        b'Y' => "Type",
        _ => "unknown",
    }
}

/// Spreads oids over a hash table: they are chosen by the server's counter, so nothing stronger is called for.
#[derive(Debug, Default)]
struct OidHasher(u64);

impl Hasher for OidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, value: u32) {
        // Fibonacci hashing: the table uses the highest and the lowest bits.
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}
