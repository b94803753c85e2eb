//! What ends a verb before it has a result.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::demo::DemoError;
use crate::failpoint::FailpointError;
use crate::source::{EXIT_PERMISSION, EXIT_UNAVAILABLE, SourceError, Verdict};

/// A failure as the operator sees it.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    remedy: Option<String>,
    exit_code: u8,
}

impl Failure {
    pub(super) fn runtime(error: io::Error) -> Self {
        Failure { what: format!("start runtime: {error}"), remedy: None, exit_code: EXIT_UNAVAILABLE }
    }

    /// What was printed did not get to where it should.
    pub(super) fn output(error: io::Error) -> Self {
        Failure { what: format!("write to standard output: {error}"), remedy: None, exit_code: EXIT_UNAVAILABLE }
    }

    /// Arguments that clap cannot judge.
    pub(super) fn usage(what: String) -> Self {
        Failure { what, remedy: None, exit_code: 2 }
    }

    /// What is needed does not answer.
    pub(super) fn unavailable(what: String, remedy: String) -> Self {
        Failure { what, remedy: Some(remedy), exit_code: EXIT_UNAVAILABLE }
    }

    /// A right is missing.
    pub(super) fn permission(what: String, remedy: String) -> Self {
        Failure { what, remedy: Some(remedy), exit_code: EXIT_PERMISSION }
    }

    pub(super) fn file(path: &Path, error: &io::Error) -> Self {
        let what = format!("--url-file {}: cannot be read: {error}", path.display());
        Failure { what, remedy: None, exit_code: ConfigError::EXIT_CODE }
    }

    /// With what to do, where the failure itself does not say it.
    pub(super) fn or_remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(self.remedy.map_or(remedy.to_owned(), |known| format!("{known}; {remedy}")));
        self
    }

    /// Prints it, as JSON to standard output or as text to standard error.
    pub(super) fn report(self, json: bool) -> ExitCode {
        if json {
            let Failure { what, remedy, exit_code } = &self;
            say!("{}", json!({"ok": false, "error": {"what": what, "remedy": remedy, "exit_code": exit_code}}));
        } else {
            note!("walcache: {}", self.what);
            if let Some(remedy) = &self.remedy {
                note!("  mend: {remedy}");
            }
        }
        ExitCode::from(self.exit_code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let (what, remedy) = match &error {
            ConfigError::Read { source, field: None, .. } => (
                format!("{error}: {source}"),
                Some("name the configuration with --config, or in WALCACHE_CONFIG".to_owned()),
            ),
            ConfigError::Read { source, .. } => (format!("{error}: {source}"), None),
            _ => (error.to_string(), None),
        };
        Failure { what, remedy, exit_code: ConfigError::EXIT_CODE }
    }
}

impl From<FailpointError> for Failure {
    fn from(error: FailpointError) -> Self {
        Failure { what: error.to_string(), remedy: None, exit_code: ConfigError::EXIT_CODE }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Source(error) => error.into(),
            DaemonError::Findings(findings) => {
                let text: String = findings.iter().map(super::findings::text).collect();
                let what = format!("the database is not ready for this configuration:\n{}", text.trim_end());
                let all = findings.iter().all(|finding| finding.setup.is_some());
                let some = findings.iter().any(|finding| finding.setup.is_some());
                let remedy = match (all, some) {
                    (true, _) => "`walcache setup --apply` does all of it",
                    (false, true) => "mend what is not marked [setup], then `walcache setup --apply` does the rest",
                    (false, false) => "do what is said above",
                };
                let remedy = remedy.to_owned();
                Failure { what, remedy: Some(remedy), exit_code: 1 }
            }
            DaemonError::Session(error) => {
                let (remedy, exit_code) = match error.verdict() {
                    Verdict::Retry => (None, EXIT_UNAVAILABLE),
                    Verdict::Operator { remedy, exit_code } => (Some(remedy), exit_code),
                };
                Failure { what: error.to_string(), remedy, exit_code }
            }
            DaemonError::L2Url(_) => {
                Failure { what: error.to_string(), remedy: None, exit_code: ConfigError::EXIT_CODE }
            }
            DaemonError::Stopped => Failure { what: error.to_string(), remedy: None, exit_code: 0 },
            _ => Failure { what: error.to_string(), remedy: None, exit_code: EXIT_UNAVAILABLE },
        }
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Config(error) => error.into(),
            DemoError::Source(error) => error.into(),
            DemoError::Daemon(error) => error.into(),
            other => {
                let mut what = other.to_string();
                let mut source = other.source();
                while let Some(error) = source {
                    what.push_str(&format!(": {error}"));
                    source = error.source();
                }
                Failure { what, remedy: None, exit_code: EXIT_UNAVAILABLE }
            }
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let (remedy, exit_code) = match error.verdict() {
            Verdict::Retry => {
                ("see that the server in source.url runs and can be reached from here".to_owned(), EXIT_UNAVAILABLE)
            }
            Verdict::Operator { remedy, exit_code } => (remedy, exit_code),
        };
        Failure { what: error.to_string(), remedy: Some(remedy), exit_code }
    }
}
