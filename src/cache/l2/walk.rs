//! Walks through L2 that must not miss a key: over one connection from beginning to end.
//!
//! `SCAN` returns every key that is there from the beginning of a walk to its end; some come twice. A cursor means nothing
//! to another server, nor to the same one after a restart. So a walk keeps the connection that it began on, which does not
//! reconnect, and counts only if that is still the one that readers trust when it ends.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use redis::aio::MultiplexedConnection;

use super::inspect::pattern;
use super::{L2, L2Error, bulk};
use crate::lsn::Lsn;

/// What was read at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// This text stands there.
    Text(Bytes),
    /// No string does.
    Nothing,
    /// It was left there: it would have been more than was to be read.
    Left,
}

/// A walk through L2 under way.
pub struct Walk<'a> {
    l2: &'a L2,
    connection: Arc<MultiplexedConnection>,
    /// The glob of the keys that are wanted.
    pattern: Vec<u8>,
    cursor: u64,
}

/// The connection that a walk has gone over.
#[derive(Clone)]
pub struct Way(Arc<MultiplexedConnection>);

impl L2 {
    /// Does something if that is still the connection that readers trust, before any other begins to be trusted: another
    /// may lead to a server that has gone back to before the walk.
    pub fn if_trusted<T>(&self, way: &Way, act: impl FnOnce() -> T) -> Option<T> {
        let _turn = self.trusting.lock();
        let trusted = self.connection.load();
        let same = matches!(&*trusted, Some(trusted) if Arc::ptr_eq(trusted, &way.0));
        same.then(act)
    }

    /// Begins a walk through all keys that begin with `start`.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub fn walk(&self, start: &[u8]) -> Result<Walk<'_>, L2Error> {
        let connection = self.connection.load_full().ok_or(L2Error::Unavailable)?;
        Ok(Walk { l2: self, connection, pattern: pattern(start), cursor: 0 })
    }
}

impl Walk<'_> {
    /// What it goes over.
    pub fn way(&self) -> Way {
        Way(self.connection.clone())
    }

    /// The next keys, of about `count` that are looked at; whether there are more to come. Some steps find nothing.
    ///
    /// # Errors
    /// If L2 is away, or readers trust another connection now: then the walk is to begin anew.
    pub async fn step(&mut self, count: usize) -> Result<(Vec<Bytes>, bool), L2Error> {
        let cmd =
            redis::cmd("SCAN").arg(self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(count.max(1)).take();
        let Value::Array(parts) = self.run(&cmd).await? else { return Err(L2Error::Form) };
        let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(parts) else { return Err(L2Error::Form) };
        self.cursor = bulk(next)?.and_then(|t| std::str::from_utf8(&t).ok()?.parse().ok()).ok_or(L2Error::Form)?;
        let keys = keys.into_iter().map(|key| bulk(key)?.ok_or(L2Error::Form)).collect::<Result<_, _>>()?;
        Ok((keys, self.cursor != 0))
    }

    /// Removes entries that have not seen everything up to their floor, and leases; says how many.
    ///
    /// # Errors
    /// As [`Walk::step`].
    pub async fn unlink_below(&self, entries: &[(Bytes, Lsn)]) -> Result<u64, L2Error> {
        if entries.is_empty() {
            return Ok(0);
        }
        let mut cmd = self.l2.unlink_below.command(entries.len());
        for (key, _) in entries {
            cmd.arg(&key[..]);
        }
        for (_, floor) in entries {
            cmd.arg(&floor.hex16());
        }
        let mut connection = MultiplexedConnection::clone(&self.connection);
        let outcome = self.l2.unlink_below.run(&mut connection, &cmd).await;
        let removed = self.l2.judge(outcome)?;
        self.is_trusted()?;
        match removed {
            Value::Int(removed) => Ok(u64::try_from(removed).unwrap_or(0)),
            _ => Err(L2Error::Form),
        }
    }

    /// What stands at keys, of at most `budget` bytes together; or one text alone, of at most `alone`.
    ///
    /// # Errors
    /// As [`Walk::step`].
    pub async fn texts(&self, keys: &[&[u8]], budget: usize, alone: usize) -> Result<Vec<Read>, L2Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = self.l2.texts.command(keys.len());
        cmd.arg(keys).arg(budget).arg(alone);
        let mut connection = MultiplexedConnection::clone(&self.connection);
        let outcome = self.l2.texts.run(&mut connection, &cmd).await;
        let values = self.l2.judge(outcome)?;
        self.is_trusted()?;
        let read = |value| match value {
            Value::BulkString(text) => Ok(Read::Text(text.into())),
            Value::Nil => Ok(Read::Nothing),
            Value::Int(_) => Ok(Read::Left),
            _ => Err(L2Error::Form),
        };
        match values {
            Value::Array(values) if values.len() == keys.len() => values.into_iter().map(read).collect(),
            _ => Err(L2Error::Form),
        }
    }

    async fn run(&self, cmd: &redis::Cmd) -> Result<Value, L2Error> {
        let mut connection = MultiplexedConnection::clone(&self.connection);
        let value = self.l2.judge(connection.send_packed_command(cmd).await.and_then(Value::extract_error))?;
        self.is_trusted()?;
        Ok(value)
    }

    /// Whether readers still trust the connection that the walk began on.
    fn is_trusted(&self) -> Result<(), L2Error> {
        match &*self.l2.connection.load() {
            Some(trusted) if Arc::ptr_eq(trusted, &self.connection) => Ok(()),
            _ => Err(L2Error::Unavailable),
        }
    }
}
