//! `walcache verify`: compares what is cached with Postgres.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::admin::{Admin, Target};
use super::failure::Failure;
use crate::audit::Finding;
use crate::audit::verify::{Counts, Report, Unsettled};
use crate::source::EXIT_UNAVAILABLE;

/// Entries of one page: a second or so of work for the daemon.
const PAGE: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The entity; all of them if none is named.
    entity: Option<String>,
    /// Check about so many entries of each tier and entity.
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "all",
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    sample: u64,
    /// Check every entry of both tiers.
    #[arg(long)]
    all: bool,
    /// Only say what is wrong.
    #[arg(long)]
    no_repair: bool,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

/// What was checked of one entity.
#[derive(Default, Serialize)]
struct Verified {
    entity: String,
    l1: Counts,
    l2: Counts,
}

/// What was checked of all.
#[derive(Default, Serialize)]
struct Whole {
    ok: bool,
    entities: Vec<Verified>,
    findings: Vec<Finding>,
    unsettled: Vec<Unsettled>,
    problems: Vec<String>,
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let names = match &arguments.entity {
        Some(name) => vec![name.clone()],
        None => entities(admin).await?,
    };
    let mut whole = Whole::default();
    for name in names {
        verify(arguments, admin, &name, &mut whole).await?;
    }
    let total = |of: fn(&Counts) -> usize| whole.entities.iter().map(|e| of(&e.l1) + of(&e.l2)).sum::<usize>();
    let (equal, findings, changed, inconclusive) =
        (total(|c| c.ok), total(|c| c.findings), total(|c| c.changed), total(|c| c.inconclusive));
    let settled = inconclusive == 0 && whole.problems.is_empty();
    whole.ok = findings == 0 && settled;
    if arguments.json {
        // Structs of strings and numbers always serialize.
        say!("{}", serde_json::to_string(&whole).unwrap_or_default());
    } else {
        for finding in &whole.findings {
            say!("{}", text(finding));
        }
        for Unsettled { entity, key, tier, why } in &whole.unsettled {
            say!("without a verdict: {entity}:{key} in {}: {why}", tier.as_str());
        }
        for problem in &whole.problems {
            say!("problem: {problem}");
        }
        for Verified { entity, l1, l2 } in &whole.entities {
            say!("{entity}: L2 {}; L1 {}", counts(l2), counts(l1));
        }
        say!("verified: {equal} equal, {findings} wrong, {changed} changed meanwhile, {inconclusive} inconclusive");
    }
    Ok(match (findings, settled) {
        (1.., _) => ExitCode::FAILURE,
        (0, true) => ExitCode::SUCCESS,
        // Not equal, and not wrong either: it could not be seen.
        (0, false) => ExitCode::from(EXIT_UNAVAILABLE),
    })
}

async fn entities(admin: &Admin) -> Result<Vec<String>, Failure> {
    let status: Value = admin.parse(&admin.get("/v1/status").await?)?;
    let names = |e: &Value| e["name"].as_str().map(str::to_owned);
    let names: Vec<String> = status["entities"].as_array().into_iter().flatten().filter_map(names).collect();
    if names.is_empty() {
        let what = "the daemon has no entities yet: it waits for the source database".to_owned();
        return Err(Failure::unavailable(what, "try again once /readyz says 200".to_owned()));
    }
    Ok(names)
}

async fn verify(arguments: &Arguments, admin: &Admin, name: &str, whole: &mut Whole) -> Result<(), Failure> {
    let mut verified = Verified { entity: name.to_owned(), ..Verified::default() };
    let mut cursor: Option<String> = None;
    let progress = !arguments.json && std::io::stderr().is_terminal();
    loop {
        let mut body = json!({ "entity": name, "repair": !arguments.no_repair });
        if arguments.all {
            body["limit"] = PAGE.into();
            if let Some(cursor) = &cursor {
                body["cursor"] = cursor.as_str().into();
            }
        } else {
            body["sample"] = arguments.sample.into();
        }
        let report: Report = admin.parse(&admin.post("/v1/verify", &body).await?)?;
        add(&mut verified.l1, &report.l1);
        add(&mut verified.l2, &report.l2);
        whole.findings.extend(report.findings);
        whole.unsettled.extend(report.unsettled);
        whole.problems.extend(report.problems.into_iter().map(|problem| format!("{name}: {problem}")));
        if progress {
            let entries = checked(&verified.l1) + checked(&verified.l2);
            // To a terminal that is gone there is nothing to say.
            let _ = write!(std::io::stderr(), "\r{name}: {entries} entries\x1b[K");
        }
        cursor = report.next;
        if cursor.is_none() {
            break;
        }
    }
    if progress {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    whole.entities.push(verified);
    Ok(())
}

fn add(to: &mut Counts, more: &Counts) {
    to.ok += more.ok;
    to.findings += more.findings;
    to.changed += more.changed;
    to.inconclusive += more.inconclusive;
}

fn checked(counts: &Counts) -> usize {
    counts.ok + counts.findings + counts.changed + counts.inconclusive
}

fn counts(counts: &Counts) -> String {
    format!("{} checked, {} equal, {} wrong", checked(counts), counts.ok, counts.findings)
}

fn text(finding: &Finding) -> String {
    let Finding { entity, key, tier, cached, row, repaired } = finding;
    let repaired = match repaired {
        Some(true) => "made unservable",
        Some(false) => "could not be made unservable: run it again",
        None => "not repaired",
    };
    let absent = |absent| if absent { " (absent)" } else { "" };
    format!(
        "wrong: {entity}:{key} in {}: cached lo {} hi {} generation {} etag {:016x}{}; row hi {} etag {:016x}{}; {repaired}",
        tier.as_str(),
        cached.lo,
        cached.hi,
        cached.generation,
        cached.etag,
        absent(cached.absent),
        row.hi,
        row.etag,
        absent(row.absent),
    )
}
