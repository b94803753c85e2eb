//! Whether a command is right as a whole, and what it names: said to whoever has sent it, in the words that they wrote.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cache::tally::Named;
use crate::config::nearest;
use crate::entity::Entity;
use crate::plan::Effect;
use crate::plan::command::{CommandPlanner, Kind, MAX_BYTES, Verdict};
use crate::serve::admin::Refusal;
use crate::void::Void;
use crate::void::glob::{self, Glob};

/// The members that a command may have, with the one that is the operator's.
const MEMBERS: [&str; 8] = ["entity", "key", "keys", "tag", "tags", "pattern", "patterns", "dry_run"];

const FORM: &str = "expected {\"entity\":..,\"keys\":[..]}, {\"entity\":..} for all of it, {\"tags\":[..]} or \
                    {\"patterns\":[..]}, with \"dry_run\":true to change nothing";

/// What a command names.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) named: Named,
    /// Tags that no entry can bear.
    pub(super) unmatched: Vec<String>,
}

/// A command as it was sent.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow)]
    invalidate: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

impl<'a> Sent<'a> {
    /// What it names one by one, in the order of its verdicts: keys, tags or patterns, as they stand in it.
    fn elements(&self) -> Vec<&'a RawValue> {
        let mut elements = Vec::new();
        for (name, value) in &self.invalidate {
            // A key may be an array itself.
            let is_list = matches!(&**name, "keys" | "tag" | "tags" | "pattern" | "patterns");
            match serde_json::from_str::<Vec<&RawValue>>(value.get()) {
                Ok(values) if is_list => elements.extend(values),
                _ if is_list || name == "key" => elements.push(value),
                _ => {}
            }
        }
        elements
    }

    fn entity(&self) -> Option<String> {
        self.invalidate.get("entity").and_then(|name| serde_json::from_str(name.get()).ok())
    }

    /// Why it is not of the form that it must have.
    fn malformed(&self) -> String {
        if let Some(unknown) = self.invalidate.keys().find(|name| !MEMBERS.contains(&&***name)) {
            let near = nearest(unknown, MEMBERS.into_iter()).map(|near| format!("; did you mean {near:?}?"));
            return format!("there is no member {unknown:?}{}; {FORM}", near.unwrap_or_default());
        }
        let names_tags = self.invalidate.keys().any(|name| name.starts_with("tag"));
        if names_tags && self.elements().iter().any(|element| element.get() == "\"\"") {
            return "a tag must not be empty".to_owned();
        }
        FORM.to_owned()
    }
}

/// What a command names, if it is right as a whole.
///
/// # Errors
/// Why it is not, naming the culprit.
pub(super) fn judge(entities: &[Arc<Entity>], command: &str) -> Result<Judged, Refusal> {
    if command.len() > MAX_BYTES {
        return Err(Refusal::Malformed(format!("what is said at a time has at most {MAX_BYTES} bytes")));
    }
    let Ok(sent) = serde_json::from_str::<Sent<'_>>(command) else { return Err(Refusal::Malformed(FORM.to_owned())) };
    let elements = sent.elements();
    let planned = CommandPlanner::new(entities.to_vec()).plan(command.as_bytes());
    let mut judged = Judged::default();
    for (position, (kind, verdict)) in planned.verdicts.into_iter().enumerate() {
        let element = elements.get(position).map_or("it", |element| element.get());
        let quoted: String = element.chars().take(100).collect();
        let text = || serde_json::from_str::<String>(element).unwrap_or_else(|_| element.to_owned());
        let why = match (verdict, kind) {
            (Verdict::Planned, Kind::Pattern) => match oddity(entities, &text()) {
                None => continue,
                Some(why) => format!("the pattern {quoted} {why}"),
            },
            (Verdict::Planned, _) => continue,
            (Verdict::UnknownTag, _) => {
                judged.unmatched.push(text());
                continue;
            }
            (Verdict::UnknownEntity, Kind::Pattern) => {
                let known = names(entities).join(", ");
                format!(
                    "the pattern {quoted} can match no key of any entity: it is of the form entity:key; configured: {known}"
                )
            }
            (Verdict::UnknownEntity, _) => {
                let name = sent.entity().unwrap_or_default();
                return Err(Refusal::UnknownEntity { name, configured: names(entities) });
            }
            (Verdict::BadKey, _) => {
                let entity = sent.entity().and_then(|name| entities.iter().find(|entity| entity.name == name));
                let name = entity.map_or("the entity", |entity| &entity.name);
                let why = entity.and_then(|entity| entity.key(&text()).err()).map(|error| format!(": {error}"));
                let why = why.unwrap_or_else(|| ": keys are spelled as in URLs".to_owned());
                format!("{quoted} can be no key of {name}{why}")
            }
            (Verdict::BadPattern, _) => {
                let most = glob::MAX_BYTES;
                format!("a pattern is of the form entity:key, and has at most {most} bytes; {quoted} is none")
            }
            (Verdict::Malformed, _) => sent.malformed(),
        };
        return Err(Refusal::Malformed(why));
    }
    for effect in planned.effects {
        match effect {
            Effect::Delete { entity, key, .. } => {
                let key = std::str::from_utf8(&key).ok().and_then(|key| entities[entity].stored_key(key));
                judged.named.keys.extend(key);
            }
            Effect::Discard { entity, .. } => judged.named.voids.push(Void::Entity { entity }),
            Effect::Void(void) => judged.named.voids.push(void),
            // Commands have no others.
            _ => {}
        }
    }
    if judged.named.keys.is_empty() && judged.named.voids.is_empty() {
        return Err(Refusal::Malformed(FORM.to_owned()));
    }
    Ok(judged)
}

fn names(entities: &[Arc<Entity>]) -> Vec<String> {
    entities.iter().map(|entity| entity.name.clone()).collect()
}

/// Why a pattern that reaches an entity can match none of its keys all the same.
fn oddity(entities: &[Arc<Entity>], pattern: &str) -> Option<String> {
    let glob = Arc::new(Glob::parse(pattern).ok()?);
    if !glob.is_closed() {
        return Some("has a [ without its ]: close it, or write \\[ for the bracket itself".to_owned());
    }
    let reached = entities.iter().filter(|entity| Void::of_pattern(&glob, entity.id, &entity.name).is_some());
    let mut why = None;
    for entity in reached {
        let shape = entity.shape();
        // Of a table that cannot be read nothing is known.
        let commas = shape.key.len().checked_sub(1)?;
        if glob.admits_commas(commas) {
            return None;
        }
        let columns: Vec<&str> = shape.key.iter().map(|column| column.name.as_str()).collect();
        why.get_or_insert_with(|| {
            let (name, columns) = (&entity.name, columns.join(","));
            format!("can match no key: one of {name} is {name}:{columns}, with {commas} comma(s); in a part it is %2C")
        });
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Shape};
    use crate::key::{KeyColumn, KeyType};

    fn entities() -> Vec<Arc<Entity>> {
        let entity = |id, name: &str, columns: &[&str], tags: &[&str]| {
            let column = |name: &&str| KeyColumn {
                name: (*name).to_owned(),
                type_oid: 23,
                key_type: KeyType::Integer(i32::MIN.into(), i32::MAX.into()),
                cast: String::new(),
            };
            let shape = Shape { key: columns.iter().map(column).collect(), ..Shape::unknown(0) };
            let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
            let definition = Definition { tags, ..Definition::rows(name, "public", name) };
            Arc::new(Entity::new(id, definition, "p:", shape))
        };
        vec![entity(0, "product", &["id"], &["tenant:{tenant_id}", "all"]), entity(1, "line", &["order", "n"], &[])]
    }

    fn said(target: &str) -> String {
        match judge(&entities(), &format!("{{\"invalidate\":{target}}}")) {
            Ok(judged) => format!("{} {:?}", judged.named.keys.len() + judged.named.voids.len(), judged.unmatched),
            Err(Refusal::Malformed(why)) => why,
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn what_can_concern_nothing_is_told() {
        for (target, wanted) in [
            (r#"{"tag":"tenant:7"}"#, "1 []"),
            (r#"{"tags":["all","teannt:7"]}"#, r#"2 ["teannt:7"]"#),
            (r#"{"pattern":"line:42,*"}"#, "1 []"),
            (r#"{"pattern":"product:4[0-9]"}"#, "1 []"),
            (r#"{"pattern":"*:42,*"}"#, "2 []"),
            (r#"{"entity":"product","keys":[1,"2"]}"#, "2 []"),
            (r#"{"entity":"line","key":[1,2]}"#, "1 []"),
        ] {
            assert_eq!(said(target), wanted, "{target}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (target, wanted) in [
            (
                r#"{"pattern":"product:42,*"}"#,
                r#"the pattern "product:42,*" can match no key: one of product is product:id"#,
            ),
            (
                r#"{"patterns":["line:*","line:[47]"]}"#,
                r#"the pattern "line:[47]" can match no key: one of line is line:order,n"#,
            ),
            (r#"{"pattern":"product:[4"}"#, "has a [ without its ]"),
            (r#"{"pattern":"nothing:*"}"#, r#"the pattern "nothing:*" can match no key of any entity"#),
            (r#"{"pattern":""}"#, "a pattern is of the form"),
            (r#"{"entity":"product","keys":[1,"x"]}"#, r#""x" can be no key of product: key column id is"#),
            (r#"{"entity":"line","key":[1,"x"]}"#, r#"[1,"x"] can be no key of line"#),
            (r#"{"entity":"prodct","key":1}"#, r#"UnknownEntity { name: "prodct", configured: ["product", "line"] }"#),
            (r#"{"entity":"product","kye":1}"#, r#"there is no member "kye"; did you mean "keys"?"#),
            (r#"{"tag":"all","dryrun":true}"#, r#"there is no member "dryrun"; did you mean "dry_run"?"#),
            (r#"{"tag":""}"#, "a tag must not be empty"),
            (r#"{"tags":["all",""]}"#, "a tag must not be empty"),
            (r#"{"tags":[]}"#, "expected {"),
            ("{}", "expected {"),
            ("7", "expected {"),
        ] {
            let said = said(target);
            assert!(said.contains(wanted), "{target}: {said}");
        }
    }
}
