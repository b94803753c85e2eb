//! Parts of a value: `GET /v1/{entity}/{key}?fields=a,b`, and `"fields"` of a batch.
//!
//! The entry that is cached is always the whole one; what is left out is left out on the way to the client. So all
//! projections of an entry share its place in the tiers, and an event voids them together.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::entity::Entity;

/// The members of a value that a client wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Projection {
    /// Sorted, each once.
    names: Vec<String>,
}

impl Projection {
    /// Reads the parameter `fields` of a query string: names with commas between them, as forms encode text (`+` is a
    /// blank, `%2C` is a comma like any). `None` if there is no such parameter.
    ///
    /// # Errors
    /// If the parameter is given more than once, names nothing that `entity` has, or is no text; or if there is another one,
    /// which is likely misspelled.
    pub fn of_query(query: &str, entity: &Entity) -> Result<Option<Self>, Problem> {
        let mut given = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if name != "fields" && decode(name).as_deref() != Some("fields") {
                return Err(Problem::unknown_parameter(&decode(name).unwrap_or_else(|| name.to_owned())));
            }
            if given.replace(value).is_some() {
                return Err(Problem::malformed_fields("fields is given more than once: write fields=a,b"));
            }
        }
        let Some(given) = given else { return Ok(None) };
        let given =
            decode(given).ok_or_else(|| Problem::malformed_fields("fields must be UTF-8, percent-encoded once"))?;
        Projection::of(given.split(',').map(str::to_owned).collect(), entity).map(Some)
    }

    /// Of a list of names, each as it is. Only here a name may contain a comma.
    ///
    /// # Errors
    /// If there is no name, an empty one, or one that is none of the entity's.
    pub fn of(mut names: Vec<String>, entity: &Entity) -> Result<Self, Problem> {
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(Problem::malformed_fields("fields has an empty name, or none at all"));
        }
        names.sort_unstable();
        names.dedup();
        let shape = entity.shape();
        // Of what cannot be known, members that no object has are left out.
        if !shape.columns.is_empty()
            && let Some(unknown) = names.iter().find(|name| shape.columns.iter().all(|column| column.name != **name))
        {
            return Err(Problem::unknown_field(entity, unknown, shape.columns.iter().map(|column| &*column.name)));
        }
        Ok(Projection { names })
    }

    /// The wanted members of an object, or of each object of an array, in the value's own order and spelling. What is
    /// neither is left as it is.
    pub fn of_value(&self, value: &Bytes) -> Bytes {
        let mut out = Vec::with_capacity(value.len());
        let mut json = serde_json::Deserializer::from_slice(value);
        let written = Part { projection: self, out: &mut out }.deserialize(&mut json);
        match written.and_then(|()| json.end()) {
            Ok(()) => out.into(),
            Err(_) => value.clone(),
        }
    }

    /// Whether a member is wanted, by its name as it stands in JSON: with its quotes, and perhaps with escapes.
    fn wants(&self, raw: &str) -> bool {
        let name: Cow<'_, str> = match raw.trim_matches('"') {
            plain if !raw.contains('\\') => plain.into(),
            // What the parser has passed over as a string is one.
            _ => serde_json::from_str::<String>(raw).unwrap_or_default().into(),
        };
        self.names.binary_search_by(|wanted| wanted.as_str().cmp(&name)).is_ok()
    }
}

/// Writes what is wanted of a value while it is read. Nothing but the text of the members is looked at.
struct Part<'a> {
    projection: &'a Projection,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.out.push(b'{');
        let start = self.out.len();
        while let Some((name, value)) = members.next_entry::<&RawValue, &RawValue>()? {
            if !self.projection.wants(name.get()) {
                continue;
            }
            if self.out.len() > start {
                self.out.push(b',');
            }
            self.out.extend_from_slice(name.get().as_bytes());
            self.out.push(b':');
            self.out.extend_from_slice(value.get().as_bytes());
        }
        self.out.push(b'}');
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Part { projection, out } = self;
        out.push(b'[');
        let start = out.len();
        while let Some(element) = elements.next_element::<&RawValue>()? {
            if out.len() > start {
                out.push(b',');
            }
            let at = out.len();
            let mut json = serde_json::Deserializer::from_str(element.get());
            // Only the outermost array is one of rows.
            let object = element.get().starts_with('{');
            if !object || (Part { projection, out: &mut *out }).deserialize(&mut json).is_err() {
                out.truncate(at);
                out.extend_from_slice(element.get().as_bytes());
            }
        }
        out.push(b']');
        Ok(())
    }
}

/// Decodes text of a query string, as forms encode it: <https://url.spec.whatwg.org/#urlencoded-parsing>.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Shape, ValueColumn};
    use crate::sqltype::SqlType;

    fn entity(columns: &[&str]) -> Entity {
        let column = |name: &&str| ValueColumn { name: (*name).to_owned(), type_oid: 25, sql_type: SqlType::Text };
        let shape = Shape { columns: columns.iter().map(column).collect(), ..Shape::unknown(0) };
        Entity::new(0, Definition::rows("row", "public", "rows"), "", shape)
    }

    fn part(names: &[&str], value: &str) -> String {
        let projection = Projection::of(names.iter().map(|name| (*name).to_owned()).collect(), &entity(&[])).unwrap();
        let part = projection.of_value(&Bytes::copy_from_slice(value.as_bytes()));
        String::from_utf8(part.to_vec()).unwrap()
    }

    #[test]
    fn members_keep_their_order_and_their_text() {
        let row = r#"{"id":1,"name":"a \"b\", {c}","price":1.50,"tags":[{"x":1}],"n\u00e9\"\\":null}"#;
        for (names, wanted) in [
            (&["price", "id"][..], r#"{"id":1,"price":1.50}"#),
            (&["id", "id"], r#"{"id":1}"#),
            (&["name"], r#"{"name":"a \"b\", {c}"}"#),
            (&["tags"], r#"{"tags":[{"x":1}]}"#),
            (&["né\"\\"], r#"{"n\u00e9\"\\":null}"#),
            (&["x", "nam"], "{}"),
        ] {
            assert_eq!(part(names, row), wanted, "{names:?}");
        }
        // A query may name two columns alike.
        assert_eq!(part(&["a"], r#"{"a":1,"b":2,"a":3}"#), r#"{"a":1,"a":3}"#);
        assert_eq!(part(&["a"], "{}"), "{}");
        let deep = format!(r#"{{"a":{}{},"b":1}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(part(&["b"], &deep), r#"{"b":1}"#);
    }

    #[test]
    fn arrays_are_projected_element_by_element() {
        let rows = r#"[{"id":1,"n":2},null,{"n":3},[{"id":4}],{"n":5,"id":6}]"#;
        assert_eq!(part(&["id"], rows), r#"[{"id":1},null,{},[{"id":4}],{"id":6}]"#);
        assert_eq!(part(&["id"], "[]"), "[]");
        for other in ["1", "null", "\"id\"", "{\"id\":1", "[{\"id\":1}", "{\"id\":1} x", ""] {
            assert_eq!(part(&["id"], other), other, "left as it is");
        }
    }

    #[test]
    fn query_strings_are_read_as_forms_write_them() {
        let of = |query: &str, columns: &[&str]| {
            let projection = Projection::of_query(query, &entity(columns))?;
            Ok::<_, Problem>(projection.map(|projection| projection.names))
        };
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        for (query, wanted) in [
            ("", None),
            ("&", None),
            ("fields=b,a", names(&["a", "b"])),
            ("fields=b%2Ca,a", names(&["a", "b"])),
            ("&f%69elds=%C3%A9+%2B%26", names(&["é +&"])),
            ("fields=a=b", names(&["a=b"])),
        ] {
            assert_eq!(of(query, &[]).unwrap(), wanted, "{query}");
        }
        for bad in ["fields", "fields=", "fields=,", "fields=a,", "fields=a,,b", "fields=%FF", "fields=a&fields=a"] {
            let problem = of(bad, &["a"]).unwrap_err();
            let document = serde_json::to_value(&problem).unwrap();
            assert_eq!(
                (problem.status.as_u16(), &document["type"]),
                (400, &"urn:walcache:problem:malformed-fields".into())
            );
        }
    }

    #[test]
    fn other_parameters_are_refused() {
        for (query, named) in [("field=a", "field"), ("fields=a&x", "x"), ("Fields=a", "Fields"), ("a%20b=1", "a b")] {
            let problem = Projection::of_query(query, &entity(&["a"])).unwrap_err();
            let document = serde_json::to_value(&problem).unwrap();
            let wanted = (400, &"urn:walcache:problem:unknown-parameter".into());
            assert_eq!((problem.status.as_u16(), &document["type"]), wanted);
            assert!(document["detail"].as_str().unwrap().contains(&format!("{named:?}")), "{document}");
        }
    }

    #[test]
    fn an_unknown_field_is_told_with_those_there_are() {
        let problem = Projection::of(vec!["id".into(), "nam".into()], &entity(&["id", "name"])).unwrap_err();
        let document = serde_json::to_value(&problem).unwrap();
        assert_eq!((problem.status.as_u16(), &document["type"]), (400, &"urn:walcache:problem:unknown-field".into()));
        assert_eq!(document["detail"], "row has no field \"nam\"; it has: id, name");
        let many: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let problem = Projection::of(vec!["x".repeat(9000)], &entity(&many)).unwrap_err();
        let detail = serde_json::to_value(&problem).unwrap()["detail"].as_str().unwrap().to_owned();
        assert!(detail.ends_with("c99 and 100 more") && detail.len() < 700, "{detail}");
    }
}
