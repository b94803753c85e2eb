//! Commands: what an application says of its own transaction, by `pg_logical_emit_message(true, 'walcache', ...)`.
//!
//! ```json
//! {"invalidate": {"entity": "product", "key": 42}}
//! [{"invalidate": {"entity": "line_item", "keys": [[7, 3], "8,1"]}}, {"warm": {"entity": "product", "keys": [42]}}]
//! {"invalidate": {"tag": "tenant:7"}}
//! {"tag": ["tenant:7", "tenant:8"]}
//! {"invalidate": {"pattern": "customer_orders:42,*"}}
//! ```
//!
//! An invalidation is an event of its transaction, at its place among the row changes: planned as an effect like them,
//! so that all that holds for them holds for it. Without a key it is of the whole entity. A message may hold one
//! command or an array of them; each key is judged by itself, and one that is refused keeps no other from its effect.
//! A member that is not known makes its command malformed: else a misspelled `key` would mean the whole entity.
//!
//! A tag is voided whether or not an entry bears it, or could. A pattern is matched with keys as they stand in Redis, the
//! prefix of all left out: see [`crate::void::glob`]. It must be able to match a key of some entity.
//!
//! A key is a string spelled as in URLs (`"7,3"`, each part percent-encoded), or a number for a key of one column, or an
//! array of the key columns' values, which are taken as they are.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Cause, Effect};
use crate::entity::{Entity, EntryKey};
use crate::void::Void;
use crate::void::glob::Glob;
use crate::void::tag::Cell;

/// The prefix of the messages that hold commands.
pub const PREFIX: &str = "walcache";

/// Bytes of the largest message that is read. More commands go into several messages.
pub const MAX_BYTES: usize = 1 << 20;

/// What a command wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Entries are to be dropped.
    Invalidate,
    /// Entries are to be filled once the transaction is visible.
    Warm,
    /// Entries that bear a tag are to be dropped.
    Tag,
    /// Entries whose keys match a pattern are to be dropped.
    Pattern,
    /// None that is known.
    Unknown,
}

/// What became of a command, or of one key that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is among the effects.
    Planned,
    /// It is not of the form that it should have.
    Malformed,
    /// It names no entity of the configuration.
    UnknownEntity,
    /// What it names can be no key of the entity.
    BadKey,
    /// It is no pattern.
    BadPattern,
}

/// What a message does.
#[derive(Debug, Default)]
pub struct Commanded {
    /// Effects, to be applied as those of row changes are.
    pub effects: Vec<Effect>,
    /// Entries to be filled once the transaction is applied: each with its entity.
    pub warm: Vec<(usize, EntryKey)>,
    /// Entities to be warmed as they are configured to be, likewise.
    pub warm_all: Vec<usize>,
    /// What became of everything else than [`Commanded::warm`] and [`Commanded::warm_all`].
    pub verdicts: Vec<(Kind, Verdict)>,
}

/// Plans commands for the configured entities.
#[derive(Debug)]
pub struct CommandPlanner {
    entities: Vec<Arc<Entity>>,
    by_name: HashMap<String, usize>,
}

/// One message's plan under way.
struct Planning<'p> {
    planner: &'p CommandPlanner,
    out: Commanded,
    /// Entities of which nothing is left to drop.
    discarded: HashSet<usize>,
}

/// What a command is about.
enum Target<'a> {
    Entity { name: Cow<'a, str>, keys: Option<Vec<&'a RawValue>> },
    Tags(Vec<Cow<'a, str>>),
    Patterns(Vec<Cow<'a, str>>),
}

impl CommandPlanner {
    /// For these entities.
    pub fn new(entities: Vec<Arc<Entity>>) -> Self {
        let by_name = entities.iter().map(|entity| (entity.name.clone(), entity.id)).collect();
        CommandPlanner { entities, by_name }
    }

    /// Plans what a message of at most [`MAX_BYTES`] says.
    pub fn plan(&self, content: &[u8]) -> Commanded {
        let mut planning = Planning { planner: self, out: Commanded::default(), discarded: HashSet::new() };
        match std::str::from_utf8(content).ok().and_then(split) {
            Some(commands) => commands.into_iter().for_each(|command| planning.command(command)),
            None => planning.tell(Kind::Unknown, Verdict::Malformed),
        }
        planning.out
    }
}

impl Planning<'_> {
    fn tell(&mut self, kind: Kind, verdict: Verdict) {
        self.out.verdicts.push((kind, verdict));
    }

    fn command(&mut self, command: &RawValue) {
        match members(command) {
            Some(members) if !members.is_empty() => {
                members.into_iter().for_each(|(name, target)| self.named(&name, target));
            }
            _ => self.tell(Kind::Unknown, Verdict::Malformed),
        }
    }

    fn named(&mut self, name: &str, target: &RawValue) {
        let kind = match name {
            "invalidate" => Kind::Invalidate,
            "warm" => Kind::Warm,
            "tag" => {
                return match texts(target).filter(|tags| is_named(tags)) {
                    Some(tags) => tags.iter().for_each(|tag| self.tag(tag)),
                    None => self.tell(Kind::Tag, Verdict::Malformed),
                };
            }
            _ => return self.tell(Kind::Unknown, Verdict::Malformed),
        };
        match Target::read(target) {
            None => self.tell(kind, Verdict::Malformed),
            // What bears a tag is not known by it.
            Some(Target::Tags(_) | Target::Patterns(_)) if kind != Kind::Invalidate => {
                self.tell(kind, Verdict::Malformed);
            }
            Some(Target::Tags(tags)) => tags.iter().for_each(|tag| self.tag(tag)),
            Some(Target::Patterns(patterns)) => patterns.iter().for_each(|pattern| self.pattern(pattern)),
            Some(Target::Entity { name, keys }) => match (self.planner.by_name.get(&*name), keys) {
                (None, _) => self.tell(kind, Verdict::UnknownEntity),
                (Some(id), Some(keys)) => {
                    let entity = &self.planner.entities[*id];
                    keys.into_iter().for_each(|key| self.key(kind, entity, key));
                }
                (Some(id), None) if kind == Kind::Invalidate => {
                    self.tell(kind, Verdict::Planned);
                    if self.discarded.insert(*id) {
                        self.out.effects.push(Effect::Discard { entity: *id, cause: Cause::Command });
                    }
                }
                (Some(id), None) => self.out.warm_all.push(*id),
            },
        }
    }

    fn tag(&mut self, tag: &str) {
        self.tell(Kind::Tag, Verdict::Planned);
        self.out.effects.push(Effect::Void(Void::Tag(Cell::of(tag))));
    }

    fn pattern(&mut self, pattern: &str) {
        let Ok(glob) = Glob::parse(pattern).map(Arc::new) else {
            return self.tell(Kind::Pattern, Verdict::BadPattern);
        };
        let entities = &self.planner.entities;
        let voids: Vec<_> = entities.iter().filter_map(|e| Void::of_pattern(&glob, e.id, &e.name)).collect();
        let verdict = if voids.is_empty() { Verdict::UnknownEntity } else { Verdict::Planned };
        self.tell(Kind::Pattern, verdict);
        self.out.effects.extend(voids.into_iter().map(Effect::Void));
    }

    fn key(&mut self, kind: Kind, entity: &Entity, key: &RawValue) {
        let Some(key) = entry_key(entity, key) else { return self.tell(kind, Verdict::BadKey) };
        if kind == Kind::Warm {
            return self.out.warm.push((entity.id, key));
        }
        self.tell(kind, Verdict::Planned);
        if !self.discarded.contains(&entity.id) {
            let key = key.redis().as_bytes().to_vec();
            self.out.effects.push(Effect::Delete { entity: entity.id, key, cause: Cause::Command });
        }
    }
}

impl<'a> Target<'a> {
    fn read(target: &'a RawValue) -> Option<Target<'a>> {
        let mut entity = None;
        let (mut tags, mut patterns): (Option<Vec<_>>, Option<Vec<_>>) = (None, None);
        // One that is there and empty names nothing; one that is not there, all.
        let mut keys: Option<Vec<&RawValue>> = None;
        for (name, value) in members(target)? {
            match &*name {
                "entity" if entity.is_none() => entity = Some(serde_json::from_str::<Text<'a>>(value.get()).ok()?.0),
                "key" => keys.get_or_insert_default().push(value),
                "keys" => keys.get_or_insert_default().extend(elements(value)?),
                "tag" | "tags" => tags.get_or_insert_default().extend(texts(value)?),
                "pattern" | "patterns" => patterns.get_or_insert_default().extend(texts(value)?),
                _ => return None,
            }
        }
        match (entity, keys, tags, patterns) {
            (Some(name), keys, None, None) => Some(Target::Entity { name, keys }),
            (None, None, Some(tags), None) if is_named(&tags) => Some(Target::Tags(tags)),
            (None, None, None, Some(patterns)) => Some(Target::Patterns(patterns)),
            _ => None,
        }
    }
}

/// The commands of a message: one, or those of an array.
fn split(content: &str) -> Option<Vec<&RawValue>> {
    let whole: &RawValue = serde_json::from_str(content).ok()?;
    if whole.get().starts_with('[') { elements(whole) } else { Some(vec![whole]) }
}

/// An array's elements.
fn elements(array: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(array.get()).ok()
}

/// A string, or an array of strings.
fn texts(value: &RawValue) -> Option<Vec<Cow<'_, str>>> {
    if value.get().starts_with('[') {
        let texts: Vec<Text<'_>> = serde_json::from_str(value.get()).ok()?;
        return Some(texts.into_iter().map(|text| text.0).collect());
    }
    serde_json::from_str::<Text<'_>>(value.get()).ok().map(|text| vec![text.0])
}

/// Whether no tag is empty: none can be.
fn is_named(tags: &[Cow<'_, str>]) -> bool {
    tags.iter().all(|tag| !tag.is_empty())
}

/// An object's members, in order, also those of one name.
fn members(object: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    serde_json::from_str::<Members<'_>>(object.get()).ok().map(|members| members.0)
}

/// The entry that a key names.
fn entry_key(entity: &Entity, key: &RawValue) -> Option<EntryKey> {
    let key = key.get();
    if key.starts_with('[') {
        let values: Vec<&RawValue> = serde_json::from_str(key).ok()?;
        let values: Vec<Cow<'_, str>> = values.into_iter().map(|value| scalar(value.get())).collect::<Option<_>>()?;
        return entity.key_of(&values).ok();
    }
    entity.key(&scalar(key)?).ok()
}

/// The text of a string, number, true or false. A number stays as it is written: its scale may matter.
fn scalar(json: &str) -> Option<Cow<'_, str>> {
    match json.bytes().next()? {
        b'"' => serde_json::from_str::<Text<'_>>(json).ok().map(|text| text.0),
        b'-' | b'0'..=b'9' | b't' | b'f' => Some(json.into()),
        _ => None,
    }
}

/// A string, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((name.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests;
