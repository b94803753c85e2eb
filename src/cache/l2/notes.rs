//! What walcache keeps in L2 for itself: small texts that help, and that nothing depends on.
//!
//! Their names begin with `~`, as no entity's does. Whoever may write to this Redis may write them, too: they are read
//! as hints, and never as SQL, or as values to be served.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::{L2, L2Error, bulk};

/// Bytes of a note that are read at most.
const MAX_BYTES: usize = 16 << 20;

impl L2 {
    fn note_key(&self, name: &str) -> String {
        format!("{}~walcache:{name}", self.config.prefix)
    }

    /// Keeps a note for so long.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn keep_note(&self, name: &str, text: &[u8], ttl: Duration) -> Result<(), L2Error> {
        let mut connection = self.connection()?;
        let cmd = redis::cmd("SET").arg(self.note_key(name)).arg(text).arg("PX").arg(ttl.as_millis() as u64).take();
        self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error)).map(drop)
    }

    /// A note; `None` if there is none, or it is too long to be one.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn note(&self, name: &str) -> Result<Option<Bytes>, L2Error> {
        let mut connection = self.connection()?;
        // Somebody may have put something huge there: no more of it is read than is needed to see that.
        let cmd = redis::cmd("GETRANGE").arg(self.note_key(name)).arg(0).arg(MAX_BYTES).take();
        let text = bulk(self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error))?)?;
        Ok(text.filter(|text| !text.is_empty() && text.len() <= MAX_BYTES))
    }

    /// Drops a note.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn drop_note(&self, name: &str) -> Result<(), L2Error> {
        let mut connection = self.connection()?;
        let cmd = redis::cmd("DEL").arg(self.note_key(name)).take();
        self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error)).map(drop)
    }
}
