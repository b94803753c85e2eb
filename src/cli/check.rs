//! `walcache check`: what keeps the configuration from working, with the SQL that mends it.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::findings::{CATALOG_TIMEOUT, count, text};
use crate::catalog::{self, RuleCost};
use crate::config::Config;
use crate::source;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    /// Check the configuration alone, without connecting.
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    // What is wrong with the configuration itself has been found while it was loaded.
    let (findings, announces_ddl, costs) = if arguments.offline {
        (Vec::new(), None, Vec::new())
    } else {
        let client = source::connect(&config.source, Some(CATALOG_TIMEOUT)).await?;
        let inspection = catalog::inspect(&client, config).await?;
        let of_warming = catalog::inspect_warming(&client, config, &inspection).await?;
        let mut findings = inspection.findings;
        findings.extend(of_warming);
        if let Some(l2) = &config.l2 {
            findings.extend(catalog::inspect_l2(l2).await);
        }
        (findings, Some(inspection.announces_ddl), inspection.costs)
    };
    let (errors, warnings) = count(&findings);
    if arguments.json {
        let noticed = announces_ddl.map(|announced| if announced { "event_trigger" } else { "poll" });
        say!(
            "{}",
            json!({
                "ok": errors == 0,
                "errors": errors,
                "warnings": warnings,
                "schema_changes": noticed,
                "findings": findings,
                "rules": costs,
            })
        );
    } else {
        for finding in &findings {
            say!("{}", text(finding).trim_end());
        }
        for RuleCost { entity, table, cost } in &costs {
            say!("entity {entity}: a change of a row of {table} {cost}");
        }
        if let Some(announced) = announces_ddl {
            let every = config.source.schema_check_interval;
            let how = if announced { "announced by event triggers, and looked for" } else { "looked for" };
            say!("schema changes: {how} every {every:?}");
        }
        let entities = config.entities.len();
        let scope = match (arguments.offline, &config.l2) {
            (true, _) => "configuration",
            (false, Some(_)) => "configuration, database and Redis",
            (false, None) => "configuration and database (no [l2]: cached in process only)",
        };
        say!("{scope}: entities {entities}, errors {errors}, warnings {warnings}");
        if findings.iter().any(|finding| finding.setup.is_some()) {
            say!("`walcache setup` prints, and `walcache setup --apply` applies, what is marked [setup]");
        }
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
