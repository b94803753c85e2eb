//! Replacing entries that stand by newer ones, under the rules of fills.
//!
//! A lease stands in an entry's place; here the entry goes on being served meanwhile, so its own head takes the lease's
//! part: it is remembered when `hw` is read, and the new value is stored only if an entry with that very head still stands.
//! Why that is as good as a lease: let c be an event on the key that is applied between the two scripts. If the entry does
//! not certainly contain it (`c > lo`), it is dropped or replaced by one with `lo = hi = c`, and whatever else may come to
//! stand there, by a fill, has a `lo` of at least c: another head. If it contains it (`c <= lo`), it stays, and then
//! `c <= lo <= hw`: the new value contains it, too, for every event up to `hw` had passed the gate before `hw` was read.
//! (A later piece of a transaction that is applied in pieces has the entry's own label c; but pieces carry that label to
//! `hw`, and pass the gate first, so the same holds.) An event that is applied before the first script is at or below
//! `hw`; one after the second meets an entry like any other.

use redis::Value;

use super::{L2, L2Error, bulk};
use crate::entity::{EntryKey, Generation};
use crate::entry::{Due, HEAD};
use crate::lsn::Lsn;

/// What became of the claim to renew an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It stands under this head, and is the caller's to renew.
    Entry(Box<[u8; HEAD]>),
    /// Somebody renews it.
    Elsewhere,
    /// There is nothing to renew: it is gone, or a newer one stands there.
    Nothing,
}

/// A renewed entry on its way.
pub struct Renewed<'a> {
    /// Its key.
    pub key: &'a EntryKey,
    /// The head that was claimed.
    pub head: &'a [u8; HEAD],
    /// The new text; `None`: the entry is dropped.
    pub text: Option<Vec<u8>>,
}

impl L2 {
    /// The key of the mark that an entry is being renewed.
    fn mark(&self, key: &EntryKey) -> String {
        // As the fence's: no entry's key begins so.
        let prefix = &self.config.prefix;
        format!("{prefix}~walcache:renew:{}", key.redis().strip_prefix(&**prefix).unwrap_or(key.redis()))
    }

    /// Claims entries for renewal that were due when the reader who wants that has seen. `None` for the high-water mark says
    /// that L2 has lost its fence; then nothing was claimed.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn claim_renewals(
        &self,
        entries: &[(EntryKey, Due)],
        generation: Generation,
    ) -> Result<(Option<Lsn>, Vec<Claimed>), L2Error> {
        let mut connection = self.connection()?;
        let mut cmd = self.claim_renewals.command(2 * entries.len() + 1);
        cmd.arg(&self.fence_key);
        for (key, _) in entries {
            cmd.arg(key.redis()).arg(self.mark(key));
        }
        cmd.arg(self.config.lease_ttl.as_millis() as u64).arg(&generation.hex16());
        for (_, seen) in entries {
            cmd.arg(&seen.digits());
        }
        let Value::Array(values) = self.judge(self.claim_renewals.run(&mut connection, &cmd).await)? else {
            return Err(self.malformed());
        };
        let mut values = values.into_iter();
        let Some(hw) = bulk(values.next().ok_or(L2Error::Form)?)? else { return Ok((None, Vec::new())) };
        let hw = Lsn::from_hex16(&hw).ok_or(L2Error::Form)?;
        let claimed = |value| match value {
            Value::Int(_) => Ok(Claimed::Elsewhere),
            Value::Nil => Ok(Claimed::Nothing),
            Value::BulkString(head) => head.try_into().map(Claimed::Entry).map_err(|_| L2Error::Form),
            _ => Err(L2Error::Form),
        };
        let claimed: Vec<Claimed> = values.map(claimed).collect::<Result<_, _>>()?;
        if claimed.len() == entries.len() { Ok((Some(hw), claimed)) } else { Err(L2Error::Form) }
    }

    /// Stores renewed entries, which nothing committed after `hi` is in, where those that were claimed still stand; says for
    /// each whether it did. `base` is taken off their due times to get their lives in Redis.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn replace(&self, entries: &[Renewed<'_>], base: Due, hi: Lsn) -> Result<Vec<bool>, L2Error> {
        let mut connection = self.connection()?;
        let mut cmd = self.replace.command(2 * entries.len() + 1);
        cmd.arg(&self.fence_key);
        for entry in entries {
            cmd.arg(entry.key.redis()).arg(self.mark(entry.key));
        }
        cmd.arg(base.as_millis()).arg(&hi.hex16());
        for entry in entries {
            cmd.arg(entry.head).arg(entry.text.as_deref().unwrap_or_default());
        }
        match self.judge(self.replace.run(&mut connection, &cmd).await)? {
            Value::Array(values) if values.len() == entries.len() => {
                Ok(values.iter().map(|v| *v == Value::Int(1)).collect())
            }
            _ => Err(self.malformed()),
        }
    }
}
