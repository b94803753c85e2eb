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
    next: String,
    missed: u64,
    restarted: bool,
    events: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Event {
    lsn: String,
    op: String,
    tables: Vec<String>,
    effects: Vec<Effect>,
    more: Option<u64>,
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
    let (mut from, mut left) = (None::<String>, arguments.count.unwrap_or(u64::MAX));
    while left > 0 {
        let query = format!("{}{entity}", from.map(|from| format!("from={from}")).unwrap_or_default());
        let body = admin.query("/v1/tap", &query).await?;
        let answer: Answer = admin.parse(&body)?;
        if let Some(gap) = gap(&answer) {
            note!("{gap}");
        }
        for event in answer.events {
            if left == 0 {
                break;
            }
            left -= 1;
            let heard = if arguments.json {
                say!("{}", event.get())
            } else {
                say!("{}", line(&admin.parse(event.get().as_bytes())?))
            };
            if !heard {
                return Ok(ExitCode::SUCCESS);
            }
        }
        from = Some(answer.next);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is not shown, if anything is.
fn gap(answer: &Answer) -> Option<String> {
    match answer {
        Answer { restarted: true, .. } => {
            Some("missed nobody knows how many events: the daemon was started anew, or another one answers".to_owned())
        }
        Answer { missed: 0, .. } => None,
        Answer { missed, .. } => Some(format!("missed {missed} events: they came faster than they were read")),
    }
}

fn line(event: &Event) -> String {
    if let Some(left_out) = event.left_out {
        return format!("{}  ... and {left_out} events more of this transaction", event.lsn);
    }
    let mut effects: Vec<String> = event.effects.iter().map(effect).collect();
    effects.extend(event.more.map(|more| format!("... and {more} more")));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(event: Value) -> String {
        line(&serde_json::from_value(event).unwrap())
    }

    #[test]
    fn events_in_words() {
        let tables = ["public.items"];
        let effects = json!([
            { "entity": "item", "key": "1", "effect": "void", "cause": "update" },
            { "entity": "list", "key": null, "effect": "lookup", "cause": null },
            { "entity": "item", "key": "item:1*", "effect": "void-pattern" },
            { "effect": "void-tag" },
        ]);
        let all = "void item:1 (update); lookup list; void-pattern item:1*; void-tag";
        let event = json!({ "lsn": "0/1", "op": "update", "tables": tables, "effects": effects });
        assert_eq!(shown(event), format!("0/1  update public.items -> {all}"));
        let event = json!({ "lsn": "0/1", "op": "command", "tables": [], "effects": effects, "more": 400 });
        assert_eq!(shown(event), format!("0/1  command -> {all}; ... and 400 more"));
        let event = json!({ "lsn": "0/1", "op": "more", "tables": [], "effects": [], "left_out": 7 });
        assert_eq!(shown(event), "0/1  ... and 7 events more of this transaction");
    }

    #[test]
    fn what_is_missing_is_said() {
        let said = |missed, restarted| gap(&Answer { next: String::new(), missed, restarted, events: Vec::new() });
        assert_eq!(said(0, false), None);
        assert_eq!(said(3, false).as_deref(), Some("missed 3 events: they came faster than they were read"));
        assert!(said(0, true).unwrap().contains("the daemon was started anew"));
    }
}
