//! A private Postgres.

mod standby;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;
use rustix::process::geteuid;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::supervised::{LastSignal, Signal, Supervised, User};
use super::{SandboxError, binaries, free_port};

/// The superuser of every private Postgres.
const SUPERUSER: &str = "postgres";

/// How long `initdb`, a start or a stop may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How many ports are tried when others take them first.
const PORT_TRIES: usize = 10;

/// What a private Postgres is like; the default is what logical replication needs, made fast rather than durable.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    durable: bool,
    config: String,
    settings: Vec<(String, String)>,
    env: Vec<(String, String)>,
}

impl PostgresOptions {
    /// The defaults: `wal_level = logical`, 200 slots and walsenders, `fsync = off`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps `fsync` and `full_page_writes` on, as a production server has them: for measurements.
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Adds the text of a whole `postgresql.conf`, before the single settings.
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Sets a parameter, such as `("timezone", "Asia/Kolkata")`; the last one for a name counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the server an environment variable, such as `("LD_PRELOAD", "...")`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What is appended to the `postgresql.conf` that `initdb` wrote.
    fn file(&self) -> String {
        let switch = if self.durable { "on" } else { "off" };
        // Dynamic shared memory in files below the data directory goes away with it, even after a hard kill.
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\n\
             wal_level = logical\n\
             max_wal_senders = 200\n\
             max_replication_slots = 1000\n\
             max_connections = 200\n\
             fsync = {switch}\n\
             full_page_writes = {switch}\n\
             dynamic_shared_memory_type = mmap\n\
             timezone = 'UTC'\n\
             log_timezone = 'UTC'\n\
             {}",
            self.config
        );
        for (name, value) in &self.settings {
            text.push_str(&quote_setting(name, value));
        }
        text
    }
}

/// How a Postgres is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients to leave (SIGTERM).
    Smart,
    /// Disconnects the clients and writes a checkpoint (SIGINT); walsenders get to send what there is.
    Fast,
    /// Stops at once, and recovers from the log at the next start (SIGQUIT).
    Immediate,
}

/// A Postgres of our own: new cluster, own directory, TCP on 127.0.0.1 and a Unix socket, `scram-sha-256` with a random
/// password. Dropping it removes it all.
#[derive(Debug)]
pub struct Postgres {
    supervised: Supervised,
    bindir: PathBuf,
    user: Option<User>,
    password: String,
    env: Vec<(String, String)>,
    port: u16,
}

impl Postgres {
    /// Creates a cluster and starts it; returns when it answers.
    pub async fn start(options: PostgresOptions) -> Result<Self, SandboxError> {
        let bindir = binaries::postgres_bindir()?;
        let user = server_user()?;
        let supervised = Supervised::new("postgres", LastSignal::Quit, user)?;
        let password = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
        let env = options.env.clone();
        let mut postgres = Postgres { supervised, bindir, user, password, env, port: 0 };
        postgres.initdb().await?;
        let config = postgres.data_dir().join("postgresql.conf");
        append(&config, &options.file()).map_err(SandboxError::io("write", config))?;
        postgres.launch_on_free_port().await?;
        Ok(postgres)
    }

    async fn launch_on_free_port(&mut self) -> Result<(), SandboxError> {
        for attempt in 1.. {
            self.port = free_port();
            match self.launch().await {
                Err(SandboxError::Exited { log, .. })
                    if attempt < PORT_TRIES && log.contains("could not create any TCP/IP sockets") => {}
                other => return other,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Starts it again on the same port and data after [`Postgres::stop`] or [`Postgres::kill`].
    pub async fn start_again(&self) -> Result<(), SandboxError> {
        self.launch().await
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(&self, mode: StopMode) -> Result<(), SandboxError> {
        self.supervised.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        self.supervised.wait(LIMIT).await.map(drop)
    }

    /// Kills the postmaster and all its children (SIGKILL), as an out-of-memory killer or a power failure would.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        self.supervised.kill().await
    }

    /// Stops all its processes in their tracks (SIGSTOP): connections stay open, nothing answers.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        self.supervised.pause().await
    }

    /// Ends a [`Postgres::pause`].
    pub fn resume(&self) -> Result<(), SandboxError> {
        self.supervised.resume()
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The directory with everything of this server; its Unix socket is there too.
    pub fn dir(&self) -> &Path {
        self.supervised.dir()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// The directory with Postgres' programs, `psql` and `pgbench` among them.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.supervised.pid()
    }

    /// The URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_at(self.port, database)
    }

    /// As [`Postgres::url`], through another port on 127.0.0.1, such as a proxy's.
    pub fn url_at(&self, port: u16, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{port}/{database}", self.password)
    }

    /// Connects over TCP as superuser; a task of the current runtime drives the connection until the client is dropped.
    pub async fn connect(&self, database: &str) -> Result<Client, SandboxError> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).dbname(database);
        self.connect_with(config).await
    }

    /// Runs SQL statements, separated by semicolons, in a connection of their own.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), SandboxError> {
        Ok(self.connect(database).await?.batch_execute(sql).await?)
    }

    /// Creates an empty database.
    pub async fn create_database(&self, name: &str) -> Result<(), SandboxError> {
        let name = name.replace('"', "\"\"");
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\"")).await
    }

    /// The last `lines` lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.supervised.log_tail(lines)
    }

    async fn initdb(&self) -> Result<(), SandboxError> {
        let secret = self.dir().join("password");
        fs::write(&secret, &self.password).map_err(SandboxError::io("write", &secret))?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.data_dir()).arg("--pwfile").arg(&secret);
        command.args(["-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"]);
        self.supervised.spawn(&command, self.user)?;
        let status = self.supervised.wait(LIMIT).await?;
        if !status.success() {
            return Err(self.supervised.exited("initdb", status));
        }
        fs::remove_file(&secret).map_err(SandboxError::io("remove", secret))
    }

    async fn launch(&self) -> Result<(), SandboxError> {
        let mut command = self.command("postgres");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("-D").arg(self.data_dir());
        // On the command line, where neither a configuration file nor ALTER SYSTEM can move the server.
        command.arg("-p").arg(self.port.to_string()).arg("-k").arg(self.dir());
        self.supervised.spawn(&command, self.user)?;
        self.wait_ready().await
    }

    /// Waits until the server takes connections, asking over the Unix socket: whoever answers there is ours.
    async fn wait_ready(&self) -> Result<(), SandboxError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.supervised.ended()? {
                return Err(self.supervised.exited("postgres", status));
            }
            let mut config = tokio_postgres::Config::new();
            config.host_path(self.dir()).port(self.port).dbname("postgres");
            match self.connect_with(config).await {
                Ok(_) => return Ok(()),
                Err(SandboxError::Postgres(error))
                    if error.code().is_none_or(|code| *code == SqlState::CANNOT_CONNECT_NOW) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(self.supervised.timeout("become ready", LIMIT));
            }
            sleep(POLL).await;
        }
    }

    async fn connect_with(&self, mut config: tokio_postgres::Config) -> Result<Client, SandboxError> {
        config.user(SUPERUSER).password(&self.password).connect_timeout(Duration::from_secs(10));
        let (client, connection) = config.connect(NoTls).await?;
        // Its error reaches the caller through the client's next call.
        tokio::spawn(connection);
        Ok(client)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bindir.join(program));
        // Messages in English, whatever the caller's language: we look for one of them.
        command.env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGPORT").current_dir(self.dir());
        command
    }
}

/// Whom to run Postgres as when we are root: `postgres`, else `nobody`.
fn server_user() -> Result<Option<User>, SandboxError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let path = "/etc/passwd";
    let users = fs::read_to_string(path).map_err(SandboxError::io("read", path))?;
    let user = ["postgres", "nobody"].iter().find_map(|name| find_user(&users, name));
    user.map(Some).ok_or(SandboxError::NoUser)
}

/// The ids in the line `name:password:uid:gid:...`.
fn find_user(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
    Some(User { uid: ids.next()?, gid: ids.next()? })
}

/// A line of a configuration file.
fn quote_setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_users_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody2:x:7:8::/:\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(find_user(passwd, "nobody"), Some(User { uid: 65534, gid: 65533 }));
        assert_eq!(find_user(passwd, "postgres"), None);
    }

    #[test]
    fn quotes_settings_and_keeps_their_order() {
        let options = PostgresOptions::new().setting("a", "it's").config("a = 1");
        assert!(options.file().ends_with("a = 1\na = 'it''s'\n"), "{}", options.file());
    }
}
