//! What the benches share with the integration tests: the daemon as a child process, its configuration, HTTP.
#![allow(dead_code, reason = "the tests use the rest")]

#[path = "../../tests/it/harness/config.rs"]
mod config;
#[path = "../../tests/it/harness/daemon.rs"]
mod daemon;
#[path = "../../tests/it/harness/http.rs"]
mod http;
#[path = "../../tests/it/harness/wait.rs"]
mod wait;

pub use config::{Config, Entity};
pub use daemon::{Daemon, cli};
pub use http::Http;
pub use wait::{LONG_LIMIT, WAIT_LIMIT, current_lsn, eventually, eventually_within};
