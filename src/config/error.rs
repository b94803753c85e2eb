//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::secret::redact;

/// A field whose value breaks a constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field, as `section.key`.
    pub field: String,
    /// What it must be.
    pub constraint: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.constraint)
    }
}

/// A configuration that cannot be used. No variant's text holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names, cannot be read.
    #[error("{}{}: cannot be read", field.as_ref().map(|f| format!("{f} = ")).unwrap_or_default(), path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The field that names it; `None` for the configuration itself.
        field: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of another form than its key takes.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong, with the nearest known name.
        message: String,
    },
    /// An override from the environment.
    #[error("{variable}: {message}")]
    Override {
        /// The variable.
        variable: String,
        /// What is wrong with its name or value.
        message: String,
    },
    /// Both `url` and `url_file`.
    #[error("{section}.url and {section}.url_file are both set: keep one of them")]
    Conflict {
        /// `source` or `l2`.
        section: String,
    },
    /// Values that break constraints.
    #[error("{}: {}", path.display(), violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        violations: Vec<Violation>,
    },
}

impl ConfigError {
    /// The process's exit code for it: `EX_CONFIG` of sysexits.h.
    pub const EXIT_CODE: u8 = 78;

    pub(super) fn from_toml(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        ConfigError::Parse { path: path.to_owned(), line, column, message: explain(error.message()) }
    }
}

/// The message of a deserializer, with the nearest known name where a name is unknown, and without passwords.
pub(super) fn explain(message: &str) -> String {
    let message = message.trim();
    let unknown = message
        .strip_prefix("unknown field `")
        .map(|rest| ("key", rest))
        .or_else(|| message.strip_prefix("unknown variant `").map(|rest| ("value", rest)));
    let Some((kind, rest)) = unknown else { return redact(message) };
    let Some((name, expected)) = rest.split_once('`') else { return redact(message) };
    // What follows lists the known names in backticks.
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    format!("unknown {kind} `{name}`{}", suggestion(name, &known))
}

/// `; did you mean ...?`, or the known names where none is near.
pub(super) fn suggestion(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; known are {}", known.join(", ")),
    }
}

/// The known name most like `name`, if one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .map(|candidate| (strsim::jaro_winkler(&name, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
