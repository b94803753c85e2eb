//! What the fence says of an entity's shape outlives the process: a version that hashes the same shape otherwise starts every
//! entity over, once for each deployment.

use std::time::Duration;

use super::*;
use crate::entity::lifetime::Lifetime;
use crate::entity::query::{Dependency, Query, QueryFacts, ResultShape, Rule, RuleColumn, Via};
use crate::entity::{Definition, Published, Shape, StreamedColumn, StreamedTable, ValueColumn};
use crate::key::{KeyColumn, KeyType};
use crate::sqltype::{Attribute, SqlType};

fn streamed(oid: u32) -> StreamedTable {
    let column = StreamedColumn { name: "id".into(), type_oid: 23, position: 1, out_of_line: false, computed: true };
    StreamedTable { oid, schema: "shop".into(), name: "orders".into(), columns: vec![column], version: "v1".into() }
}

/// One of everything that a shape can say.
fn shape() -> Shape {
    let types = [
        SqlType::Bool,
        SqlType::Integer,
        SqlType::Number,
        SqlType::Json,
        SqlType::Date,
        SqlType::Timestamp,
        SqlType::TimestampTz,
        SqlType::Text,
        SqlType::Array(Box::new(SqlType::Integer), b','),
        SqlType::Vector(Box::new(SqlType::Integer)),
        SqlType::Composite(vec![Attribute { name: "a".into(), sql_type: SqlType::Bool }]),
        SqlType::Opaque,
    ];
    let keys = [
        KeyType::Integer(-1, 9),
        KeyType::Text,
        KeyType::Char(3),
        KeyType::Uuid,
        KeyType::Bool,
        KeyType::Enum(vec!["new".into()]),
        KeyType::Date,
        KeyType::Timestamp,
        KeyType::TimestampTz,
        KeyType::Numeric(2),
    ];
    let column = |sql_type| ValueColumn { name: "c".into(), type_oid: 5, sql_type };
    let key = |key_type| KeyColumn { name: "k".into(), type_oid: 6, key_type, cast: "pg_catalog.int4".into() };
    let of_rule = RuleColumn { name: "r".into(), type_oid: 7, base_oid: 9 };
    let depends =
        Dependency { table_oid: 8, partitioned: true, columns: Some(vec![of_rule]), tables: vec![streamed(8)] };
    Shape {
        table_oid: 1,
        columns: types.into_iter().map(column).collect(),
        key: keys.into_iter().map(key).collect(),
        whole_row: true,
        partitioned: false,
        version: 3,
        published: Published { row_filter: Some("id > 0".into()), version: 4 },
        tables: vec![streamed(1)],
        query: Some(QueryFacts { depends: vec![depends], looked_up: vec![9], is_steady: true }),
    }
}

#[test]
fn the_same_shape_and_query_have_the_hash_that_stands_in_fences() {
    let rule = |via| Rule { schema: "shop".into(), table: "orders".into(), via };
    let lookup = Via::Lookup { sql: "select 2".into(), from: vec!["id".into()] };
    let rules = vec![rule(Via::Key(vec!["id".into()])), rule(lookup), rule(Via::All)];
    let of = |shape| Some(Query { sql: "select 1".into(), shape, rules: rules.clone() });
    let hash = |query| {
        let definition = Definition { query, ..Definition::rows("e", "shop", "orders") };
        String::from_utf8(fingerprint(&Entity::new(0, definition, "", shape()))).unwrap()
    };
    let found = [hash(None), hash(of(ResultShape::Many)), hash(of(ResultShape::One))];
    assert_eq!(
        (shape().fingerprint(), found),
        (3_023_001_751_328_412_298, ["6828473A53BACAE7", "BAEA758DCA4399B9", "DC98826840AD7ACD"].map(str::to_owned))
    );
}

/// What starts a new generation of an entity by its configuration alone, and what does not.
#[test]
fn a_fingerprint_stands_for_what_may_be_served() {
    let of = |change: &dyn Fn(&mut Definition)| {
        let mut definition = Definition::rows("item", "public", "items");
        change(&mut definition);
        fingerprint(&Entity::new(0, definition, "p:", Shape::unknown(0)))
    };
    let tags = |tags: &[&str]| tags.iter().map(|tag| tag.parse().unwrap()).collect::<Vec<_>>();
    let column = |name: &str| Lifetime { column: Some(name.to_owned()), ..Lifetime::default() };
    let plain = of(&|_| {});
    // As it was before there were tags: an upgrade voids nothing.
    let before = format!("public.items {:016x}", Shape::unknown(0).fingerprint());
    assert_eq!(plain, Lsn::from_u64(crate::entity::hash(before.as_bytes())).hex16());
    let different = [
        plain.clone(),
        of(&|item| item.tags = tags(&["a"])),
        of(&|item| item.tags = tags(&["a", "b"])),
        of(&|item| item.tags = tags(&["{a}"])),
        of(&|item| item.lifetime = column("a")),
        of(&|item| item.lifetime = column("b")),
        of(&|item| item.table = "others".to_owned()),
    ];
    let distinct: std::collections::HashSet<_> = different.iter().collect();
    assert_eq!(distinct.len(), different.len());
    let lives = Lifetime { negative_ttl: Some(Duration::from_secs(1)), jitter: 0.5, ..Lifetime::default() };
    let others: [&dyn Fn(&mut Definition); 3] =
        [&|item| item.ttl = Duration::from_secs(1), &|item| item.lifetime = lives.clone(), &|item| {
            item.compress_above = Some(1)
        }];
    for change in others {
        assert_eq!(of(change), plain, "entries live on as they were made");
    }
}
