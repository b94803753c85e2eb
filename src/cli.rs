//! Arguments to calls, and results to exit codes: 0 done, 1 a check failed, 2 usage, 69 unavailable, 77 permission,
//! 78 configuration.

#[macro_use]
mod output;

mod admin;
mod check;
mod demo;
mod explain;
mod failure;
mod findings;
mod invalidate;
mod log;
mod resync;
mod setup;
mod tap;
mod verify;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, LogFormat};

use failure::Failure;

/// Keeps Redis and in-process caches in step with Postgres by reading its write-ahead log.
#[derive(Debug, Parser)]
#[command(name = "walcache", version, about)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "WALCACHE_CONFIG", default_value = "walcache.toml")]
    config: PathBuf,
    /// The form of log lines; overrides log.format.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Keep the caches in step and serve reads, until SIGTERM.
    Run,
    /// Compare the configuration with the database, and print the SQL that mends each finding.
    Check(check::Arguments),
    /// Print, or apply, the SQL that the database needs before `run`.
    Setup(setup::Arguments),
    /// Compare cached entries with Postgres, through the running daemon; wrong ones are made unservable.
    Verify(verify::Arguments),
    /// Show what each tier and Postgres hold for a key, and how that goes together; or what a change would do to entries.
    Explain(explain::Arguments),
    /// Make entries unservable: by key, pattern, tag or entity. Said in the source's log, as applications do.
    Invalidate(invalidate::Arguments),
    /// Make everything unservable that is cached of an entity, or of all: reads fill it from Postgres anew.
    Resync(resync::Arguments),
    /// Show events as they are applied, and what they do to entries.
    Tap(tap::Arguments),
    /// Fill entries before anybody reads them, through the running daemon.
    Warm(warm::Arguments),
    /// Show it at work, with private servers, data, writers and readers. Needs no configuration.
    Demo(demo::Arguments),
}

/// Reads the process's arguments, does what they say, and gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::runtime(error).report(false),
    };
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> ExitCode {
    let json = match &cli.verb {
        Verb::Check(arguments) => arguments.json,
        Verb::Verify(arguments) => arguments.json,
        Verb::Explain(arguments) => arguments.json,
        Verb::Resync(arguments) => arguments.json,
        Verb::Invalidate(arguments) => arguments.json,
        Verb::Tap(arguments) => arguments.json,
        Verb::Warm(arguments) => arguments.json,
        Verb::Run | Verb::Setup(_) | Verb::Demo(_) => false,
    };
    let done = act(&cli).await;
    let done = output::lost().map_or(done, |error| Err(Failure::output(error)));
    done.unwrap_or_else(|failure| failure.report(json))
}

async fn act(cli: &Cli) -> Result<ExitCode, Failure> {
    match &cli.verb {
        Verb::Run => {
            let config = load(cli)?;
            crate::failpoint::configure()?;
            crate::daemon::run(config).await?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check(arguments) => check::run(arguments, &load(cli)?).await,
        Verb::Setup(arguments) => setup::run(arguments, &load(cli)?).await,
        Verb::Verify(arguments) => verify::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Explain(arguments) if arguments.is_dry_run() => explain::dry_run(arguments, &load(cli)?).await,
        Verb::Explain(arguments) => explain::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Invalidate(arguments) => invalidate::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Resync(arguments) => resync::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Tap(arguments) => tap::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Warm(arguments) => warm::run(arguments, &arguments.target.connect(cli)?).await,
        Verb::Demo(arguments) => demo::run(arguments, cli.log_format).await,
    }
}

fn load(cli: &Cli) -> Result<Config, Failure> {
    let mut config = Config::load(&cli.config)?;
    config.log.format = cli.log_format.unwrap_or(config.log.format);
    log::init(&config.log);
    Ok(config)
}
