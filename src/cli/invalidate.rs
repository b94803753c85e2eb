//! `walcache invalidate`: entries made unservable by an operator.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::admin::{Admin, Target};
use super::failure::Failure;
use crate::source::EXIT_UNAVAILABLE;
use crate::void::glob::Glob;

/// No entry can bear one of the tags.
const UNMATCHED: u8 = 1;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["keys", "tag", "entity"])))]
pub(super) struct Arguments {
    /// Keys, as entity:key (product:42), or patterns of keys as Redis has them (customer_orders:42,*); not both at a time.
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
            if self.tag.iter().any(String::is_empty) {
                return Err(Failure::usage("--tag: a tag must not be empty".to_owned()));
            }
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
        } else if self.keys.iter().any(|key| Glob::is_literal(key)) {
            // A key is spelled as in a URL, a pattern as Redis has it: `a%2Fb` as a pattern would void nothing, silently.
            return Err(Failure::usage("keys and patterns: one kind at a time".to_owned()));
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
        say!("{}", String::from_utf8_lossy(&answer));
    } else if arguments.dry_run {
        for tier in ["l1", "l2"] {
            say!("{}: {}", tier.to_uppercase(), tally(&done["held"][tier]));
        }
        say!("nothing was changed");
    } else if applied && done["unmatched"].as_array().is_none_or(|unmatched| unmatched.len() != arguments.tag.len()) {
        say!("done: nothing of it is served any more (LSN {})", text(&done["lsn"]));
    } else if !applied {
        let why = done["waits_for"].as_str().unwrap_or("this instance does not lead, or is behind");
        let lsn = text(&done["lsn"]);
        say!("written at LSN {lsn}, and not known to be applied: {why}; a read with X-Min-LSN {lsn} sees it");
    }
    let unmatched: Vec<&str> = done["unmatched"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for tag in &unmatched {
        note!("tag {tag:?}: no entry can bear it, so nothing was concerned: no entity has such tags (see `tags`)");
    }
    Ok(ExitCode::from(code(applied || arguments.dry_run, !unmatched.is_empty())))
}

/// The exit code. What is still served weighs more than a tag that nothing bears.
fn code(is_done: bool, has_unmatched: bool) -> u8 {
    match (is_done, has_unmatched) {
        // The instance that was asked has written it, and cannot tell whether it is applied.
        (false, _) => EXIT_UNAVAILABLE,
        (true, true) => UNMATCHED,
        (true, false) => 0,
    }
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
            (&["line:7,*", "line:8?"], json!({"patterns": ["line:7,*", "line:8?"]})),
            (&["--tag", "a", "--tag", "b:c"], json!({"tags": ["a", "b:c"]})),
            (&["--entity", "product", "--dry-run"], json!({"entity": "product", "dry_run": true})),
        ] {
            assert_eq!(body(args), Some(wanted), "{args:?}");
        }
        for bad in [
            &[][..],
            &["42"],
            &["a:1", "b:1"],
            &["line:7,*", "line:8"],
            &["file:a%2Fb", "file:x*"],
            &["a:1", "--tag", "x"],
            &["--tag", "x", "--entity", "a"],
            &["--entity", "a", "--entity", "b"],
            &["--tag", ""],
            &["--tag", "a", "--tag", ""],
        ] {
            assert_eq!(body(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_applied_is_told_first() {
        let all = [(true, false), (true, true), (false, false), (false, true)];
        assert_eq!(all.map(|(is_done, has_unmatched)| code(is_done, has_unmatched)), [0, 1, 69, 69]);
    }
}
