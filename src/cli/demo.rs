//! `walcache demo`: see [`crate::demo`].

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::log;
use crate::config::{LogConfig, LogFormat};
use crate::daemon::DaemonError;
use crate::demo::{self, Options};

/// What a shell expects of a process that SIGINT has ended.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How long to write and read. Default: until Ctrl-C; 10 where standard output is not a terminal.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Show the daemon's log.
    #[arg(long)]
    verbose: bool,
}

pub(super) async fn run(arguments: &Arguments, format: Option<LogFormat>) -> Result<ExitCode, Failure> {
    let level = if arguments.verbose { "info" } else { "warn" };
    log::init(&LogConfig { format: format.unwrap_or_default(), level: level.to_owned() });
    let prometheus = crate::metrics::install().map_err(|e| DaemonError::Metrics(e.to_string()))?;
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let watch = {
        let stop = stop.clone();
        async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.is_cancelled() {
                    // The private servers' guards clean up after us.
                    std::process::exit(INTERRUPTED);
                }
                stop.cancel();
            }
        }
    };
    let options = Options { duration: arguments.seconds.map(Duration::from_secs), lines: arguments.verbose };
    let watch = tokio::spawn(watch);
    let result = demo::run(options, prometheus, stop).await;
    watch.abort();
    Ok(if result? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
