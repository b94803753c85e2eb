//! `walcache resync`: a new generation.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::admin::{Admin, Target};
use super::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The entity; all of them if none is named.
    entity: Option<String>,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let body = arguments.entity.as_ref().map_or_else(|| json!({}), |entity| json!({ "entity": entity }));
    let answer = admin.post("/v1/resync", &body).await?;
    if arguments.json {
        say!("{}", String::from_utf8_lossy(&answer));
    } else {
        let done: Value = admin.parse(&answer)?;
        let what = arguments.entity.as_deref().unwrap_or("all entities");
        say!("{what}: generation {} begins; nothing older is served, and reads fill from Postgres", done["generation"]);
    }
    Ok(ExitCode::SUCCESS)
}
