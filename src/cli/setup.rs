//! `walcache setup`: the SQL that the database needs before `run`, printed or applied.

use std::path::PathBuf;
use std::process::ExitCode;

use super::failure::Failure;
use super::findings::{CATALOG_TIMEOUT, count, text};
use crate::catalog::{self, Finding, Phase};
use crate::config::{Config, Secret, SourceConfig};
use crate::setup::{self, Applied, SetupError};
use crate::source::{self, SourceError, SourceUrl};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Apply the SQL instead of printing it.
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    role: Role,
}

/// Who does what source.url's role may not.
#[derive(Debug, Args)]
pub(super) struct Role {
    /// Connect with this URL, of a role that may do more, instead of source.url.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// As --url, from a file: arguments can be seen by others on this machine.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    url_file: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let admin = arguments.role.source(&config.source)?;
    let hint = "`walcache setup --url` takes a role that may create and grant";
    let explain = |error: SourceError| Failure::from(error).or_remedy(hint);
    // Making a slot waits for the transactions that are open: no limit on statements.
    let limit = if arguments.apply { None } else { Some(CATALOG_TIMEOUT) };
    let mut client = source::connect(&admin, limit).await.map_err(explain)?;
    let result = if arguments.apply {
        setup::apply(&mut client, config, done).await
    } else {
        setup::steps(&client, config).await.map(|steps| {
            print_sql(&steps);
            Applied::default()
        })
    };
    match result {
        Ok(_) if !arguments.apply => Ok(ExitCode::SUCCESS),
        Ok(applied) => {
            if !applied.changed {
                say!("nothing to do");
            }
            for (step, error) in &applied.left_out {
                say!("left out, since the role may not do it ({error}): {}", step.remedy);
            }
            verify(config).await
        }
        Err(SetupError::Source(error)) => Err(explain(error)),
        Err(SetupError::Refused(findings)) => {
            for finding in &findings {
                note!("{}", text(finding).trim_end());
            }
            note!("{} finding(s) that setup does not mend: mend them first", findings.len());
            Ok(ExitCode::FAILURE)
        }
    }
}

impl Role {
    /// The source with this role's URL, where one is given.
    pub(super) fn source(&self, source: &SourceConfig) -> Result<SourceConfig, Failure> {
        let mut admin = source.clone();
        if let Some(path) = &self.url_file {
            let text = std::fs::read_to_string(path);
            admin.url = Secret::from(text.map_err(|error| Failure::file(path, &error))?.trim());
        } else if let Some(url) = &self.url {
            admin.url = Secret::from(url.as_str());
        }
        SourceUrl::parse(&admin.url).map_err(|error| Failure::usage(format!("--url: {error}")))?;
        Ok(admin)
    }
}

fn print_sql(steps: &[Finding]) {
    if steps.is_empty() {
        say!("-- nothing to do");
    }
    for step in steps {
        let sql = step.sql.as_deref().unwrap_or_default();
        say!("-- {}: {}", step.subject, step.what);
        // A migration is applied as a whole or not at all.
        match step.setup {
            Some(Phase::Schema | Phase::Announce) => say!("BEGIN;\n{}\nCOMMIT;", sql.trim_end()),
            _ => say!("{};", sql.trim_end_matches(';')),
        };
    }
}

fn done(step: &Finding) {
    for line in step.sql.iter().flat_map(|sql| sql.lines()).filter(|line| !line.is_empty() && !line.starts_with("--")) {
        say!("applied: {line}");
    }
}

/// Looks at the result as the role of `source.url`, which is who will run.
async fn verify(config: &Config) -> Result<ExitCode, Failure> {
    let client = source::connect(&config.source, Some(CATALOG_TIMEOUT)).await?;
    let inspection = catalog::inspect(&client, config).await?;
    let of_warming = catalog::inspect_warming(&client, config, &inspection).await?;
    let findings: Vec<Finding> = inspection.findings.into_iter().chain(of_warming).collect();
    for finding in &findings {
        say!("{}", text(finding).trim_end());
    }
    let (errors, warnings) = count(&findings);
    say!("check: errors {errors}, warnings {warnings}");
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
