//! `walcache invalidate`: entries made unservable by an operator.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::admin::{Admin, Target};
use super::failure::Failure;
use crate::void::glob::Glob;

/// The instance that was asked has written it, and cannot tell whether it is applied.
const UNAVAILABLE: u8 = 69;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["keys", "tag", "entity"])))]
pub(super) struct Arguments {
    /// Keys, as entity:key (product:42), or patterns of keys as Redis has them (customer_orders:42,*).
    #[arg(value_name = "ENTITY:KEY")]
    keys: Vec<String>,
    /// A tag; may be given several times.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// All of an entity.
    #[arg(long, value_name = "ENTITY")]
    entity: Option<String>,
    /// Change nothing; count what there is.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON to standard output.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

impl Arguments {
    /// The body of the request: one kind of thing at a time.
    fn body(&self) -> Result<Value, Failure> {
        let mut body = if let Some(entity) = &self.entity {
            json!({ "entity": entity })
        } else if !self.tag.is_empty() {
            json!({ "tags": self.tag })
        } else if self.keys.iter().all(|key| Glob::is_literal(key)) {
            let form = |key: &String| Failure::usage(format!("{key}: not of the form entity:key"));
            let split =
                |key: &'_ String| key.split_once(':').map(|(e, k)| (e.to_owned(), k.to_owned())).ok_or(form(key));
            let keys: Vec<(String, String)> = self.keys.iter().map(split).collect::<Result<_, _>>()?;
            // One message is of one entity's keys.
            let entity = keys.first().map(|(entity, _)| entity.clone()).unwrap_or_default();
            if keys.iter().any(|(other, _)| *other != entity) {
                return Err(Failure::usage("keys of one entity at a time".to_owned()));
            }
            json!({ "entity": entity, "keys": keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>() })
        } else {
            json!({ "patterns": self.keys })
        };
        if self.dry_run {
            body["dry_run"] = true.into();
        }
        Ok(body)
    }
}

pub(super) async fn run(arguments: &Arguments, admin: &Admin) -> Result<ExitCode, Failure> {
    let answer = admin.post("/v1/invalidate", &arguments.body()?).await?;
    let done: Value = admin.parse(&answer)?;
    let applied = done["applied"] == true;
    if arguments.json {
        println!("{}", String::from_utf8_lossy(&answer));
    } else if arguments.dry_run {
        for tier in ["l1", "l2"] {
            println!("{}: {}", tier.to_uppercase(), tally(&done["held"][tier]));
        }
        println!("nothing was changed");
    } else if applied {
        println!("done: nothing of it is served any more (LSN {})", text(&done["lsn"]));
    } else {
        println!(
            "written at LSN {}, and not known to be applied: this instance does not lead, or is behind; a read with \
             X-Min-LSN {} sees it",
            text(&done["lsn"]),
            text(&done["lsn"])
        );
    }
    Ok(if applied || arguments.dry_run { ExitCode::SUCCESS } else { ExitCode::from(UNAVAILABLE) })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn tally(held: &Value) -> String {
    if held.is_null() {
        return "not there".to_owned();
    }
    let least = if held["complete"] == true { "" } else { "at least " };
    format!("{least}{} entries, of {} keys that were looked at", held["entries"], held["looked_at"])
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn body(args: &[&str]) -> Option<Value> {
        let line = Line::try_parse_from([&["invalidate"], args].concat()).ok()?;
        line.arguments.body().ok()
    }

    #[test]
    fn one_kind_of_thing_at_a_time() {
        for (args, wanted) in [
            (&["product:42"][..], json!({"entity": "product", "keys": ["42"]})),
            (&["line:7,3", "line:a%2Cb,1"], json!({"entity": "line", "keys": ["7,3", "a%2Cb,1"]})),
            (&["line:7,*"], json!({"patterns": ["line:7,*"]})),
            (&["line:7,*", "line:8"], json!({"patterns": ["line:7,*", "line:8"]})),
            (&["--tag", "a", "--tag", "b:c"], json!({"tags": ["a", "b:c"]})),
            (&["--entity", "product", "--dry-run"], json!({"entity": "product", "dry_run": true})),
        ] {
            assert_eq!(body(args), Some(wanted), "{args:?}");
        }
        for bad in [
            &[][..],
            &["42"],
            &["a:1", "b:1"],
            &["a:1", "--tag", "x"],
            &["--tag", "x", "--entity", "a"],
            &["--entity", "a", "--entity", "b"],
        ] {
            assert_eq!(body(bad), None, "{bad:?}");
        }
    }
}
