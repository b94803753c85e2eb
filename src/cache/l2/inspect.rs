//! Looking at what L2 holds without serving it: for audits, and for people.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use redis::aio::MultiplexedConnection;

use super::{L2, L2Error, bulk};
use crate::entity::Generation;
use crate::lsn::Lsn;

/// The fence as one entity's readers see it; `None` for a field that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields {
    /// Who may write.
    pub epoch: Option<Generation>,
    /// The high-water mark.
    pub hw: Option<Lsn>,
    /// Up to where everything has been written.
    pub done: Option<Lsn>,
    /// The generation of all entities.
    pub generation: Option<Generation>,
    /// The entity's own generation.
    pub entity_generation: Option<Generation>,
}

/// What stands at one key, and the fence at the same moment.
#[derive(Debug, Clone)]
pub struct Look {
    /// Whether readers are served over the connection that this was read from.
    pub trusted: bool,
    /// The fence.
    pub fence: Fields,
    /// The text; `None` if there is no string.
    pub text: Option<Bytes>,
    /// How long it still lives; `None` if it does not end, or is not there.
    pub life: Option<Duration>,
    /// Whether there is something that is no string.
    pub other_type: bool,
}

impl L2 {
    /// What stands at keys, as [`L2::get`] says; what is no string counts as absent.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn texts(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, L2Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection()?;
        let cmd = redis::cmd("MGET").arg(keys).take();
        match self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error))? {
            Value::Array(values) if values.len() == keys.len() => values.into_iter().map(bulk).collect(),
            _ => Err(self.malformed()),
        }
    }

    /// A step of a walk through all keys that begin with `start`: those found, and the cursor to go on with. A cursor
    /// of 0 begins a walk and ends it. Some steps find nothing, and a key may come twice.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn scan(&self, start: &str, cursor: u64, count: usize) -> Result<(u64, Vec<Bytes>), L2Error> {
        let mut connection = self.connection()?;
        let pattern = pattern(start.as_bytes());
        let cmd = redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count).take();
        let answer = self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error))?;
        let Value::Array(parts) = answer else { return Err(L2Error::Form) };
        let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(parts) else { return Err(L2Error::Form) };
        let next = bulk(next)?.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).ok_or(L2Error::Form)?;
        let keys = keys.into_iter().map(|key| bulk(key)?.ok_or(L2Error::Form)).collect::<Result<_, _>>()?;
        Ok((next, keys))
    }

    /// Drops an entry if exactly this text still stands there; says whether it did.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn drop_same(&self, key: &str, text: &[u8]) -> Result<bool, L2Error> {
        let mut connection = self.connection()?;
        let mut cmd = self.drop_same.command(1);
        cmd.arg(key).arg(text);
        Ok(self.judge(self.drop_same.run(&mut connection, &cmd).await)? == Value::Int(1))
    }

    /// What stands at one key of an entity and in the fence, also while L2 is not trusted.
    ///
    /// # Errors
    /// If L2 is away.
    pub async fn look(&self, key: &str, entity: &str) -> Result<Look, L2Error> {
        let (mut connection, trusted) = match self.connection() {
            Ok(connection) => (connection, true),
            Err(_) => (self.connect().await?, false),
        };
        let mut cmd = self.look.command(2);
        cmd.arg(&self.fence_key).arg(key).arg(entity);
        let answer = self.run_look(&mut connection, &cmd, trusted).await?;
        let Value::Array(parts) = answer else { return Err(L2Error::Form) };
        let Ok([Value::Array(fence), text, Value::Int(life), kind]) = <[Value; 4]>::try_from(parts) else {
            return Err(L2Error::Form);
        };
        let fields = fence.into_iter().map(bulk).collect::<Result<Vec<_>, _>>()?;
        let lsn = |i: usize| Lsn::from_hex16(fields.get(i)?.as_deref()?);
        let generation = |i: usize| Generation::from_hex16(fields.get(i)?.as_deref()?);
        let fence = Fields {
            epoch: generation(0),
            hw: lsn(1),
            done: lsn(2),
            generation: generation(3),
            entity_generation: generation(4),
        };
        let text = bulk(text)?;
        let absent = matches!(&kind, Value::SimpleString(kind) if kind == "none")
            || matches!(&kind, Value::BulkString(kind) if kind == b"none");
        Ok(Look {
            trusted,
            fence,
            other_type: text.is_none() && !absent,
            text,
            life: u64::try_from(life).ok().map(Duration::from_millis),
        })
    }

    async fn run_look(
        &self,
        connection: &mut MultiplexedConnection,
        cmd: &redis::Cmd,
        trusted: bool,
    ) -> Result<Value, L2Error> {
        let outcome = self.look.run(connection, cmd).await;
        // A connection of its own says nothing of the readers'.
        if trusted { self.judge(outcome) } else { outcome.map_err(L2Error::Redis) }
    }
}

/// The glob of keys that begin with `start`.
pub(super) fn pattern(start: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(start.len() + 1);
    for byte in start {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^' | b'-') {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn a_prefix_is_meant_literally() {
        assert_eq!(pattern(b"product:"), b"product:*");
        assert_eq!(pattern(b"a*[b]?\\:"), b"a\\*\\[b\\]\\?\\\\:*");
    }
}
