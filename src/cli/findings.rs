//! What was found in the source database, for people.

use std::time::Duration;

use crate::catalog::{Finding, Severity};

/// Catalog queries are small; one that takes longer waits for a lock that DDL holds.
pub(super) const CATALOG_TIMEOUT: Duration = Duration::from_secs(30);

/// Errors and warnings.
pub(super) fn count(findings: &[Finding]) -> (usize, usize) {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    (errors, findings.len() - errors)
}

/// A finding for people, each line ended.
pub(super) fn text(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let setup = if finding.setup.is_some() { " [setup]" } else { "" };
    let mut text = format!(
        "{severity}[{}] {}: {}\n  mend: {}{setup}\n",
        finding.code, finding.subject, finding.what, finding.remedy
    );
    for line in finding.sql.iter().flat_map(|sql| sql.lines()) {
        text.push_str(&format!("  sql:  {line}\n"));
    }
    text
}
