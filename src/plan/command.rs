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
//! prefix of all left out: see [`crate::void::glob`]. It must be able to match a key of some entity. What a message names
//! again adds nothing, and more patterns of an entity than it may have at a time are all of it: so a message's effects
//! are bounded by what it may void, however many patterns it holds.
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
use crate::void::glob::{Glob, Reach};
use crate::void::tag::{Cell, Templates};
use crate::void::{MAX_PATTERNS, Void};

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
    /// No entity's tags can be so. It is among the effects all the same: other instances may be configured otherwise.
    UnknownTag,
}

/// What a message does.
#[derive(Debug, Default)]
pub struct Planned {
    /// Effects, to be applied as those of row changes are.
    pub effects: Vec<Effect>,
    /// Entries to be filled once the transaction is applied: each with its entity.
    pub warm: Vec<(usize, EntryKey)>,
    /// Entities to be warmed as they are configured to be, likewise.
    pub warm_all: Vec<usize>,
    /// What became of everything else than [`Planned::warm`] and [`Planned::warm_all`].
    pub verdicts: Vec<(Kind, Verdict)>,
}

/// Plans commands for the configured entities.
#[derive(Debug)]
pub struct CommandPlanner {
    entities: Vec<Arc<Entity>>,
    by_name: HashMap<String, usize>,
    /// The entities in the order of their names.
    sorted: Vec<usize>,
    /// What the entities' tags are made of.
    tags: Templates,
}

/// One message's plan under way.
struct Planning<'p> {
    planner: &'p CommandPlanner,
    out: Planned,
    /// Entities of which nothing is left to drop.
    discarded: HashSet<usize>,
    /// Those and others of which nothing is left to void.
    whole: HashSet<usize>,
    /// The patterns that void entries of an entity, by its id.
    patterns: HashMap<usize, HashSet<Arc<Glob>>>,
    cells: HashSet<Cell>,
}

/// What a command is about.
enum Target<'a> {
    Entity { name: Cow<'a, str>, keys: Option<Vec<&'a RawValue>> },
    Tags(Vec<Option<Cow<'a, str>>>),
    Patterns(Vec<Option<Cow<'a, str>>>),
}

impl CommandPlanner {
    /// For these entities.
    pub fn new(entities: Vec<Arc<Entity>>) -> Self {
        let by_name = entities.iter().map(|entity| (entity.name.clone(), entity.id)).collect();
        let mut sorted: Vec<usize> = (0..entities.len()).collect();
        sorted.sort_by_key(|id| &entities[*id].name);
        let tags = entities.iter().flat_map(|entity| &entity.tags).collect();
        CommandPlanner { entities, by_name, sorted, tags }
    }

    /// Plans what a message of at most [`MAX_BYTES`] says.
    pub fn plan(&self, content: &[u8]) -> Planned {
        let mut planning = Planning {
            planner: self,
            out: Planned::default(),
            discarded: HashSet::new(),
            whole: HashSet::new(),
            patterns: HashMap::new(),
            cells: HashSet::new(),
        };
        match std::str::from_utf8(content).ok().and_then(split) {
            Some(commands) => commands.into_iter().for_each(|command| planning.command(command)),
            None => planning.tell(Kind::Unknown, Verdict::Malformed),
        }
        planning.out
    }

    /// The entities that a pattern may concern, in their order.
    fn candidates(&self, glob: &Glob) -> impl Iterator<Item = &Arc<Entity>> {
        let literal = glob.literal_start();
        let none: &[Arc<Entity>] = &[];
        let (all, named) = match literal.iter().position(|byte| *byte == b':') {
            _ if literal.is_empty() => (&self.entities[..], Vec::new()),
            // No name holds a colon.
            Some(end) => {
                let name = std::str::from_utf8(&literal[..end]).ok();
                (none, name.and_then(|name| self.by_name.get(name)).copied().into_iter().collect())
            }
            None => {
                let name = |id: &usize| self.entities[*id].name.as_bytes();
                let from = self.sorted.partition_point(|id| name(id) < &literal[..]);
                let mut named: Vec<usize> =
                    self.sorted[from..].iter().take_while(|id| name(id).starts_with(&literal)).copied().collect();
                named.sort_unstable();
                (none, named)
            }
        };
        all.iter().chain(named.into_iter().map(move |id| &self.entities[id]))
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
                return match texts(target) {
                    Some(tags) => tags.into_iter().for_each(|tag| self.tag(tag)),
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
            Some(Target::Tags(tags)) => tags.into_iter().for_each(|tag| self.tag(tag)),
            Some(Target::Patterns(patterns)) => patterns.into_iter().for_each(|pattern| self.pattern(pattern)),
            Some(Target::Entity { name, keys }) => match (self.planner.by_name.get(&*name), keys) {
                (None, _) => self.tell(kind, Verdict::UnknownEntity),
                (Some(id), Some(keys)) => {
                    let entity = &self.planner.entities[*id];
                    keys.into_iter().for_each(|key| self.key(kind, entity, key));
                }
                (Some(id), None) if kind == Kind::Invalidate => {
                    self.tell(kind, Verdict::Planned);
                    self.whole.insert(*id);
                    if self.discarded.insert(*id) {
                        self.out.effects.push(Effect::Discard { entity: *id, cause: Cause::Command });
                    }
                }
                (Some(id), None) => self.out.warm_all.push(*id),
            },
        }
    }

    /// `None` is no text. No tag is empty.
    fn tag(&mut self, tag: Option<Cow<'_, str>>) {
        let Some(tag) = tag.filter(|tag| !tag.is_empty()) else { return self.tell(Kind::Tag, Verdict::Malformed) };
        self.tell(Kind::Tag, if self.planner.tags.can_make(&tag) { Verdict::Planned } else { Verdict::UnknownTag });
        let cell = Cell::of(&tag);
        if self.cells.insert(cell) {
            self.out.effects.push(Effect::Void(Void::Tag(cell)));
        }
    }

    /// `None` is no text.
    fn pattern(&mut self, pattern: Option<Cow<'_, str>>) {
        let Some(pattern) = pattern else { return self.tell(Kind::Pattern, Verdict::Malformed) };
        let Ok(glob) = Glob::parse(&pattern) else { return self.tell(Kind::Pattern, Verdict::BadPattern) };
        let (planner, glob) = (self.planner, Arc::new(glob));
        let mut reached = planner.candidates(&glob).filter(|entity| glob.can_begin(start(entity))).peekable();
        let verdict = if reached.peek().is_some() { Verdict::Planned } else { Verdict::UnknownEntity };
        self.tell(Kind::Pattern, verdict);
        if self.whole.len() == planner.entities.len() {
            // Whatever it may match is voided.
            return;
        }
        for entity in reached {
            if self.whole.contains(&entity.id) {
                continue;
            }
            let known = self.patterns.entry(entity.id).or_default();
            if known.contains(&glob) {
                continue;
            }
            let void = if known.len() >= MAX_PATTERNS || glob.reach(start(entity)) == Reach::All {
                self.whole.insert(entity.id);
                Void::Entity { entity: entity.id }
            } else {
                known.insert(glob.clone());
                Void::Pattern { entity: entity.id, glob: glob.clone() }
            };
            self.out.effects.push(Effect::Void(void));
        }
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
            (None, None, Some(tags), None) => Some(Target::Tags(tags)),
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

/// A string, or an array's elements: `None` for one that is no string, which keeps no other from its effect.
fn texts(value: &RawValue) -> Option<Vec<Option<Cow<'_, str>>>> {
    fn text(value: &RawValue) -> Option<Cow<'_, str>> {
        serde_json::from_str::<Text<'_>>(value.get()).ok().map(|text| text.0)
    }
    if value.get().starts_with('[') {
        return Some(elements(value)?.into_iter().map(text).collect());
    }
    text(value).map(|text| vec![Some(text)])
}

/// An object's members, in order, also those of one name.
fn members(object: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    serde_json::from_str::<Members<'_>>(object.get()).ok().map(|members| members.0)
}

/// `entity:`, without the prefix of all keys.
fn start(entity: &Entity) -> &[u8] {
    &entity.redis_prefix.as_bytes()[entity.redis_prefix.len() - entity.name.len() - 1..]
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
