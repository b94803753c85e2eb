//! `walcache explain`: what is held for one key, or what a change would do.

use std::process::ExitCode;

use clap::Args;
use tokio_postgres::error::SqlState;

use super::admin::{Admin, Target};
use super::failure::Failure;
use super::findings::CATALOG_TIMEOUT;
use super::setup::Role;
use crate::audit::explain::Explanation;
use crate::config::{Config, TableName};
use crate::dry_run::{self, DryRunError};
use crate::source::{self, EXIT_UNAVAILABLE};

#[derive(Debug, Args)]
#[command(
    override_usage = "walcache explain [OPTIONS] ENTITY KEY\n       walcache explain [OPTIONS] --sql SQL\n       \
                            walcache explain [OPTIONS] --table TABLE --key KEY"
)]
pub(super) struct Arguments {
    /// The entity.
    #[arg(requires = "entity_key", required_unless_present_any = ["sql", "table"])]
    entity: Option<String>,
    /// The key, spelled as in the URL of a read: `42`, `7,3`.
    #[arg(value_name = "KEY")]
    entity_key: Option<String>,
    /// Show what this INSERT, UPDATE or DELETE would do to entries; it is run in a transaction that is rolled back.
    #[arg(long, value_name = "SQL", conflicts_with_all = ["entity", "table"])]
    sql: Option<String>,
    /// Show what a change of one row of this table would do to entries.
    #[arg(long, value_name = "TABLE", requires = "row", conflicts_with = "entity")]
    table: Option<TableName>,
    /// The row's primary key, spelled as in URLs.
    #[arg(long = "key", id = "row", value_name = "KEY", requires = "table")]
    row: Option<String>,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) role: Role,
    #[command(flatten)]
    pub(super) target: Target,
}

impl Arguments {
    /// Whether a change is asked of, which needs no daemon.
    pub(super) fn is_dry_run(&self) -> bool {
        self.sql.is_some() || self.table.is_some()
    }
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    // Required by clap where no change is asked of.
    let (entity, key) = (arguments.entity.as_deref().unwrap_or_default(), &arguments.entity_key);
    let answer = admin.get(&format!("/v1/explain/{entity}/{}", key.as_deref().unwrap_or_default())).await?;
    let explanation: Explanation = admin.parse(&answer)?;
    if arguments.json {
        say!("{}", String::from_utf8_lossy(&answer));
    } else {
        say!("{explanation}");
    }
    Ok(match (explanation.is_wrong(), explanation.is_settled()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::SUCCESS,
        // Not equal, and not wrong either: it could not be seen.
        (false, false) => ExitCode::from(EXIT_UNAVAILABLE),
    })
}

/// What a change would do.
pub(super) async fn dry_run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let source = arguments.role.source(&config.source)?;
    let mut client = source::connect(&source, Some(CATALOG_TIMEOUT)).await?;
    let report = match (&arguments.sql, &arguments.table) {
        (Some(sql), _) => dry_run::of_statement(&mut client, config, sql).await?,
        (None, Some(table)) => {
            dry_run::of_row(&mut client, config, table, arguments.row.as_deref().unwrap_or_default()).await?
        }
        // Not a dry run.
        (None, None) => return Err(Failure::usage("--sql or --table is needed".to_owned())),
    };
    if arguments.json {
        // Structs of strings and numbers always serialize.
        say!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        say!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

impl From<DryRunError> for Failure {
    fn from(error: DryRunError) -> Self {
        match error {
            DryRunError::Source(error) => error.into(),
            DryRunError::Refused(_, Some(SqlState::INSUFFICIENT_PRIVILEGE)) => {
                Failure::permission(error.to_string(), "a role that may run it is given with --url".to_owned())
            }
            DryRunError::Overtaken => Failure::unavailable(error.to_string(), "ask again".to_owned()),
            DryRunError::Late(_) => Failure::usage(error.to_string()).or_remedy("ask of fewer rows"),
            error => Failure::usage(error.to_string()),
        }
    }
}
