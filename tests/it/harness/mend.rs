//! What `check` says, and whether the SQL that it gives puts it right.

use serde_json::Value;

use super::{Config, Stage, cli};

/// The findings of `check`, whether or not it passes.
pub async fn findings(config: &Config) -> Vec<Value> {
    let finished = cli(config, &["check", "--json"], &[]).await;
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
    report["findings"].as_array().cloned().unwrap_or_else(|| panic!("{report}"))
}

/// The codes of the findings of that severity.
pub fn codes<'a>(findings: &'a [Value], severity: &str) -> Vec<&'a str> {
    let wanted = findings.iter().filter(|finding| finding["severity"] == severity);
    wanted.filter_map(|finding| finding["code"].as_str()).collect()
}

/// Runs the SQL of each error, as it is given, until there is none; gives the codes of those that were mended.
///
/// # Panics
/// If an error has no SQL, if its SQL fails, or if errors come again and again.
pub async fn mend(stage: &Stage, config: &Config) -> Vec<String> {
    let sql = stage.sql().await;
    let mut mended = Vec::new();
    for _ in 0..10 {
        let found = findings(config).await;
        let errors: Vec<&Value> = found.iter().filter(|finding| finding["severity"] == "error").collect();
        // One at a time: what mends one may mend others.
        let Some(error) = errors.first() else { return mended };
        let statements = error["sql"].as_str().unwrap_or_else(|| panic!("no SQL: {error}"));
        for statement in statements.split(";\n") {
            // Each by itself, as psql does: some cannot be in a transaction.
            sql.batch_execute(statement).await.unwrap_or_else(|e| panic!("{e}: {:?}\n{statement}", e.as_db_error()));
        }
        mended.push(error["code"].as_str().unwrap_or_default().to_owned());
    }
    panic!("it does not end: {mended:?}");
}
