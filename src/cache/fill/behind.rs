//! Reading rows behind all readers: for audits.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Filler, MAX_KEYS, most};
use crate::cache::answer::ReadError;
use crate::cache::rows::Found;
use crate::entity::{Entity, EntryKey};
use crate::lsn::Lsn;

/// How often it is looked whether readers still need what there is.
const POLL: Duration = Duration::from_millis(2);

impl Filler {
    /// How many rows [`Filler::read_behind`] may read at a time.
    pub fn most_behind(&self) -> usize {
        self.rows.permits().most_spare().min(MAX_KEYS)
    }

    /// Reads rows as a fill does, over the same connections and under the same limits, but begins only while readers
    /// need little of them. Nothing is published or kept.
    ///
    /// # Errors
    /// [`ReadError::Overloaded`] if readers need it all for as long as `patience`; else as a fill.
    pub async fn read_behind(
        &self,
        entity: &Entity,
        keys: &[&EntryKey],
        patience: Duration,
    ) -> Result<Found, ReadError> {
        let deadline = Instant::now() + patience;
        let permit = loop {
            if let Some(permit) = self.rows.spare(keys.len()) {
                break permit;
            }
            if Instant::now() >= deadline {
                return Err(ReadError::Overloaded);
            }
            sleep(POLL).await;
        };
        let since = self.hierarchy.watermark.restarted();
        let mut found = Found { hi: Lsn::ZERO, values: Vec::with_capacity(keys.len()), refused: Vec::new() };
        for keys in keys.chunks(most(entity)) {
            let more = self.rows.read(entity, keys, &permit, since).await?;
            if let Some((_, error)) = more.refused.into_iter().next() {
                return Err(error);
            }
            found.hi = found.hi.max(more.hi);
            found.values.extend(more.values);
        }
        Ok(found)
    }
}
