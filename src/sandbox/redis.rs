//! A private Redis.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use super::supervised::{LastSignal, Signal, Supervised};
use super::{SandboxError, binaries, free_port};

/// How long a start or a stop may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take: others share the server, and the machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an answer may take while it is looked whether there are any.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How many ports are tried when others take them first.
const PORT_TRIES: usize = 10;

/// What a private Redis is like; by default it persists nothing and has 1024 databases.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    settings: Vec<(String, String)>,
}

impl RedisOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a directive of `redis.conf`, such as `("maxmemory", "2mb")`; the last one for a name counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps an append-only file, so that the data survives even [`Redis::kill`].
    pub fn append_only(self) -> Self {
        self.setting("appendonly", "yes").setting("appendfsync", "always")
    }
}

/// How a Redis is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisStop {
    /// Writes a dump first, so that [`Restart::KeepData`] finds everything.
    Save,
    /// Leaves whatever is on disk as it is.
    NoSave,
}

/// What a Redis starts with after it was stopped or killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// With what is on disk: the latest dump, or the append-only file.
    KeepData,
    /// With nothing.
    Empty,
}

/// A Redis of our own in its own directory, on 127.0.0.1. Dropping it removes it all.
#[derive(Debug)]
pub struct Redis {
    supervised: Supervised,
    binary: PathBuf,
    options: RedisOptions,
    port: u16,
}

impl Redis {
    /// Starts it; returns when it answers.
    pub async fn start(options: RedisOptions) -> Result<Self, SandboxError> {
        let binary = binaries::redis_server()?;
        let supervised = Supervised::new("redis", LastSignal::Kill, None)?;
        let mut redis = Redis { supervised, binary, options, port: 0 };
        let data = redis.data_dir();
        fs::create_dir(&data).map_err(SandboxError::io("create", data))?;
        for attempt in 1.. {
            redis.port = free_port();
            match redis.launch().await {
                Err(SandboxError::Exited { log, .. })
                    if attempt < PORT_TRIES && log.contains("Address already in use") => {}
                other => return other.map(|()| redis),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Starts it again on the same port after [`Redis::stop`] or [`Redis::kill`].
    pub async fn start_again(&self, restart: Restart) -> Result<(), SandboxError> {
        if restart == Restart::Empty {
            let data = self.data_dir();
            fs::remove_dir_all(&data)
                .and_then(|()| fs::create_dir(&data))
                .map_err(SandboxError::io("empty directory", data))?;
        }
        self.launch().await
    }

    /// Stops it in order and waits until it has ended.
    pub async fn stop(&self, stop: RedisStop) -> Result<(), SandboxError> {
        if stop == RedisStop::Save {
            self.save().await?;
        }
        // Without save points, which we never set, SIGTERM writes no dump.
        self.supervised.signal(Signal::TERM)?;
        self.supervised.wait(LIMIT).await.map(drop)
    }

    /// Writes a dump now. A later restart that keeps data begins with it: an old state, if there were writes since.
    pub async fn save(&self) -> Result<(), SandboxError> {
        let mut connection = self.connect().await?;
        Ok(redis::cmd("SAVE").exec_async(&mut connection).await?)
    }

    /// Kills it (SIGKILL).
    pub async fn kill(&self) -> Result<(), SandboxError> {
        self.supervised.kill().await
    }

    /// Stops it in its tracks (SIGSTOP): connections stay open, nothing answers.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        self.supervised.pause().await
    }

    /// Ends a [`Redis::pause`].
    pub fn resume(&self) -> Result<(), SandboxError> {
        self.supervised.resume()
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory with everything of this server.
    pub fn dir(&self) -> &Path {
        self.supervised.dir()
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.supervised.pid()
    }

    /// The URL of its database 0.
    pub fn url(&self) -> String {
        self.url_at(self.port, 0)
    }

    /// The URL of a database, through a port on 127.0.0.1: this server's or a proxy's.
    pub fn url_at(&self, port: u16, database: u16) -> String {
        format!("redis://127.0.0.1:{port}/{database}")
    }

    /// Connects to database 0; a task of the current runtime drives the connection until it is dropped.
    pub async fn connect(&self) -> Result<MultiplexedConnection, SandboxError> {
        self.connect_to(0).await
    }

    /// Connects to a database.
    pub async fn connect_to(&self, database: u16) -> Result<MultiplexedConnection, SandboxError> {
        self.connect_within(PATIENCE, database).await
    }

    /// Connects; neither that nor an answer may take longer than `limit`.
    async fn connect_within(&self, limit: Duration, database: u16) -> Result<MultiplexedConnection, SandboxError> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
        let client = redis::Client::open(self.url_at(self.port, database))?;
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// The last `lines` lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.supervised.log_tail(lines)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    async fn launch(&self) -> Result<(), SandboxError> {
        let mut command = Command::new(&self.binary);
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]).arg("--dir").arg(self.data_dir());
        command.args(["--save", "", "--appendonly", "no", "--databases", "1024", "--daemonize", "no"]);
        for (name, value) in &self.options.settings {
            command.arg(format!("--{name}")).arg(value);
        }
        self.supervised.spawn(&command, None)?;
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.supervised.ended()? {
                return Err(self.supervised.exited("redis-server", status));
            }
            if self.answers().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.supervised.timeout("become ready", LIMIT));
            }
            sleep(POLL).await;
        }
    }

    /// Whether it is this very process that answers on the port, with its data loaded.
    async fn answers(&self) -> bool {
        let Ok(mut connection) = self.connect_within(IMPATIENCE, 0).await else { return false };
        let mut info = redis::cmd("INFO");
        let Ok(info) = info.arg("server").arg("persistence").query_async::<String>(&mut connection).await else {
            return false;
        };
        let pid = self.pid().map(|pid| format!("process_id:{pid}"));
        let has = |line: &str| info.lines().any(|other| other == line);
        pid.is_some_and(|pid| has(&pid)) && has("loading:0")
    }
}
