use super::super::Planner;
use super::*;
use crate::change::RelationColumn;
use crate::entity::query::{Dependency, Query, QueryFacts, ResultShape, Rule, RuleColumn};
use crate::entity::{Definition, OnChange, Shape};
use crate::key::KeyColumn;

const INT4: u32 = 23;
const INT8: u32 = 20;
const TEXT: u32 = 25;
const OID: u32 = 7;

/// Orders have a customer and a code; which of these are in the replica identity is up to the relation.
fn relation(oid: u32, identity: &[&str]) -> Arc<Relation> {
    let column = |name: &str, type_oid| RelationColumn {
        name: name.into(),
        type_oid,
        type_modifier: -1,
        in_identity: identity.contains(&name),
    };
    Arc::new(Relation {
        oid,
        schema: "public".into(),
        name: "orders".into(),
        identity: if identity.len() == 3 { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: vec![column("id", INT4), column("customer_id", INT8), column("code", TEXT)],
    })
}

fn entity(via: Via) -> Arc<Entity> {
    let column = |name: &str, type_oid| RuleColumn { name: name.into(), type_oid, base_oid: type_oid };
    let columns = match &via {
        Via::All => vec![],
        Via::Key(_) => vec![column("customer_id", INT8), column("code", TEXT)],
        Via::Lookup { .. } => vec![column("id", INT4)],
    };
    let rule = |via| Rule { schema: "public".into(), table: "orders".into(), via };
    let query = Query { sql: "select 1".into(), shape: ResultShape::Many, rules: vec![rule(via)] };
    let definition =
        Definition { query: Some(query), on_change: OnChange::Invalidate, ..Definition::rows("of_customer", "", "") };
    let key = |name: &str, key_type| KeyColumn { name: name.into(), type_oid: 0, key_type, cast: String::new() };
    let depends = vec![Dependency { table_oid: OID, partitioned: false, columns: Some(columns), tables: Vec::new() }];
    let shape = Shape {
        key: vec![key("customer", KeyType::Integer(0, 99)), key("code", KeyType::Text)],
        query: Some(QueryFacts { depends, looked_up: Vec::new(), is_steady: true }),
        ..Shape::unknown(0)
    };
    Arc::new(Entity::new(0, definition, "p:", shape))
}

fn by_key() -> Arc<Entity> {
    entity(Via::Key(vec!["customer_id".into(), "code".into()]))
}

fn by_lookup() -> Arc<Entity> {
    entity(Via::Lookup { sql: "select 1".into(), from: vec!["id".into()] })
}

fn row(id: &'static str, customer: &'static str, code: &'static str) -> Tuple<'static> {
    let datum = |text: &'static str| match text {
        "" => Datum::Null,
        "?" => Datum::Unchanged,
        "!" => Datum::Untold,
        text => Datum::Text(text.as_bytes()),
    };
    vec![datum(id), datum(customer), datum(code)]
}

/// Effects in words: `- 1,a`, `lookup 7`, `discard Update`, `raise`, `reshape`, `moved`.
fn planned(entity: &Arc<Entity>, relation: &Arc<Relation>, change: &Change<'_>) -> Vec<String> {
    let mut planner = Planner::new(vec![entity.clone()]);
    let mut effects = Vec::new();
    planner.announce(relation, &mut effects);
    planner.plan(change, &mut effects);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let words = effects.into_iter().map(|effect| match effect {
        Effect::Delete { key, .. } => format!("- {}", text(&key).strip_prefix("p:of_customer:").unwrap()),
        Effect::Lookup { rule: 0, values, .. } => {
            let values: Vec<String> = values.iter().map(|v| v.as_ref().map_or("NULL".into(), |v| text(v))).collect();
            format!("lookup {}", values.join(","))
        }
        Effect::Raise { .. } => "raise".into(),
        Effect::Discard { cause, .. } => format!("discard {cause:?}"),
        Effect::Reshape { .. } => "reshape".into(),
        Effect::Moved { .. } => "moved".into(),
        other => panic!("{other:?}"),
    });
    words.collect()
}

const ALL: [&str; 3] = ["id", "customer_id", "code"];

#[test]
fn a_key_rule_voids_by_the_row_before_and_after() {
    let full = relation(OID, &ALL);
    let keyed = relation(OID, &["id", "customer_id"]);
    let lean = relation(OID, &["id"]);
    type Case = (Arc<Relation>, OldTuple<'static>, Option<Tuple<'static>>, &'static [&'static str]);
    let none = || OldTuple::None;
    let cases: Vec<Case> = vec![
        // An order that moves from one customer to another voids both.
        (full.clone(), OldTuple::Full(row("7", "1", "a")), Some(row("7", "2", "a")), &["- 1,a", "- 2,a"]),
        // One that stays voids its one.
        (full.clone(), OldTuple::Full(row("7", "1", "a")), Some(row("8", "1", "a")), &["- 1,a"]),
        (full.clone(), OldTuple::Full(row("7", "1", "a,b")), None, &["- 1,a%2Cb"]),
        // NULL, and what no request can ask for, is no key.
        (full.clone(), OldTuple::Full(row("7", "", "a")), Some(row("7", "2", "a")), &["- 2,a"]),
        (full.clone(), OldTuple::Full(row("7", "1", "a")), Some(row("7", "100", "a")), &["- 1,a"]),
        (full.clone(), OldTuple::Full(row("7", "1", "a")), Some(row("7", "2", "?")), &["- 1,a", "- 2,a"]),
        (full.clone(), OldTuple::Full(row("7", "1", "!")), Some(row("7", "2", "a")), &["discard Update"]),
        // What the old row is not told of may have been any key's.
        (keyed.clone(), OldTuple::Key(row("7", "1", "")), Some(row("7", "2", "a")), &["discard Update"]),
        (keyed.clone(), OldTuple::Key(row("7", "1", "")), None, &["discard Delete"]),
        (keyed, none(), Some(row("7", "1", "a")), &["discard Update"]),
        (lean, none(), Some(row("7", "1", "a")), &["discard Update"]),
        (full.clone(), none(), None, &["discard Delete"]),
    ];
    for (relation, old, new, wanted) in cases {
        let change = match new {
            Some(new) => Change::Update { relation: relation.clone(), old, new },
            None => Change::Delete { relation: relation.clone(), old },
        };
        assert_eq!(planned(&by_key(), &relation, &change), wanted, "{change:?}");
    }
    let insert = |new| Change::Insert { relation: full.clone(), new };
    assert_eq!(planned(&by_key(), &full, &insert(row("7", "1", "a"))), ["- 1,a"]);
    assert_eq!(planned(&by_key(), &full, &insert(row("7", "", "a"))), [""; 0]);
    assert_eq!(planned(&by_key(), &full, &Change::Truncate { relations: vec![full.clone()] }), ["raise"]);
    assert_eq!(planned(&by_key(), &full, &Change::Untold { relation: full.clone() }), ["discard Update"]);
}

#[test]
fn an_identity_that_is_not_told_has_not_changed() {
    let relation = relation(OID, &["id", "customer_id"]);
    let update = |old, new| Change::Update { relation: relation.clone(), old, new };
    let by_id = by_lookup();
    assert_eq!(planned(&by_id, &relation, &update(OldTuple::None, row("7", "1", "a"))), ["lookup 7"]);
    let moved = update(OldTuple::Key(row("7", "1", "")), row("8", "1", "a"));
    assert_eq!(planned(&by_id, &relation, &moved), ["lookup 7", "lookup 8"]);
    let same = update(OldTuple::Key(row("7", "1", "")), row("7", "2", "a"));
    assert_eq!(planned(&by_id, &relation, &same), ["lookup 7"]);
    let gone = Change::Delete { relation: relation.clone(), old: OldTuple::Key(row("7", "1", "")) };
    assert_eq!(planned(&by_id, &relation, &gone), ["lookup 7"]);
    let insert = Change::Insert { relation: relation.clone(), new: row("", "1", "a") };
    assert_eq!(planned(&by_id, &relation, &insert), ["lookup NULL"]);
}

#[test]
fn a_rule_of_all_voids_all() {
    let relation = relation(OID, &["id"]);
    let all = entity(Via::All);
    let insert = Change::Insert { relation: relation.clone(), new: row("7", "1", "a") };
    assert_eq!(planned(&all, &relation, &insert), ["discard Update"]);
    let gone = Change::Delete { relation: relation.clone(), old: OldTuple::Key(row("7", "", "")) };
    assert_eq!(planned(&all, &relation, &gone), ["discard Delete"]);
}

#[test]
fn a_table_that_is_not_the_one_that_was_looked_up_voids_all() {
    let insert = |relation: &Arc<Relation>| Change::Insert { relation: relation.clone(), new: row("7", "1", "a") };
    let other = relation(OID + 1, &ALL);
    assert_eq!(planned(&by_key(), &other, &insert(&other)), ["reshape", "discard Shape"]);
    let mut retyped = (*relation(OID, &ALL)).clone();
    retyped.columns[1].type_oid = TEXT;
    let retyped = Arc::new(retyped);
    assert_eq!(planned(&by_key(), &retyped, &insert(&retyped)), ["reshape", "discard Shape"]);
    let mut renamed = (*relation(OID, &ALL)).clone();
    renamed.name = "old_orders".into();
    let renamed = Arc::new(renamed);
    assert_eq!(planned(&by_key(), &renamed, &insert(&renamed)), ["moved"]);
    // Strangers of wal2json have no oid, and neither has a query.
    let mut stranger = (*relation(0, &ALL)).clone();
    stranger.name = "strange".into();
    let stranger = Arc::new(stranger);
    assert_eq!(planned(&by_key(), &stranger, &insert(&stranger)), [""; 0]);
}
