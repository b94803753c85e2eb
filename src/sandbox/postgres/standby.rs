//! Standbys of a private Postgres, and their promotion.

use super::super::SandboxError;
use super::super::supervised::{LastSignal, Supervised};
use super::{LIMIT, Postgres, PostgresOptions, SUPERUSER, append, quote_setting};

impl Postgres {
    /// Copies this server with `pg_basebackup`, and starts the copy as its standby. It streams through a port on
    /// 127.0.0.1 (this server's, or a proxy's), has the same password, and its `primary_conninfo` names `database`, as
    /// the synchronization of slots wants it. Returns when it answers; it may be behind then.
    ///
    /// # Errors
    /// If `pg_basebackup` fails or is not installed beside `postgres`, or the standby does not come up.
    pub async fn standby(
        &self,
        upstream: u16,
        database: &str,
        options: &PostgresOptions,
    ) -> Result<Postgres, SandboxError> {
        let supervised = Supervised::new("standby", LastSignal::Quit, self.user)?;
        let (bindir, password) = (self.bindir.clone(), self.password.clone());
        let mut standby = Postgres { supervised, bindir, user: self.user, password, env: self.env.clone(), port: 0 };
        let mut command = standby.command("pg_basebackup");
        // However soon the server gives up on walsenders otherwise.
        command.env("PGOPTIONS", "-c wal_sender_timeout=0");
        command.env("PGPASSWORD", &self.password).args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.args(["-U", SUPERUSER, "-X", "stream", "-c", "fast", "-R", "--no-sync", "-D"]).arg(standby.data_dir());
        standby.supervised.spawn(&command, standby.user)?;
        let status = standby.supervised.wait(LIMIT).await?;
        if !status.success() {
            return Err(standby.supervised.exited("pg_basebackup", status));
        }
        let upstream = format!(
            "host=127.0.0.1 port={upstream} user={SUPERUSER} password={} dbname={}",
            self.password,
            database.replace(' ', "\\ ")
        );
        // Into the file that `-R` has written to: there the last line for a name counts, and before all other files.
        let mut text = quote_setting("primary_conninfo", &upstream);
        for (name, value) in &options.settings {
            text.push_str(&quote_setting(name, value));
        }
        let file = standby.data_dir().join("postgresql.auto.conf");
        append(&file, &text).map_err(SandboxError::io("write", file))?;
        standby.launch_on_free_port().await?;
        Ok(standby)
    }

    /// Makes a standby a primary, on a new timeline; returns when it takes writes.
    ///
    /// # Errors
    /// If it is no standby, or does not get there.
    pub async fn promote(&self) -> Result<(), SandboxError> {
        self.execute("postgres", "SELECT pg_promote(true, 60)").await
    }
}
