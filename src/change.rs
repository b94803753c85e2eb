//! What the stream says happened: relations, tuples and row changes, as every decoder hands them on.
//!
//! Changes borrow from the received bytes: a huge transaction streams through and is never held as a whole.

use std::sync::Arc;

/// How a table tells its old rows apart in the stream (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: deletes and updates cannot be followed.
    Nothing,
    /// The whole old row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

/// A column as the stream announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of the column's type.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`; -1 where the type has none.
    pub type_modifier: i32,
    /// Whether the column is part of the replica identity.
    pub in_identity: bool,
}

/// A table as the stream announces it before its first change and after each change of its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// What old tuples will contain.
    pub identity: ReplicaIdentity,
    /// The published columns, in stream order.
    pub columns: Vec<RelationColumn>,
}

/// One column's value in a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    /// SQL NULL.
    Null,
    /// An unchanged out-of-line value that the stream leaves out. It is not null: its value is simply not known here.
    Unchanged,
    /// A value that the stream does not tell: wal2json before 2.6 writes `null` for NULL, NaN and the infinities alike.
    Untold,
    /// The value in the type's text output form, in the database encoding (UTF-8).
    Text(&'a [u8]),
}

/// A row's values, in the order of [`Relation::columns`].
pub type Tuple<'a> = Vec<Datum<'a>>;

/// What the stream says of the row before an update or delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Nothing: the identity did not change.
    None,
    /// The identity's columns; the others read as [`Datum::Null`].
    Key(Tuple<'a>),
    /// The whole row (replica identity full).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The tuple, whichever part of the row it is.
    pub fn tuple(&self) -> Option<&Tuple<'a>> {
        match self {
            OldTuple::None => None,
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => Some(tuple),
        }
    }
}

/// One change inside a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// A row was inserted.
    Insert {
        /// The table.
        relation: Arc<Relation>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The table.
        relation: Arc<Relation>,
        /// What is said of the row before.
        old: OldTuple<'a>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The table.
        relation: Arc<Relation>,
        /// The row that is gone; never [`OldTuple::None`].
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// The tables that TRUNCATE named or reached by CASCADE, as far as they are published.
        relations: Vec<Arc<Relation>>,
    },
    /// A row was updated or deleted, and the stream does not tell which: the table has no replica identity now.
    Untold {
        /// The table.
        relation: Arc<Relation>,
    },
}

/// What a session wrote by `pg_logical_emit_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Whether it belongs to the transaction that is open. One that does not was written at once, whatever became of the
    /// transaction that wrote it, and comes between transactions.
    pub transactional: bool,
    /// Its prefix, which says whom it is meant for.
    pub prefix: &'a str,
    /// What it says.
    pub content: &'a [u8],
}

/// What a decoder hands on, in stream order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A transaction begins.
    Begin {
        /// The top-level transaction id, without its epoch.
        xid: u32,
        /// The position of its commit record's first byte; the record's end is known only at the commit.
        commit_lsn: crate::lsn::Lsn,
        /// Commit time, in microseconds since the Unix epoch, by the server's clock.
        commit_micros: i64,
    },
    /// A change of the transaction that is open.
    Change(Change<'a>),
    /// A table's shape was announced (also within a transaction): for the first time, or because it may have changed.
    Relation(Arc<Relation>),
    /// The transaction that is open has ended.
    Commit {
        /// The position after its commit record: what it is ordered and confirmed by.
        end_lsn: crate::lsn::Lsn,
    },
    /// A logical message was written (`pg_logical_emit_message`).
    Message(Message<'a>),
    /// A row of this table was changed that is too large to be received: its values are not known, nor its key.
    LargeChange(Arc<Relation>),
    /// A logical message with this prefix that is too large to be received.
    LargeMessage(&'a str),
    /// A row of a table was changed that belongs to no entity.
    Elsewhere,
    /// A table was changed of which it is not known whether it belongs to an entity: a partition may be new.
    Unplaced {
        /// The table's schema.
        schema: &'a str,
        /// The table's name.
        name: &'a str,
    },
    /// Something that changes no row (type names, origins).
    Nothing,
}
