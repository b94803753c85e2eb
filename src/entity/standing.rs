//! What may be done with an entity, by the source's catalog.

use super::Shape;

/// The code of the finding that a query cannot be looked at now: one of its tables is locked.
pub const QUERY_LOCKED: &str = "query_locked";

/// The code of the finding that it cannot be told now what is published of a table: it is locked.
pub const TABLE_LOCKED: &str = "table_locked";

/// What may be done with an entity, by the source's catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its changes come through the stream: reads are answered from the tiers.
    Cached,
    /// They do not, or not as they must, and why: reads are answered from Postgres.
    Uncached(String),
    /// Its rows cannot be read as it is configured, and why: reads are refused.
    Unreadable(String),
}

impl Standing {
    /// Its name in the status.
    pub fn name(&self) -> &'static str {
        match self {
            Standing::Cached => "cached",
            Standing::Uncached(_) => "uncached",
            Standing::Unreadable(_) => "unreadable",
        }
    }

    /// Whether it is not cached because something that it is made of is locked, so that it could not be looked at.
    pub fn is_locked(&self) -> bool {
        self.cause().is_some_and(|why| why.contains(QUERY_LOCKED) || why.contains(TABLE_LOCKED))
    }

    /// Why it is not cached.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Standing::Cached => None,
            Standing::Uncached(why) | Standing::Unreadable(why) => Some(why),
        }
    }
}

/// An entity as the source's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What may be done with it.
    pub standing: Standing,
    /// Its shape; where it is unreadable, there may be none.
    pub shape: Option<Shape>,
    /// Stands for everything in the catalog that a look at the entity sees, see `catalog::Signatures`.
    pub signature: u64,
}
