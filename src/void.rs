//! Voids: what makes entries unservable that nobody names one by one, those that bear a tag or whose keys match a pattern.
//!
//! A void comes in a transaction, and is known by that transaction's end LSN `c`. It concerns whatever was read before:
//! entries whose `lo` lies before `c`. So nothing must be looked for, whatever the number of entries.

pub mod glob;
pub mod tag;

use std::sync::Arc;

use self::glob::Glob;
use self::tag::Cell;

/// Patterns that an entity may have at a time. One more, and all of its entries are voided instead.
pub const MAX_PATTERNS: usize = 64;

/// Which entries become unservable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Void {
    /// Those that bear a tag of this cell, of whichever entity.
    Tag(Cell),
    /// Those of an entity whose full key, `entity:key`, matches a pattern.
    Pattern {
        /// The entity.
        entity: usize,
        /// The pattern.
        glob: Arc<Glob>,
    },
    /// All of an entity.
    Entity {
        /// The entity.
        entity: usize,
    },
}

impl Void {
    /// What a pattern voids of an entity, if it can match any key of it.
    pub fn of_pattern(glob: &Arc<Glob>, entity: usize, name: &str) -> Option<Void> {
        match glob.reach(format!("{name}:").as_bytes()) {
            glob::Reach::None => None,
            glob::Reach::Some => Some(Void::Pattern { entity, glob: glob.clone() }),
            glob::Reach::All => Some(Void::Entity { entity }),
        }
    }

    /// Bytes that it holds beside itself.
    pub fn held(&self) -> usize {
        match self {
            Void::Pattern { glob, .. } => glob.text().len(),
            Void::Tag(_) | Void::Entity { .. } => 0,
        }
    }
}
