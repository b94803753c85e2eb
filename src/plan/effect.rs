//! What is to be done to entries, and why.

use crate::entity::Generation;
use crate::void::Void;

/// Why an entry is dropped rather than written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The row was written, and the entity invalidates on change.
    Update,
    /// The row was deleted, and the entity invalidates on change.
    Delete,
    /// An unchanged out-of-line value is not in the stream, and not in what is known of the row before either.
    Toast,
    /// A value cannot be made from its text in the stream.
    Opaque,
    /// The stream's columns are not the entity's: the table's shape has changed, or changes are older than that.
    Shape,
    /// The application said so: see [`super::command`].
    Command,
    /// The value is larger than what is cached.
    Large,
    /// A rule's lookup found it; or it could not be looked up.
    Lookup,
}

/// What is to be done to an entity's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the row's new image (or that it is absent).
    Put {
        /// The entity.
        entity: usize,
        /// The generation whose shape the image has.
        generation: Generation,
        /// The full key in Redis.
        key: Vec<u8>,
        /// The entry's text, its label still blank.
        text: Vec<u8>,
    },
    /// Write the row's new image, in which unchanged out-of-line values are missing: they are those of the image before
    /// this change. Drop the entry where that is not known.
    Merge {
        /// The entity.
        entity: usize,
        /// The generation whose shape the image has.
        generation: Generation,
        /// The full key in Redis.
        key: Vec<u8>,
        /// The entry's text, its label still blank, its value with gaps: see [`crate::entry::gaps`].
        text: Vec<u8>,
    },
    /// Drop the entry.
    Delete {
        /// The entity.
        entity: usize,
        /// The full key in Redis.
        key: Vec<u8>,
        /// Why.
        cause: Cause,
    },
    /// Drop the entries whose keys a rule's lookup gives for a changed row: see [`crate::entity::query::Via::Lookup`].
    Lookup {
        /// The entity.
        entity: usize,
        /// The position of the rule among the query's.
        rule: usize,
        /// The row's values that the lookup is given, in Postgres' text form; `None` for NULL.
        values: Vec<Option<Vec<u8>>>,
    },
    /// Make all of the entity's entries unservable: a TRUNCATE, or a row whose key the stream does not tell.
    Raise {
        /// The entity.
        entity: usize,
    },
    /// As [`Effect::Raise`], but that the table is not empty now.
    Discard {
        /// The entity.
        entity: usize,
        /// Why.
        cause: Cause,
    },
    /// Make entries unservable by what they have in common.
    Void(Void),
    /// Look up the table's shape: the stream announced another one.
    Reshape {
        /// The entity.
        entity: usize,
    },
    /// Make all of the entity's entries unservable, and look up its table's shape: the table has come under another name,
    /// and what happens to its rows under that is not the entity's.
    Moved {
        /// The entity.
        entity: usize,
    },
    /// Look which tables' shapes have changed: the stream announced DDL.
    LookAround,
}
