//! `make bench`: what the whole does, on private servers, each figure as a ratio to a limit measured in the same run.
//!
//! ```text
//! cargo bench -- [drain] [scale] [latency] [http] [--quick]
//! ```
//!
//! Nothing named means all. Exits with 1 only if something is broken, such as a wrong value in Redis: a missed aim is
//! a line in the table.
#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

mod bare_reader;
mod drain;
mod harness;
mod http;
mod latency;
mod nginx;
mod process;
mod report;
mod scale;
mod shop;

use std::process::ExitCode;

use anyhow::{Result, bail};
use report::Report;

/// What to measure, and how long.
struct Options {
    parts: Vec<String>,
    quick: bool,
}

const PARTS: [&str; 4] = ["drain", "scale", "latency", "http"];

fn options() -> Result<Options> {
    let mut options = Options { parts: Vec::new(), quick: false };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // From cargo.
            "--bench" => {}
            "--quick" => options.quick = true,
            part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
            other => bail!("unknown argument {other:?}; usage: cargo bench -- [{}] [--quick]", PARTS.join("] [")),
        }
    }
    if options.parts.is_empty() {
        options.parts = PARTS.map(str::to_owned).to_vec();
    }
    Ok(options)
}

async fn measure(options: &Options) -> Result<()> {
    let wants = |part: &str| options.parts.iter().any(|p| p == part);
    let tools = if wants("http") { Some(nginx::Tools::find()?) } else { None };
    let mut servers = vec![("postgres".to_owned(), "--version"), ("redis-server".to_owned(), "--version")];
    servers.extend(tools.iter().map(|tools| (tools.nginx.display().to_string(), "-v")));
    // As it is before anything is started.
    let machine = report::machine(&servers);
    let mut report = Report::default();
    if wants("drain") {
        drain::measure(&mut report, options.quick).await?;
    }
    if wants("scale") {
        scale::measure(&mut report, options.quick).await?;
    }
    if wants("latency") {
        latency::measure(&mut report, options.quick).await?;
    }
    if let Some(tools) = tools {
        http::measure(&mut report, &tools, options.quick).await?;
    }
    report.print(&machine);
    Ok(())
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(measure(&options))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
