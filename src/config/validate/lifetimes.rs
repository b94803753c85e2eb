//! Constraints on how long an entity's entries live, and on what room they take.

use std::time::Duration;

use super::super::units::MIB;
use super::super::violations::Violations;
use super::super::{Config, EntityConfig};
use crate::entity::query::ResultShape;

/// The longest time that Redis takes for a life with room to spare: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

pub(super) fn validate(i: usize, entity: &EntityConfig, config: &Config, found: &mut Violations) {
    let name = &entity.name;
    let mut require = |holds: bool, field: &str, constraint: &str| {
        found.require(holds, &format!("entity[{i}].{field}"), || format!("entity {name:?}: {constraint}"));
    };
    // Redis counts a time to live in milliseconds.
    let is_life = |life: Duration| (Duration::from_millis(1)..=LONGEST).contains(&life);
    let bounds = "must be longer than zero, and at most a hundred years";
    require(entity.ttl <= LONGEST, "ttl", bounds);
    require(entity.negative_ttl.is_none_or(is_life), "negative_ttl", bounds);
    require(
        entity.negative_ttl.is_none() || entity.query.is_none() || entity.shape == Some(ResultShape::One),
        "negative_ttl",
        "only with shape = \"one\" is there an entry that says that there is nothing: an empty array is a value",
    );
    require(entity.stale_while_revalidate.is_none_or(is_life), "stale_while_revalidate", bounds);
    require((0.0..=0.5).contains(&entity.ttl_jitter), "ttl_jitter", "must be from 0 to 0.5");
    if let Some(ahead) = entity.refresh_ahead {
        require(ahead > 0.0 && ahead <= 0.5, "refresh_ahead", "must be above 0, and at most 0.5");
        require(
            ahead + entity.ttl_jitter < 1.0,
            "refresh_ahead",
            "with ttl_jitter it must be less than 1, or new entries are filled anew at once",
        );
        require(
            entity.ttl_column.is_none(),
            "refresh_ahead",
            "does not go with ttl_column: filled anew, the entry would be due at the same time again",
        );
    }
    if let (Some(column), Some(columns)) = (&entity.ttl_column, &entity.columns) {
        require(columns.contains(column), "ttl_column", "must be one of the entity's columns");
    }
    require(
        entity.ttl_column.is_none() || entity.query.is_none() || entity.shape == Some(ResultShape::One),
        "ttl_column",
        "a query's value has one column of that name only where shape = \"one\"",
    );
    require(
        entity.compress_above.is_none() || config.l2.is_some(),
        "compress_above",
        "there is no [l2], and values in L1 are never compressed",
    );
    require(
        entity.l1_size.is_none_or(|size| size >= MIB),
        "l1_size",
        "must be at least 1MiB; without it the entity shares l1.max_size",
    );
    require(entity.l1_size.is_none() || config.l1.enabled, "l1_size", "l1.enabled is false: there is no L1");
}
