//! `walcache warm`: fills entries before anybody reads them, and shows how far that has come.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{Admin, Target};
use super::failure::Failure;
use crate::config::{MAX_RATE, WarmOrder};
use crate::warm::{Phase, Progress, State};

/// How often the daemon is asked how far it has come.
const POLL: Duration = Duration::from_millis(250);
/// How often a line says so where there is no terminal.
const LINES: Duration = Duration::from_secs(10);
/// Cells of the bar.
const BAR: usize = 24;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The entity.
    entity: String,
    /// Of which rows: a condition in SQL over the table's columns.
    #[arg(long = "where", value_name = "SQL", conflicts_with_all = ["keys", "cancel"])]
    condition: Option<String>,
    /// Which keys: a SELECT that gives them, in the order of the key's columns.
    #[arg(long, value_name = "SQL", conflicts_with = "cancel")]
    keys: Option<String>,
    /// By key, from the least on or from the greatest.
    #[arg(long, value_enum, value_name = "ORDER", conflicts_with = "cancel")]
    order: Option<WarmOrder>,
    /// How many keys at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "cancel")]
    limit: Option<u64>,
    /// How many keys a second at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)),
          conflicts_with = "cancel")]
    rate: Option<u32>,
    /// Do not wait for the end. (Ctrl-C does not end it either.)
    #[arg(long)]
    no_wait: bool,
    /// End the entity's warming.
    #[arg(long)]
    cancel: bool,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<Progress>,
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let Arguments { entity, condition, keys, order, limit, rate, .. } = arguments;
    let mut body = json!({ "entity": entity });
    let texts = [("where", condition.clone()), ("keys", keys.clone())];
    let given = texts.into_iter().filter_map(|(name, text)| Some((name, Value::from(text?))));
    let numbers =
        [("limit", limit.map(Value::from)), ("rate", rate.map(Value::from)), ("order", order.map(|o| json!(o)))];
    for (name, value) in given.chain(numbers.into_iter().filter_map(|(name, value)| Some((name, value?)))) {
        body[name] = value;
    }
    if arguments.cancel {
        body["cancel"] = true.into();
    }
    let mut progress: Progress = admin.parse(&admin.post("/v1/warm", &body).await?)?;
    let terminal = !arguments.json && std::io::stderr().is_terminal();
    let mut told = Instant::now();
    while progress.state == State::Running && (arguments.cancel || !arguments.no_wait) {
        if terminal {
            // To a terminal that is gone there is nothing to say.
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", line(&progress, true));
        } else if !arguments.json && told.elapsed() >= LINES {
            told = Instant::now();
            note!("{}", line(&progress, false));
        }
        tokio::time::sleep(POLL).await;
        let jobs: Jobs = admin.parse(&admin.get("/v1/warm").await?)?;
        progress = jobs.jobs.into_iter().find(|job| job.job == progress.job).ok_or_else(|| {
            let what = format!("the daemon knows nothing of warming {entity} any more: it was started anew");
            Failure::unavailable(what, "`walcache warm` again: it goes on where that was interrupted".to_owned())
        })?;
    }
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    if arguments.json {
        // A struct of strings and finite numbers always serializes.
        say!("{}", serde_json::to_string(&progress).unwrap_or_default());
    } else {
        say!("{}", ended(&progress));
    }
    Ok(match progress.state {
        State::Done | State::Running => ExitCode::SUCCESS,
        State::Cancelled if arguments.cancel => ExitCode::SUCCESS,
        State::Cancelled | State::Failed => ExitCode::FAILURE,
    })
}

/// How far it has come, in a line.
fn line(progress: &Progress, bar: bool) -> String {
    let Progress { entity, done, total, seconds, filled, phase, waits_for, .. } = progress;
    let mut line = format!("{entity}: ");
    if let (Some(total), true) = (total.filter(|total| *total > 0), bar) {
        // An estimate may be exceeded.
        let cells = (BAR as u64 * (*done).min(total) / total) as usize;
        line.push_str(&format!("[{}{}] ", "#".repeat(cells), "-".repeat(BAR - cells)));
    }
    line.push_str(&format!("{done} of about {}", total.map_or("?".to_owned(), |total| total.max(*done).to_string())));
    if *seconds > 0.0 {
        line.push_str(&format!(", {:.0}/s, {filled} filled", *done as f64 / seconds));
    }
    if *phase == Phase::Hot {
        line.push_str(", what is read most first");
    }
    if let Some(what) = waits_for {
        line.push_str(&format!("; waits for {what}"));
    }
    line
}

/// What came of it.
fn ended(progress: &Progress) -> String {
    let Progress { entity, done, filled, absent, present, unkept, failed, strange, seconds, .. } = progress;
    let end = match progress.state {
        State::Running => return format!("{}; it goes on", line(progress, false)),
        State::Done => "warmed",
        State::Failed => "failed after",
        State::Cancelled => "ended after",
    };
    let mut text = format!("{entity}: {end} {done} keys in {seconds:.1} s: {filled} filled, {present} cached already");
    let others =
        [(absent, "of the filled without a row"), (unkept, "not kept"), (failed, "not read"), (strange, "no keys")];
    for (count, what) in others.into_iter().filter(|(count, _)| **count > 0) {
        text.push_str(&format!(", {count} {what}"));
    }
    if let Some(error) = &progress.error {
        text.push_str(&format!("\n  {error}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warm::Trigger;

    #[test]
    fn progress_in_words() {
        let mut progress = Progress::new(7, "product", Trigger::Operator);
        assert_eq!(line(&progress, true), "product: 0 of about ?");
        (progress.total, progress.done, progress.filled, progress.seconds) = (Some(1000), 250, 200, 0.5);
        assert_eq!(line(&progress, true), "product: [######------------------] 250 of about 1000, 500/s, 200 filled");
        progress.waits_for = Some("readers, who need Postgres more".into());
        progress.phase = Phase::Hot;
        assert_eq!(
            line(&progress, false),
            "product: 250 of about 1000, 500/s, 200 filled, what is read most first; waits for readers, who need \
             Postgres more"
        );
        (progress.done, progress.present, progress.state) = (1200, 1000, State::Done);
        assert!(line(&progress, true).starts_with("product: [########################] 1200 of about 1200"));
        assert_eq!(ended(&progress), "product: warmed 1200 keys in 0.5 s: 200 filled, 1000 cached already");
        (progress.state, progress.failed, progress.error) = (State::Failed, 3, Some("no such column".into()));
        let text =
            "product: failed after 1200 keys in 0.5 s: 200 filled, 1000 cached already, 3 not read\n  no such column";
        assert_eq!(ended(&progress), text);
    }
}
