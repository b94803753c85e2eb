//! Tags: names that entries bear, made of their columns, by which many are voided at once.
//!
//! A tag is configured as a template: `tenant:{tenant_id}`, `all-products`. A column of the key stands for its text as in
//! a URL, decoded; any other column for its text in the value's JSON, strings without their quotes. Where a column is null
//! or not there, the entry does not bear the tag; so an entry that says that the row is absent bears those that its key
//! alone tells. `{{` and `}}` stand for braces.

mod templates;

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use self::templates::Templates;
use crate::key::{KeyColumn, hash, parts};

/// Cells that tags are hashed into. Tags that share one are voided together, which costs misses.
pub const CELLS: usize = 1 << 16;

/// The cell of a tag, on every instance alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell(u16);

impl Cell {
    /// The cell of a tag.
    pub fn of(tag: &str) -> Cell {
        // The lowest bits of the hash.
        Cell(hash(tag.as_bytes()) as u16)
    }

    /// Its position.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The cell at a position, if there is one.
    pub fn at(index: usize) -> Option<Cell> {
        u16::try_from(index).ok().map(Cell)
    }
}

/// What a tag is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Column(String),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It would make empty tags.
    #[error("a tag must not be empty")]
    Empty,
    /// A brace without its partner, or a column without a name.
    #[error("expected {{column}} at {0:?}; {{{{ and }}}} stand for braces")]
    Brace(String),
}

impl std::str::FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let bad = || TemplateError::Brace(rest.chars().take(60).collect());
            let doubled = rest.starts_with("{{") || rest.starts_with("}}");
            if doubled {
                literal.push(c);
                rest = &rest[2..];
            } else if c == '{' {
                let end = rest.find('}').ok_or_else(bad)?;
                let name = &rest[1..end];
                if name.is_empty() || name.contains('{') {
                    return Err(bad());
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Column(name.to_owned()));
                rest = &rest[end + 1..];
            } else if c == '}' {
                return Err(bad());
            } else {
                literal.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if parts.is_empty() { Err(TemplateError::Empty) } else { Ok(Template(parts)) }
    }
}

impl Template {
    /// The columns that it is made of.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// Whether this can be a tag of it, whatever the columns' texts are.
    pub fn can_make(&self, tag: &str) -> bool {
        let mut rest = tag;
        // Whether what comes next may be preceded by a column's text.
        let mut after_column = false;
        for (i, part) in self.0.iter().enumerate() {
            match part {
                Part::Column(_) => after_column = true,
                Part::Text(text) => {
                    let is_last = i + 1 == self.0.len();
                    let left = match (after_column, is_last) {
                        (false, _) => rest.strip_prefix(text.as_str()),
                        (true, true) => return rest.ends_with(text.as_str()),
                        // The first place: whatever follows has the most room then.
                        (true, false) => rest.find(text.as_str()).map(|at| &rest[at + text.len()..]),
                    };
                    let Some(left) = left else { return false };
                    (rest, after_column) = (left, false);
                }
            }
        }
        after_column || rest.is_empty()
    }

    /// The tag, if every column has a text.
    fn fill<'a>(&self, column: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
        let mut tag = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => tag.push_str(text),
                Part::Column(name) => tag.push_str(column(name)?),
            }
        }
        Some(tag)
    }
}

/// The tags that an entry bears: `key` is its key within its entity, `value` its JSON, `None` if the row is absent.
pub fn tags(templates: &[Template], columns: &[KeyColumn], key: &str, value: Option<&[u8]>) -> Vec<String> {
    if templates.is_empty() {
        return Vec::new();
    }
    let key: Vec<Cow<'_, str>> = parts(key).collect();
    let in_key = |name: &str| columns.iter().position(|column| column.name == name);
    let mut wanted: Vec<&str> = templates.iter().flat_map(Template::columns).filter(|n| in_key(n).is_none()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let found = value.filter(|_| !wanted.is_empty()).map(|value| members(value, &wanted)).unwrap_or_default();
    let column = |name: &str| match in_key(name) {
        Some(position) => key.get(position).map(Cow::as_ref),
        None => found.iter().find(|(found, _)| *found == name).map(|(_, text)| text.as_ref()),
    };
    templates.iter().filter_map(|template| template.fill(column)).collect()
}

/// The texts of an object's members of these names, without those that are null; none if it is no object.
fn members<'a>(object: &'a [u8], wanted: &[&'a str]) -> Vec<(&'a str, Cow<'a, str>)> {
    let mut json = serde_json::Deserializer::from_slice(object);
    Wanted(wanted).deserialize(&mut json).unwrap_or_default()
}

struct Wanted<'w, 'a>(&'w [&'a str]);

/// A string, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Wanted<'_, 'de> {
    type Value = Vec<(&'de str, Cow<'de, str>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_, 'de> {
    type Value = Vec<(&'de str, Cow<'de, str>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::with_capacity(self.0.len());
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            match self.0.iter().find(|wanted| **wanted == name) {
                Some(wanted) => found.extend(text(map.next_value()?).map(|text| (*wanted, text))),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// The text of a JSON value; `None` for null.
fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get() {
        "null" => None,
        string if string.starts_with('"') => serde_json::from_str::<Text<'_>>(string).ok().map(|text| text.0),
        other => Some(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyType;

    fn columns(key: &[&str]) -> Vec<KeyColumn> {
        let column = |name: &&str| KeyColumn {
            name: (*name).to_owned(),
            type_oid: 0,
            key_type: KeyType::Text,
            cast: String::new(),
        };
        key.iter().map(column).collect()
    }

    fn of(templates: &[&str], key: &str, value: Option<&str>) -> Vec<String> {
        let templates: Vec<Template> = templates.iter().map(|text| text.parse().unwrap()).collect();
        tags(&templates, &columns(&["id", "code"]), key, value.map(str::as_bytes))
    }

    #[test]
    fn tags_are_made_of_key_and_value() {
        let value =
            r#"{"id":7,"code":"x","tenant":"a \"b\"","n":1.50,"ok":true,"gone":null,"nested":{"tenant":1},"é":"ü"}"#;
        for (template, wanted) in [
            ("all", Some("all")),
            ("t:{tenant}", Some("t:a \"b\"")),
            ("{n}/{ok}", Some("1.50/true")),
            ("{nested}", Some("{\"tenant\":1}")),
            ("{é}", Some("ü")),
            ("{gone}", None),
            ("{missing}", None),
            ("{tenant}{gone}", None),
            // In the key's own text, decoded.
            ("{id}-{code}", Some("7-a,b")),
            ("{{{id}}}", Some("{7}")),
        ] {
            assert_eq!(of(&[template], "7,a%2Cb", Some(value)), wanted.into_iter().collect::<Vec<_>>(), "{template}");
        }
        assert_eq!(of(&["all", "{id}", "{tenant}"], "7,x", None), ["all", "7"], "what the key alone tells");
        assert_eq!(of(&["all", "{n}"], "7,x", Some("[1]")), ["all"], "no object");
        assert!(of(&[], "7,x", Some(value)).is_empty());
    }

    #[test]
    fn a_template_tells_what_can_be_a_tag_of_it() {
        for (template, yes, no) in [
            ("all", &["all"][..], &["al", "alls", ""][..]),
            ("tenant:{t}", &["tenant:7", "tenant:"], &["teannt:7", "tenant"]),
            ("{t}", &["", "x"], &[]),
            ("{a}-{b}!", &["1-2!", "-!", "a-b-c!"], &["1-2", "12!", "!-"]),
            ("a{b}a", &["aa", "aba"], &["a", "ab"]),
            ("{{{id}}}", &["{7}"], &["7", "{7"]),
            ("{a}{b}x", &["x", "yx"], &["xy"]),
        ] {
            let template: Template = template.parse().unwrap();
            for tag in yes {
                assert!(template.can_make(tag), "{template:?} {tag}");
            }
            for tag in no {
                assert!(!template.can_make(tag), "{template:?} {tag}");
            }
        }
    }

    #[test]
    fn templates_are_read_strictly() {
        for bad in ["", "{", "}", "a{b", "a}b", "{}", "{a{b}", "{{}"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
        let template: Template = "a{b}c{d}".parse().unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!("{b}}".parse::<Template>().unwrap_err(), TemplateError::Brace("}".into()));
    }
}
