//! Decoding: from the bytes of the replication stream to [`crate::change::Event`]s.
//!
//! Pure: no IO and no clock. Malformed input is an error that names what is wrong and where, never a panic; a length
//! is checked before anything is read or allocated by it. Errors hold numbers and never values: they may be logged.
//!
//! - [`pgoutput`]: messages of Postgres' own output plugin.
//! - [`wal2json`]: messages of the plugin of that name.

#[cfg(test)]
pub(crate) mod fuzz;
pub mod pgoutput;
pub mod wal2json;

use crate::change::Event;

/// The decoder of the slot's output plugin.
#[derive(Debug)]
pub enum Decoder {
    /// Of pgoutput.
    Pgoutput(pgoutput::Decoder),
    /// Of wal2json.
    Wal2json(Box<wal2json::Decoder>),
}

impl Decoder {
    /// Decodes one message and hands on the events that it makes, in order.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not a message of the plugin, or not one that may come here.
    pub fn decode(&mut self, message: &[u8], mut each: impl FnMut(Event<'_>)) -> Result<(), DecodeError> {
        match self {
            Decoder::Pgoutput(decoder) => decoder.decode(message).map(each),
            Decoder::Wal2json(decoder) => decoder.decode(message, &mut each),
        }
    }

    /// Decodes what is known of a message that is too large by its beginning.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of those that may be large: of a row, or a logical message.
    pub fn cut(&mut self, head: &[u8], mut each: impl FnMut(Event<'_>)) -> Result<(), DecodeError> {
        match self {
            Decoder::Pgoutput(decoder) => decoder.cut(head).map(each),
            Decoder::Wal2json(decoder) => decoder.cut(head, &mut each),
        }
    }

    /// Takes a notice that the plugin sent in between (its fields, as in the wire protocol).
    pub fn notice(&mut self, fields: &[u8], mut each: impl FnMut(Event<'_>)) {
        match self {
            // It says nothing about data.
            Decoder::Pgoutput(_) => {}
            Decoder::Wal2json(decoder) => decoder.notice(fields, &mut each),
        }
    }
}

/// A message that is not what its protocol says. The stream cannot go on behind it: the next message may depend on
/// what was in this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("decode {message} message: {problem}, at byte {offset}")]
pub struct DecodeError {
    /// The kind of message.
    pub message: &'static str,
    /// Where in the message, in bytes from its tag.
    pub offset: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Something reaches beyond the message's end.
    #[error("{wanted} byte(s) wanted, {left} left")]
    Short {
        /// Bytes that it takes, at the least.
        wanted: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// The message goes on behind its last field.
    #[error("{0} byte(s) left over")]
    TrailingBytes(usize),
    /// A length or count below zero.
    #[error("length {0} is negative")]
    NegativeLength(i32),
    /// A name without its NUL at the end.
    #[error("name without an end")]
    UnterminatedName,
    /// A name that is not UTF-8.
    #[error("name is not UTF-8")]
    InvalidUtf8,
    /// A message tag that the protocol does not have.
    #[error("unknown message tag {0:#04x}")]
    UnknownTag(u8),
    /// A byte that should say which of a few things follows.
    #[error("unknown {what} {found:#04x}")]
    UnknownKind {
        /// What it should have said.
        what: &'static str,
        /// What it was.
        found: u8,
    },
    /// A value in binary form, which is never asked for.
    #[error("value in binary form")]
    Binary,
    /// A change of a table that was not announced.
    #[error("relation {0} was not announced")]
    UnknownRelation(u32),
    /// A tuple with more or fewer columns than its relation.
    #[error("tuple of {found} column(s) for a relation of {wanted}")]
    ColumnCount {
        /// Columns in the tuple.
        found: usize,
        /// Columns of the relation.
        wanted: usize,
    },
    /// A transaction begins inside another one.
    #[error("a transaction is open already")]
    TransactionOpen,
    /// A change or commit outside of a transaction.
    #[error("no transaction is open")]
    NoTransaction,
    /// A commit time beyond what 64 bits hold in microseconds, or in another form.
    #[error("commit time out of range")]
    CommitTime,
    /// JSON that is none, or of another form than the plugin's.
    #[error("{0} wanted")]
    Syntax(&'static str),
    /// A field that the plugin writes, unless it is too old.
    #[error("no field {0:?}")]
    MissingField(&'static str),
    /// Columns without what tells their types and places.
    #[error("columns without {0:?}: wal2json is older than 2.5")]
    TooOld(&'static str),
}
