//! What an inspection reports.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// walcache cannot run, or would serve wrong values.
    Error,
    /// walcache runs, with a drawback.
    Warning,
}

/// When `walcache setup` applies a finding's SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The role and its attributes.
    Role,
    /// Migrations of walcache's own schema.
    Schema,
    /// Grants to the role.
    Grant,
    /// The publication.
    Publication,
    /// The event triggers that announce schema changes; left out where the rights do not suffice.
    Announce,
    /// The slot: after the publication, or changes before it are decoded with the catalog of a time without it.
    Slot,
}

/// Something that is or may become a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A fixed name, for scripts.
    pub code: &'static str,
    /// What it is about: `server`, `role walcache`, `entity product`, ...
    pub subject: String,
    /// What is the case.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// The SQL that does it, where SQL can.
    pub sql: Option<String>,
    /// When `walcache setup` applies the SQL; `None` where it leaves that to the operator.
    pub setup: Option<Phase>,
}

impl Finding {
    pub(super) fn error(
        code: &'static str,
        subject: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (subject, what, remedy) = (subject.into(), what.into(), remedy.into());
        Finding { severity: Severity::Error, code, subject, what, remedy, sql: None, setup: None }
    }

    pub(super) fn warning(
        code: &'static str,
        subject: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding { severity: Severity::Warning, ..Finding::error(code, subject, what, remedy) }
    }

    /// Whether it is the other one, whatever is to be done about it: that depends on what else was found.
    pub fn is_same(&self, other: &Finding) -> bool {
        let of = |finding: &Finding| (finding.severity, finding.code);
        of(self) == of(other) && self.subject == other.subject && self.what == other.what
    }

    /// With the SQL that mends it.
    pub(super) fn sql(self, sql: impl Into<String>) -> Self {
        Finding { sql: Some(sql.into()), ..self }
    }

    /// With the SQL that `walcache setup` applies.
    pub(super) fn mended_in(self, phase: Phase, sql: impl Into<String>) -> Self {
        Finding { setup: Some(phase), ..self.sql(sql) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.subject, self.what, self.code)
    }
}

/// The findings of one inspection so far.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    /// Adds a finding that is none of those that are there: several entities may be made of one table.
    pub(super) fn add(&mut self, finding: Finding) {
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }
}
