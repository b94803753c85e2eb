//! The event triggers that announce schema changes in the log.

use super::finding::{Finding, Findings, Phase};
use super::query;
use super::reader::Reader;
use crate::config::SourceConfig;
use crate::source::SourceError;

/// What makes them; run again, it makes them anew.
const SCRIPT: &str = include_str!("../../sql/announce_ddl.sql");
/// Around the function's body in the script.
const QUOTE: &str = "$announce$";
/// What they fire on.
const EVENTS: [&str; 2] = ["ddl_command_end", "sql_drop"];

/// Says whether schema changes are announced; if not, and they should be, that is a warning: it can be done without.
pub(super) async fn check(
    client: &Reader<'_>,
    source: &SourceConfig,
    findings: &mut Findings,
) -> Result<bool, SourceError> {
    let rows = query(client, "read event triggers", include_str!("../../sql/event_triggers.sql"), &[]).await?;
    let fires = |event: &str| rows.iter().any(|row| row.get::<_, &str>("event") == event && row.get("enabled"));
    let body = SCRIPT.split(QUOTE).nth(1);
    let problem = if rows.is_empty() {
        Some("no event triggers announce schema changes")
    } else if !EVENTS.into_iter().all(fires) {
        Some("the event triggers that announce schema changes are disabled, or one of them is gone")
    } else if rows.iter().any(|row| Some(row.get::<_, &str>("body")) != body) {
        Some("the event triggers that announce schema changes are of another version of walcache")
    } else {
        None
    };
    if let (Some(problem), true) = (problem, source.event_triggers) {
        let every = source.schema_check_interval;
        let what =
            format!("{problem}: such changes are noticed within {every:?}, not exactly where they lie in the log");
        let remedy = "make them, as a superuser or as the administrator of a managed service; or set \
                      source.event_triggers = false to do without them";
        let finding = Finding::warning("ddl_not_announced", "schema walcache", what, remedy);
        findings.add(finding.mended_in(Phase::Announce, SCRIPT));
    }
    Ok(problem.is_none())
}
