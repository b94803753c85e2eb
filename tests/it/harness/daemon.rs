//! The `walcache` binary as a child process.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use walcache::lsn::Lsn;
use walcache::sandbox::{LastSignal, Signal, Supervised};

use super::{Config, Http, LONG_LIMIT, WAIT_LIMIT, eventually, eventually_within};

/// How long the daemon may take to end after SIGTERM: its grace period and a margin.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long a verb that ends by itself may take.
const CLI_LIMIT: Duration = Duration::from_secs(60);

/// A running `walcache run`. Dropping it kills it; when that happens in a panic, its output is printed first.
pub struct Daemon {
    supervised: Supervised,
    http: String,
    admin: String,
}

/// How a verb that ends by itself did.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Daemon {
    /// Starts the daemon and waits until both listeners are open.
    pub async fn start(config: &Config) -> Daemon {
        Daemon::start_with(config, &[]).await
    }

    /// As [`Daemon::start`], with environment variables.
    pub async fn start_with(config: &Config, env: &[(&str, &str)]) -> Daemon {
        let mut daemon = Daemon::spawn(config, env);
        (daemon.http, daemon.admin) = eventually("open both listeners", || async {
            if let Some(status) = daemon.supervised.ended().expect("look at the daemon") {
                // No use in waiting on.
                panic!("walcache ended with {status} before it was listening");
            }
            let log = daemon.log();
            listener(&log, "http").zip(listener(&log, "admin")).ok_or("no such lines in the log")
        })
        .await;
        daemon
    }

    /// Starts the daemon as a process and waits for nothing: for runs that are meant to fail, or to be killed early.
    pub fn spawn(config: &Config, env: &[(&str, &str)]) -> Daemon {
        let supervised = Supervised::new("daemon", LastSignal::Kill, None).expect("create a directory");
        let mut command = verb(&supervised, config, &["run"]);
        command.args(["--log-format", "json"]).envs(env.iter().copied());
        supervised.spawn(&command, None).expect("start walcache");
        Daemon { supervised, http: String::new(), admin: String::new() }
    }

    /// A client for the listener that serves reads.
    pub fn http(&self) -> Http {
        Http::new(&self.http)
    }

    /// A client for the admin listener.
    pub fn admin(&self) -> Http {
        Http::new(&self.admin)
    }

    /// `127.0.0.1:port` of the listener that serves reads.
    pub fn http_address(&self) -> &str {
        &self.http
    }

    /// `127.0.0.1:port` of the admin listener.
    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    /// `/v1/status`.
    pub async fn status(&self) -> Value {
        self.admin().get("/v1/status").await.expect(200).json()
    }

    /// The generation of its first entity.
    pub async fn generation(&self) -> u64 {
        self.status().await["entities"][0]["generation"].as_u64().expect("a generation")
    }

    /// The generation of an entity.
    pub async fn generation_of(&self, entity: &str) -> u64 {
        let status = self.status().await;
        let found = status["entities"].as_array().and_then(|all| all.iter().find(|e| e["name"] == entity));
        found.and_then(|found| found["generation"].as_u64()).expect("an entity of that name, with a generation")
    }

    /// Waits until the first entity has a later generation than this one.
    pub async fn until_generation_beyond(&self, before: u64) {
        eventually("start a new generation", || async {
            let now = self.generation().await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// Waits until L2 is trusted, or is not.
    pub async fn until_trusted(&self, wanted: bool) {
        eventually(&format!("have L2 trusted: {wanted}"), || async {
            let status = self.status().await;
            if status["l2"]["trusted"] == wanted { Ok(()) } else { Err(status["l2"].to_string()) }
        })
        .await;
    }

    /// Waits until `/readyz` says 200, until L2 is trusted where there is one, and until no entity waits for transactions
    /// that were open when it was published: other tests' on the same server, too. Until then nothing is cached.
    pub async fn wait_ready(&self) {
        self.wait_serving().await;
        eventually_within(LONG_LIMIT, "trust L2, or go on without", || async {
            let l2 = self.status().await["l2"].take();
            let settled = l2["configured"] == false || l2["trusted"] == true || l2["going_on_without"] == true;
            if settled { Ok(()) } else { Err(l2) }
        })
        .await;
        self.wait_joined().await;
    }

    /// Waits until `/readyz` says 200: entities may still wait for open transactions.
    pub async fn wait_serving(&self) {
        let admin = self.admin();
        eventually_within(LONG_LIMIT, "become ready", || async {
            let response = admin.get("/readyz").await;
            if response.status == 200 { Ok(()) } else { Err(response.text()) }
        })
        .await;
    }

    /// Waits until no entity waits for transactions that were open when it was published.
    pub async fn wait_joined(&self) {
        eventually_within(LONG_LIMIT, "have all entities join", || async {
            let status = self.status().await;
            let entities = status["entities"].as_array().into_iter().flatten();
            let waits = |entity: &Value| {
                entity["cause"].as_str().is_some_and(|cause| cause.starts_with("transactions are open that ran"))
            };
            if entities.clone().any(waits) { Err(status["entities"].to_string()) } else { Ok(()) }
        })
        .await;
    }

    /// Waits until the watermark, `applied_lsn` of `/v1/status`, is at or above `lsn`.
    pub async fn wait_applied(&self, lsn: Lsn) {
        self.wait_applied_within(WAIT_LIMIT, lsn).await;
    }

    /// As [`Daemon::wait_applied`], for what takes long.
    pub async fn wait_applied_within(&self, limit: Duration, lsn: Lsn) {
        let admin = self.admin();
        eventually_within(limit, &format!("apply up to {lsn}"), || async {
            let response = admin.send(hyper::Method::GET, "/v1/status", &[], bytes::Bytes::new()).await?;
            let status = response.json();
            match status["applied_lsn"].as_str().and_then(|text| text.parse::<Lsn>().ok()) {
                Some(applied) if applied >= lsn => Ok(()),
                _ => Err(status.to_string()),
            }
        })
        .await;
    }

    /// SIGKILL; returns when it is gone.
    pub async fn kill(&self) {
        self.supervised.kill().await.expect("kill walcache");
    }

    /// SIGTERM; waits for the end.
    pub async fn terminate(&self) -> ExitStatus {
        self.supervised.signal(Signal::TERM).expect("send SIGTERM to walcache");
        self.wait().await
    }

    /// Waits for the end of a daemon that ends by itself.
    pub async fn wait(&self) -> ExitStatus {
        self.supervised.wait(STOP_LIMIT).await.expect("wait for walcache")
    }

    /// SIGSTOP.
    pub async fn pause(&self) {
        self.supervised.pause().await.expect("pause walcache");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.supervised.resume().expect("resume walcache");
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.supervised.pid()
    }

    /// Everything it wrote to standard output and standard error so far.
    pub fn log(&self) -> String {
        let read = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        read(self.supervised.stdout()) + &read(self.supervised.stderr())
    }
}

impl Finished {
    /// It has ended with this code, and said all of this, on whichever stream; never a panic or a debug print.
    #[track_caller]
    pub fn ended(&self, code: i32, said: &[&str]) {
        let text = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.status.code(), Some(code), "{text}");
        for wanted in said {
            assert!(text.contains(wanted), "lacks {wanted:?}:\n{text}");
        }
        for unwanted in ["panicked", "Error {", "Error(", "Some("] {
            assert!(!text.contains(unwanted), "has {unwanted:?}:\n{text}");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- walcache wrote:\n{}---", self.supervised.log_tail(200));
        }
    }
}

/// Runs a verb that ends by itself, such as `["check"]`, with a configuration file.
pub async fn cli(config: &Config, args: &[&str], env: &[(&str, &str)]) -> Finished {
    let supervised = Supervised::new("cli", LastSignal::Kill, None).expect("create a directory");
    let mut command = verb(&supervised, config, args);
    command.envs(env.iter().copied());
    supervised.spawn(&command, None).expect("start walcache");
    let status = supervised.wait(CLI_LIMIT).await.expect("wait for walcache");
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    Finished { status, stdout: read(supervised.stdout()), stderr: read(supervised.stderr()) }
}

fn verb(supervised: &Supervised, config: &Config, args: &[&str]) -> Command {
    let file = supervised.dir().join("walcache.toml");
    fs::write(&file, config.to_toml()).expect("write the configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_walcache"));
    command.args(args).arg("--config").arg(file);
    command
}

/// The address in the log line that says that a listener is open.
fn listener(log: &str, name: &str) -> Option<String> {
    log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
        // tracing-subscriber nests the fields unless told to flatten them.
        let fields = line.get("fields").unwrap_or(&line);
        let matches = fields["message"] == "listening" && fields["listener"] == name;
        matches.then(|| fields["address"].as_str().map(str::to_owned)).flatten()
    })
}

#[test]
fn finds_the_listeners_in_the_log() {
    let log = concat!(
        "warming up\n",
        r#"{"level":"INFO","fields":{"message":"listening","listener":"admin","address":"127.0.0.1:1"}}"#,
        "\n",
        r#"{"level":"INFO","message":"listening","listener":"http","address":"127.0.0.1:2"}"#,
    );
    assert_eq!(listener(log, "admin").as_deref(), Some("127.0.0.1:1"));
    assert_eq!(listener(log, "http").as_deref(), Some("127.0.0.1:2"));
    assert_eq!(listener("", "http"), None);
}
