//! Commits that are streamed before they are visible: they wait for a synchronous standby that never answers.

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walcache::lsn::Lsn;
use walcache::sandbox::PostgresOptions;

use super::{Daemon, Shop, current_lsn, eventually};

/// No standby ever connects under this name.
const NOBODY: &str = "nobody";

/// A commit that hangs.
pub struct Hidden {
    commit: JoinHandle<()>,
    /// The log's end when it hung: its commit record lies before.
    pub lsn: Lsn,
}

impl Hidden {
    /// A Postgres where only these commits wait for the standby.
    pub fn postgres() -> PostgresOptions {
        PostgresOptions::new().setting("synchronous_commit", "local")
    }

    /// Runs statements, one after the other; the last one's commit hangs. Returns once the daemon has received it.
    pub async fn write(shop: &Shop, daemon: &Daemon, statements: &[&str]) -> Hidden {
        let sql = shop.sql().await;
        wait_for(&sql, NOBODY).await;
        let writer = shop.sql().await;
        let statements: Vec<String> = statements.iter().map(|statement| (*statement).to_owned()).collect();
        let commit = tokio::spawn(async move {
            writer.batch_execute("SET synchronous_commit = on").await.unwrap();
            for statement in statements {
                writer.batch_execute(&statement).await.unwrap();
            }
        });
        eventually("have the commit wait for the standby", || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            let waiting: i64 = sql.query_one(waiting, &[]).await.unwrap().get(0);
            if waiting == 1 { Ok(()) } else { Err("it does not wait") }
        })
        .await;
        let lsn = current_lsn(&sql).await;
        eventually("stream the hidden commit", || async {
            let status = daemon.status().await;
            let at: Lsn =
                status["replication"]["received_lsn"].as_str().and_then(|t| t.parse().ok()).unwrap_or_default();
            if at >= lsn { Ok(()) } else { Err(at.to_string()) }
        })
        .await;
        Hidden { commit, lsn }
    }

    /// Lets it become visible.
    pub async fn show(self, sql: &Client) {
        wait_for(sql, "").await;
        self.commit.await.unwrap();
    }
}

/// Makes commits wait for this standby; for none, if it has no name.
pub async fn wait_for(sql: &Client, standby: &str) {
    let alter = format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'");
    sql.batch_execute(&alter).await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    // What the walwriter and backends see is decided at their next look; a new session's view is as good as any.
    eventually("have the setting reloaded", || async {
        let row = sql.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
        if row.get::<_, &str>(0) == standby { Ok(()) } else { Err("not yet") }
    })
    .await;
    // Whether commits wait at all is told to them by the checkpointer, which looks before each checkpoint.
    sql.batch_execute("CHECKPOINT").await.unwrap();
}
