//! In which order an entity is warmed, and how fast at most.

use serde::{Deserialize, Serialize};

/// The most keys that may be filled in a second.
pub const MAX_RATE: u32 = 100_000;

/// The order in which keys are warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WarmOrder {
    /// From the least key on.
    #[default]
    Asc,
    /// From the greatest key on: where keys are drawn from a sequence, the newest come first.
    Desc,
}
