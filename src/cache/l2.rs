//! L2: Redis, reached over connections that are trusted only while it is proved that nothing was lost behind them.
//!
//! A connection leads to one server process. Whenever a new one is made, the fence there must show as done at least
//! what was acknowledged before; else writes were lost (an emptied server, an old dump, a replica that missed some), and
//! L2 is bypassed until the leader has started a new generation.
//!
//! The fence keeps two positions. `hw`, the high-water mark, is raised by every script: it labels fills. `done` follows
//! only when a whole batch has been written. A server that goes back to a state in the middle of a batch shows the
//! batch's `hw` and lacks some of its effects, so only `done` proves that nothing was lost.

mod fill;
mod inspect;
mod notes;
pub mod renew;
mod script;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::fill::Looked;
pub use self::inspect::{Fields, Look};
pub use self::script::Script;
pub use self::walk::{Read, Walk, Way};
use super::Hierarchy;
use crate::lsn::Lsn;
use crate::metrics::InstanceMetrics;

/// How L2 is reached.
#[derive(Clone)]
pub struct Config {
    /// `redis://` or `rediss://` URL; may hold a password.
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    /// How long a command may take before its connection counts as broken.
    pub response_timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a lease stands if its holder does not publish.
    pub lease_ttl: Duration,
    /// How long a reader waits for somebody else's fill.
    pub lease_wait: Duration,
}

/// Why L2 did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum L2Error {
    /// Not connected, or not trusted since.
    #[error("L2 is not available")]
    Unavailable,
    /// Redis or the way there failed.
    #[error("L2 failed")]
    Redis(#[from] RedisError),
    /// The answer is not of the form that the script returns.
    #[error("L2 answered in an unexpected form")]
    Form,
}

/// The readers' way to L2, shared by all of them.
pub struct L2 {
    /// How it is reached.
    pub config: Config,
    /// The fence's key.
    pub fence_key: String,
    client: Client,
    connection: ArcSwapOption<MultiplexedConnection>,
    broken: Notify,
    /// The epoch under which this process has claimed the fence last; 0 before, and while L2 is distrusted.
    claimed: AtomicU64,
    /// Held while a connection begins to be trusted, or L2 to be distrusted.
    trusting: Mutex<()>,
    /// What a trusted fence shows at least as done.
    acknowledged: AtomicU64,
    claims: Notify,
    lease: Script,
    publish: Script,
    look: Script,
    drop_same: Script,
    unlink_below: Script,
    texts: Script,
    claim_renewals: Script,
    replace: Script,
}

impl L2 {
    /// Parses the URL; connects later.
    ///
    /// # Errors
    /// If the URL is not one of Redis.
    pub fn new(config: Config) -> Result<Self, RedisError> {
        Ok(L2 {
            client: Client::open(config.url.as_str())?,
            // `~` cannot begin an entity's name: no entry's key is the fence's.
            fence_key: format!("{}~walcache:fence", config.prefix),
            config,
            connection: ArcSwapOption::empty(),
            broken: Notify::new(),
            claimed: AtomicU64::new(0),
            trusting: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            claims: Notify::new(),
            lease: Script::new(include_str!("lease.lua")),
            publish: Script::new(include_str!("publish.lua")),
            look: Script::new(include_str!("l2/look.lua")),
            drop_same: Script::new(include_str!("l2/drop_same.lua")),
            unlink_below: Script::new(include_str!("l2/unlink_below.lua")),
            texts: Script::new(include_str!("l2/texts.lua")),
            claim_renewals: Script::new(include_str!("l2/renew/claim.lua")),
            replace: Script::new(include_str!("l2/renew/replace.lua")),
        })
    }

    /// A new connection, not yet known to be trustworthy.
    ///
    /// # Errors
    /// If the server does not answer in time or refuses.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.config.connect_timeout))
            .set_response_timeout(Some(self.config.response_timeout))
            .set_pipeline_buffer_size(1024);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// The leader has claimed the fence under `epoch`; it shows `done` now.
    pub fn claimed(&self, epoch: u64, done: Lsn) {
        let _turn = self.trusting.lock();
        self.acknowledged.store(done.as_u64(), Ordering::Release);
        self.claimed.store(epoch, Ordering::Release);
        self.claims.notify_one();
        // It was proved under an older epoch, perhaps to another server.
        self.give_up();
    }

    /// The leader's write of `done` to the fence was acknowledged.
    pub fn acknowledge(&self, done: Lsn) {
        self.acknowledged.fetch_max(done.as_u64(), Ordering::AcqRel);
    }

    /// The leader found that L2 lost writes: nothing there is to be believed until the next claim.
    pub fn distrust(&self) {
        let _turn = self.trusting.lock();
        self.claimed.store(0, Ordering::Release);
        self.give_up();
    }

    /// Stops the use of the readers' connection, if there is one, until another is proved.
    pub fn give_up(&self) {
        if self.connection.swap(None).is_some() {
            self.broken.notify_one();
        }
    }

    /// A write, or a claim, has failed. The readers' connection is given up; and where the server has become a replica, which
    /// answers reads, it is not proved again before the next claim: its data will be another's, behind connections that stand.
    pub fn refused(&self, error: &RedisError) {
        // Before Redis 7, the code of what a script meets is part of the message.
        if error.code() == Some("READONLY") || error.detail().is_some_and(|detail| detail.contains("READONLY")) {
            self.distrust();
        } else {
            self.give_up();
        }
    }

    /// Whether L2 is read.
    pub fn is_trusted(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Keeps the readers' connection up and proved, until cancelled. Generations and floors are raised to what L2's
    /// fence says.
    pub async fn keep_connected(
        self: Arc<Self>,
        hierarchy: Arc<Hierarchy>,
        metrics: Arc<InstanceMetrics>,
        cancel: CancellationToken,
    ) {
        let mut backoff = crate::retry::forever(Duration::from_millis(50), Duration::from_secs(2));
        let mut said = false;
        loop {
            let attempt = async {
                loop {
                    match self.claimed.load(Ordering::Acquire) {
                        0 => self.claims.notified().await,
                        epoch => break self.connect_proved(epoch).await.map(|c| c.map(|c| (epoch, c))),
                    }
                }
            };
            let outcome = tokio::select! {
                () = cancel.cancelled() => return,
                outcome = attempt => outcome,
            };
            match outcome {
                Ok(Some((epoch, (connection, fence)))) => {
                    {
                        // Not if it was distrusted since it was proved, or claimed anew, perhaps on another server.
                        let _turn = self.trusting.lock();
                        if self.claimed.load(Ordering::Acquire) != epoch {
                            continue;
                        }
                        hierarchy.load(&fence);
                        self.connection.store(Some(Arc::new(connection)));
                    }
                    metrics.l2_trusted(true);
                    info!("L2 is connected and trusted");
                    backoff.reset();
                    said = false;
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = self.broken.notified() => {}
                    }
                    metrics.l2_trusted(false);
                    warn!("L2 is bypassed: its connection broke or it lost writes");
                    continue;
                }
                Ok(None) if !said => warn!(
                    "L2 is bypassed: its fence is missing, older than what was acknowledged, or another instance's"
                ),
                Err(e) if !said => warn!(error = %e, "L2 is bypassed: it cannot be reached"),
                _ => {}
            }
            said = true;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn connect_proved(
        &self,
        epoch: u64,
    ) -> Result<Option<(MultiplexedConnection, HashMap<String, Vec<u8>>)>, RedisError> {
        let mut connection = self.connect().await?;
        // Before the fence is read: it may move on meanwhile.
        let acknowledged = Lsn::from_u64(self.acknowledged.load(Ordering::Acquire));
        let cmd = redis::cmd("HGETALL").arg(&self.fence_key).take();
        let fence: HashMap<String, Vec<u8>> = cmd.query_async(&mut connection).await?;
        let number = |field: &str| fence.get(field).and_then(|digits| Lsn::from_hex16(digits));
        // A higher epoch is that of another instance, which tells nobody of the shapes for which it starts generations.
        let proved = number("done").is_some_and(|done| done >= acknowledged)
            && number("epoch").is_some_and(|stands| stands.as_u64() == epoch);
        if !proved {
            return Ok(None);
        }
        Ok(Some((connection, fence)))
    }

    fn connection(&self) -> Result<MultiplexedConnection, L2Error> {
        self.connection.load().as_deref().cloned().ok_or(L2Error::Unavailable)
    }

    /// Lets a failed command count: a connection that drops or does not answer is replaced and proved anew.
    fn judge<T>(&self, outcome: Result<T, RedisError>) -> Result<T, L2Error> {
        outcome.map_err(|e| {
            if e.is_io_error() {
                self.give_up();
            }
            L2Error::Redis(e)
        })
    }

    /// Answers of another form than asked for: whatever is there is not what was proved.
    fn malformed(&self) -> L2Error {
        self.give_up();
        L2Error::Form
    }

    /// What stands at keys.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn get(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, L2Error> {
        let mut connection = self.connection()?;
        if let [key] = keys {
            let cmd = redis::cmd("GET").arg(key).take();
            let value = self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error))?;
            return Ok(vec![bulk(value)?]);
        }
        let cmd = redis::cmd("MGET").arg(keys).take();
        match self.judge(connection.send_packed_command(&cmd).await.and_then(Value::extract_error))? {
            Value::Array(values) if values.len() == keys.len() => values.into_iter().map(bulk).collect(),
            _ => Err(self.malformed()),
        }
    }
}

fn bulk(value: Value) -> Result<Option<Bytes>, L2Error> {
    match value {
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        Value::Nil => Ok(None),
        _ => Err(L2Error::Form),
    }
}

#[cfg(test)]
mod tests;
