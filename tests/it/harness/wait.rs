//! Waiting for conditions: the only place where tests look at a clock.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::Client;
use walcache::lsn::Lsn;

/// How long anything may take that a test waits for, on a busy machine. Not 30 s: then the daemon gives up by itself much
/// that it ought to notice before (statements, a silent stream, what is to be warmed first).
pub const WAIT_LIMIT: Duration = Duration::from_secs(28);

/// How long it may take that all is well, where no test judges how long that takes: after starts behind the transactions
/// of others, and after rests.
pub const LONG_LIMIT: Duration = Duration::from_secs(90);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Tries `attempt` until it gives a value, and panics with the last reason against it after [`WAIT_LIMIT`].
pub async fn eventually<T, E: Display, F>(what: &str, attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    eventually_within(WAIT_LIMIT, what, attempt).await
}

/// As [`eventually`] with a limit of its own: for bounds that are promised.
pub async fn eventually_within<T, E: Display, F>(limit: Duration, what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + limit;
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match attempt().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}: {reason}"),
            Err(_) => {}
        }
    }
}

/// The end of the log as of now: everything committed before is at or below it.
pub async fn current_lsn(client: &Client) -> Lsn {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.expect("read the current LSN");
    row.get::<_, &str>(0).parse().expect("Postgres prints LSNs that parse")
}

/// How many reads of this database wait for an advisory lock.
pub async fn waiting_reads(sql: &Client) -> i64 {
    let query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    sql.query_one(query, &[]).await.expect("look at the locks").get(0)
}

/// Waits until a read waits for an advisory lock: a fill is in the middle then.
pub async fn until_a_read_waits(sql: &Client) {
    eventually("have the fill wait in the middle", || async {
        if waiting_reads(sql).await > 0 { Ok(()) } else { Err("it does not wait yet") }
    })
    .await;
}

/// How long a soak goes on after its usual rounds: `WALCACHE_SOAK_SECONDS`, by default not at all.
pub struct Soak(Instant);

/// Begins a soak.
pub fn soak() -> Soak {
    let seconds = std::env::var("WALCACHE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Soak(Instant::now() + Duration::from_secs(seconds))
}

impl Soak {
    /// Whether it may end now.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}
