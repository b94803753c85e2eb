//! What fills do in L2: take leases, and publish under them.

use bytes::Bytes;
use redis::Value;

use super::{L2, L2Error, bulk};
use crate::entity::Generation;
use crate::entry::Due;
use crate::failpoint::{self, Rule};
use crate::lsn::Lsn;

/// What a lookup with the right to fill found at a key.
#[derive(Debug)]
pub enum Looked {
    /// Somebody's entry or lease.
    Stored(Bytes),
    /// Nothing: our lease stands there now.
    Leased,
}

impl L2 {
    /// Looks keys up and takes a lease for each that is absent, was due by `over`, or has not seen everything up to its
    /// floor. `None` for the high-water mark says that L2 has lost its fence; then no lease was taken.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn lease(
        &self,
        keys: &[&str],
        lease: &str,
        generation: Generation,
        over: Due,
        floors: &[Lsn],
    ) -> Result<(Option<Lsn>, Vec<Looked>), L2Error> {
        let mut connection = self.connection()?;
        let mut cmd = self.lease.command(keys.len() + 1);
        cmd.arg(&self.fence_key).arg(keys).arg(lease);
        cmd.arg(self.config.lease_ttl.as_millis() as u64).arg(&generation.hex16()).arg(&over.digits());
        if floors.iter().any(|floor| *floor > Lsn::ZERO) {
            for floor in floors {
                cmd.arg(&floor.hex16());
            }
        }
        let Value::Array(values) = self.judge(self.lease.run(&mut connection, &cmd).await)? else {
            return Err(self.malformed());
        };
        let mut values = values.into_iter().map(bulk);
        let Some(hw) = values.next().ok_or(L2Error::Form)?? else {
            return Ok((None, Vec::new()));
        };
        let hw = Lsn::from_hex16(&hw).ok_or(L2Error::Form)?;
        let looked: Vec<Looked> =
            values.map(|v| v.map(|v| v.map_or(Looked::Leased, Looked::Stored))).collect::<Result<_, _>>()?;
        if looked.len() == keys.len() { Ok((Some(hw), looked)) } else { Err(L2Error::Form) }
    }

    /// Publishes fills, which nothing committed after `hi` is in; says for each whether its lease still stood. `base` is taken
    /// off their due times to get their lives in Redis.
    ///
    /// # Errors
    /// If L2 is away or not trusted; the leases then expire.
    pub async fn publish(
        &self,
        entries: &[(&str, Vec<u8>)],
        lease: &str,
        hi: Lsn,
        base: Due,
    ) -> Result<Vec<bool>, L2Error> {
        let mut connection = self.connection()?;
        if failpoint::is_off(Rule::Lease) {
            // As if no event had voided it.
            for (key, _) in entries {
                redis::cmd("SET").arg(key).arg(lease).exec_async(&mut connection).await?;
            }
        }
        let mut cmd = self.publish.command(entries.len() + 1);
        cmd.arg(&self.fence_key);
        for (key, _) in entries {
            cmd.arg(key);
        }
        cmd.arg(lease).arg(base.as_millis()).arg(&hi.hex16());
        for (_, text) in entries {
            cmd.arg(text);
        }
        match self.judge(self.publish.run(&mut connection, &cmd).await)? {
            Value::Array(values) if values.len() == entries.len() => {
                Ok(values.iter().map(|v| *v == Value::Int(1)).collect())
            }
            _ => Err(self.malformed()),
        }
    }
}
