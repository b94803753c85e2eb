//! The gate: lets a transaction pass once it is visible to new snapshots on the primary.
//!
//! A commit can be streamed before it is visible: its record is flushed, decoded and sent before the transaction
//! leaves the proc array; with a synchronous standby the gap lasts as long as the standby takes. Past the gate, every
//! new snapshot on the primary contains everything that was applied, so that a fill that reads after an event was
//! applied cannot bring older data.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::{Client, Statement};

const SNAPSHOT: &str = include_str!("../sql/snapshot.sql");
/// Polls without a pause: a commit usually becomes visible within some microseconds.
const EAGER_POLLS: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// When a wait is worth a word in the log.
const LONG_WAIT: Duration = Duration::from_secs(2);

/// What a new snapshot on the primary sees, from `pg_current_snapshot()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u64,
    in_progress: Vec<u32>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip,...`.
    pub fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let _xmin: u64 = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let in_progress = parts.next()?;
        let xids = in_progress.split(',').filter(|x| !x.is_empty());
        // The stream carries transaction ids without their epoch: they are compared modulo 2^32, as Postgres does.
        let in_progress = xids.map(|x| x.parse::<u64>().ok().map(|x| x as u32)).collect::<Option<_>>()?;
        parts.next().is_none().then_some(Snapshot { xmax, in_progress })
    }

    /// Whether it sees a transaction that has committed.
    pub fn sees(&self, xid: u32) -> bool {
        let before_xmax = (self.xmax as u32).wrapping_sub(xid).cast_signed() > 0;
        before_xmax && !self.in_progress.contains(&xid)
    }
}

/// Why the gate cannot tell.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The connection to the primary.
    #[error("read the snapshot of the primary")]
    Source(#[from] tokio_postgres::Error),
    /// `pg_current_snapshot()` gave something else.
    #[error("read the snapshot of the primary: unexpected form {0:?}")]
    Form(String),
    /// The connection is open and nothing comes.
    #[error("read the snapshot of the primary: no answer within {0:?}")]
    Silent(Duration),
}

/// The gate, with a connection of its own to the primary.
pub struct Gate {
    client: Client,
    statement: Statement,
    patience: Duration,
    last: Option<Snapshot>,
}

impl Gate {
    /// A gate over a connection, which counts as dead when a snapshot takes longer than `patience`: nobody else asks
    /// anything there, so nobody else would notice.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn new(client: Client, patience: Duration) -> Result<Gate, GateError> {
        let statement = client.prepare(SNAPSHOT).await?;
        Ok(Gate { client, statement, patience, last: None })
    }

    /// Waits until new snapshots see all these transactions. One poll is enough for a whole batch of old ones.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn pass(&mut self, xids: &[u32]) -> Result<(), GateError> {
        let since = Instant::now();
        let mut polls = 0;
        let mut said = false;
        let mut pause = Duration::from_millis(1);
        loop {
            let Some(xid) = self.hidden(xids) else { return Ok(()) };
            if polls > EAGER_POLLS {
                if !said && since.elapsed() > LONG_WAIT {
                    said = true;
                    tracing::warn!(
                        xid,
                        "waiting for a committed transaction to become visible on the primary; does it wait for a synchronous standby?"
                    );
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            polls += 1;
            self.look().await?;
        }
    }

    /// Takes a new snapshot.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn look(&mut self) -> Result<(), GateError> {
        self.last = Some(self.snapshot().await?);
        Ok(())
    }

    /// Whether the newest snapshot that was taken sees all these transactions.
    pub fn sees(&self, xids: &[u32]) -> bool {
        self.hidden(xids).is_none()
    }

    fn hidden(&self, xids: &[u32]) -> Option<u32> {
        xids.iter().copied().find(|xid| !self.last.as_ref().is_some_and(|snapshot| snapshot.sees(*xid)))
    }

    /// Waits until every transaction that runs now has ended. A slot that was just made streams commits from some point
    /// on; one that lies before it may still be hidden, and no event will ever tell of it.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn outlast(&mut self) -> Result<(), GateError> {
        let running = self.running().await?;
        self.pass(&running).await
    }

    /// The transactions that run now and have changed something.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn running(&self) -> Result<Vec<u32>, GateError> {
        let spent = timeout(self.patience, self.client.query_one(include_str!("../sql/spend_xid.sql"), &[])).await;
        spent.map_err(|_| GateError::Silent(self.patience))??;
        Ok(self.snapshot().await?.in_progress)
    }

    async fn snapshot(&self) -> Result<Snapshot, GateError> {
        let row = timeout(self.patience, self.client.query_one(&self.statement, &[])).await;
        let row = row.map_err(|_| GateError::Silent(self.patience))??;
        let text: &str = row.try_get(0)?;
        Snapshot::parse(text).ok_or_else(|| GateError::Form(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_is_older_and_not_in_progress() {
        let snapshot = Snapshot::parse("100:105:100,103").unwrap();
        let seen: Vec<u32> = (98..108).filter(|x| snapshot.sees(*x)).collect();
        assert_eq!(seen, [98, 99, 101, 102, 104]);
        assert_eq!(Snapshot::parse("7:7:").unwrap(), Snapshot { xmax: 7, in_progress: vec![] });
        for bad in ["", "1", "1:2", "1:2:x", "1:2:3:4"] {
            assert_eq!(Snapshot::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn transaction_ids_wrap_around() {
        let epoch = 1_u64 << 32;
        let snapshot = Snapshot::parse(&format!("{}:{}:{}", epoch - 2, epoch + 5, epoch - 1)).unwrap();
        assert!(snapshot.sees(u32::MAX - 5) && snapshot.sees(3));
        assert!(!snapshot.sees(u32::MAX) && !snapshot.sees(5) && !snapshot.sees(6));
    }
}
