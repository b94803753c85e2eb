//! `walcache tap`: events as they are applied, and what they do to entries.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::admin::{Admin, Target};
use super::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only what concerns this entity.
    entity: Option<String>,
    /// End after so many events; else with Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print a line of JSON for each event.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Deserialize)]
struct Answer {
    next: u64,
    missed: u64,
    events: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Event {
    lsn: String,
    op: String,
    tables: Vec<String>,
    effects: Vec<Effect>,
    left_out: Option<u64>,
}

#[derive(Deserialize)]
struct Effect {
    entity: Option<String>,
    key: Option<String>,
    effect: String,
    cause: Option<String>,
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let entity = arguments.entity.as_ref().map(|name| format!("&entity={name}")).unwrap_or_default();
    let (mut from, mut left) = (None::<u64>, arguments.count.unwrap_or(u64::MAX));
    while left > 0 {
        let query = format!("{}{entity}", from.map(|from| format!("from={from}")).unwrap_or_default());
        let body = admin.query("/v1/tap", &query).await?;
        let answer: Answer = admin.parse(&body)?;
        if answer.missed > 0 {
            eprintln!("missed {} events: they came faster than they were read", answer.missed);
        }
        for event in answer.events {
            if left == 0 {
                break;
            }
            left -= 1;
            if arguments.json {
                println!("{}", event.get());
            } else {
                println!("{}", line(&admin.parse(event.get().as_bytes())?));
            }
        }
        from = Some(answer.next);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(event: &Event) -> String {
    if let Some(left_out) = event.left_out {
        return format!("{}  ... and {left_out} events more of this transaction", event.lsn);
    }
    let effects: Vec<String> = event.effects.iter().map(effect).collect();
    let tables = event.tables.join(", ");
    format!("{}  {} {tables}{}-> {}", event.lsn, event.op, if tables.is_empty() { "" } else { " " }, effects.join("; "))
}

fn effect(effect: &Effect) -> String {
    let Effect { entity, key, effect, cause } = effect;
    let of = match (entity, key) {
        // A pattern names its entity itself.
        (Some(_), Some(key)) if effect == "void-pattern" => format!(" {key}"),
        (Some(entity), Some(key)) => format!(" {entity}:{key}"),
        (Some(entity), None) => format!(" {entity}"),
        (None, _) => String::new(),
    };
    let cause = cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("{effect}{of}{cause}")
}
