//! `walcache explain`: what is held for one key.

use std::process::ExitCode;

use clap::Args;

use super::admin::{Admin, Target};
use super::failure::Failure;
use crate::audit::explain::Explanation;
use crate::source::EXIT_UNAVAILABLE;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The entity.
    entity: String,
    /// The key, spelled as in the URL of a read: `42`, `7,3`.
    key: String,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let answer = admin.get(&format!("/v1/explain/{}/{}", arguments.entity, arguments.key)).await?;
    let explanation: Explanation = admin.parse(&answer)?;
    if arguments.json {
        println!("{}", String::from_utf8_lossy(&answer));
    } else {
        println!("{explanation}");
    }
    Ok(match (explanation.is_wrong(), explanation.is_settled()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::SUCCESS,
        // Not equal, and not wrong either: it could not be seen.
        (false, false) => ExitCode::from(EXIT_UNAVAILABLE),
    })
}
