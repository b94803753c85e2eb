//! Constraints on entities, whatever they are made of.

use std::collections::HashSet;
use std::time::Duration;

use super::super::EntityConfig;
use super::super::violations::Violations;
use crate::void::tag::Template;

pub(super) fn validate(i: usize, entity: &EntityConfig, found: &mut Violations) {
    let EntityConfig { name, ttl, columns, key, .. } = entity;
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    found.require(plain, &format!("entity[{i}].name"), || {
        format!("{name:?} must begin with a-z and hold only a-z, 0-9, _ and -")
    });
    // Redis counts a time to live in milliseconds.
    found.require(*ttl >= Duration::from_millis(1), &format!("entity[{i}].ttl"), || {
        format!("entity {name:?}: must be longer than zero")
    });
    for (position, tag) in entity.tags.iter().enumerate() {
        if let Err(error) = tag.parse::<Template>() {
            found.add(&format!("entity[{i}].tags[{position}]"), format!("entity {name:?}: {error}"));
        }
    }
    for (field, why) in entity.warm.iter().flat_map(|warm| warm.violations(entity.query.is_some())) {
        found.add(&format!("entity[{i}].{field}"), format!("entity {name:?}: {why}"));
    }
    found.require(entity.hot_set <= 100_000, &format!("entity[{i}].hot_set"), || {
        format!("entity {name:?}: must be at most 100000; 0 turns it off")
    });
    for (field, names) in [("columns", columns), ("key", key)] {
        let Some(names) = names else { continue };
        let distinct: HashSet<&String> = names.iter().collect();
        found.require(!names.is_empty() && distinct.len() == names.len(), &format!("entity[{i}].{field}"), || {
            format!("entity {name:?}: must name at least one column, and none twice")
        });
    }
}
