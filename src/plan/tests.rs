use super::*;
use crate::change::{RelationColumn, ReplicaIdentity};
use crate::entity::{Shape, ValueColumn};
use crate::key::{KeyColumn, KeyType};
use std::time::Duration;

const INT4: u32 = 23;
const TEXT: u32 = 25;

fn shape() -> Shape {
    let column = |name: &str, type_oid, sql_type| ValueColumn { name: name.into(), type_oid, sql_type };
    Shape {
        table_oid: 7,
        columns: vec![column("id", INT4, SqlType::Integer), column("na\"me", TEXT, SqlType::Text)],
        key: vec![KeyColumn {
            name: "id".into(),
            type_oid: INT4,
            key_type: KeyType::Integer(0, 9999),
            cast: "pg_catalog.int4".into(),
        }],
        whole_row: true,
        version: 0,
    }
}

fn entity(on_change: OnChange) -> Arc<Entity> {
    let table = ("public".into(), "products".into());
    Arc::new(Entity::new(0, "product".into(), table, on_change, Duration::from_secs(60), false, "p:", shape()))
}

fn relation(columns: &[(&str, u32)]) -> Arc<Relation> {
    let columns = columns
        .iter()
        .map(|(name, type_oid)| RelationColumn {
            name: (*name).into(),
            type_oid: *type_oid,
            type_modifier: -1,
            in_identity: *name == "id",
        })
        .collect();
    Arc::new(Relation {
        oid: 7,
        schema: "public".into(),
        name: "products".into(),
        identity: ReplicaIdentity::Default,
        columns,
    })
}

fn ours() -> Arc<Relation> {
    relation(&[("id", INT4), ("na\"me", TEXT)])
}

fn row(id: &'static str, name: Datum<'static>) -> Tuple<'static> {
    vec![Datum::Text(id.as_bytes()), name]
}

const NAME: Datum<'static> = Datum::Text(b"n");

/// Effects in words: `p:product:1 = {...}`, `p:product:1 - Toast`, `raise`, `reshape`.
fn planned(entity: &Arc<Entity>, relation: &Arc<Relation>, change: &Change<'_>) -> Vec<String> {
    let mut planner = Planner::new(vec![entity.clone()]);
    let mut effects = Vec::new();
    planner.announce(relation, &mut effects);
    planner.plan(change, &mut effects);
    let words = effects.into_iter().map(|effect| match effect {
        Effect::Put { key, text, .. } => {
            let value = &text[entry::HEAD..text.len() - 1];
            format!("{} = {}", String::from_utf8(key).unwrap(), String::from_utf8(value.into()).unwrap())
        }
        Effect::Delete { key, cause, .. } => format!("{} - {cause:?}", String::from_utf8(key).unwrap()),
        Effect::Raise { .. } => "raise".into(),
        Effect::Reshape { .. } => "reshape".into(),
    });
    words.collect()
}

#[test]
fn each_kind_of_change_refreshes_or_invalidates() {
    let cases = [
        (
            Change::Insert { relation: ours(), new: row("1", NAME) },
            vec!["p:product:1 = {\"id\":1,\"na\\\"me\":\"n\"}"],
            vec!["p:product:1 - Update"],
        ),
        (
            Change::Update { relation: ours(), old: OldTuple::None, new: row("1", Datum::Null) },
            vec!["p:product:1 = {\"id\":1,\"na\\\"me\":null}"],
            vec!["p:product:1 - Update"],
        ),
        (
            Change::Update { relation: ours(), old: OldTuple::Key(row("1", Datum::Null)), new: row("2", NAME) },
            vec!["p:product:1 = null", "p:product:2 = {\"id\":2,\"na\\\"me\":\"n\"}"],
            vec!["p:product:1 - Delete", "p:product:2 - Update"],
        ),
        (
            Change::Delete { relation: ours(), old: OldTuple::Key(row("1", Datum::Null)) },
            vec!["p:product:1 = null"],
            vec!["p:product:1 - Delete"],
        ),
        (Change::Truncate { relations: vec![ours()] }, vec!["raise"], vec!["raise"]),
    ];
    for (change, refresh, invalidate) in cases {
        assert_eq!(planned(&entity(OnChange::Refresh), &ours(), &change), refresh, "{change:?}");
        assert_eq!(planned(&entity(OnChange::Invalidate), &ours(), &change), invalidate, "{change:?}");
    }
}

#[test]
fn an_unchanged_toast_value_is_never_null() {
    let update = |old| Change::Update { relation: ours(), old, new: row("1", Datum::Unchanged) };
    let refresh = entity(OnChange::Refresh);
    assert_eq!(planned(&refresh, &ours(), &update(OldTuple::None)), ["p:product:1 - Toast"]);
    let full = update(OldTuple::Full(row("1", Datum::Text(b"old"))));
    assert_eq!(planned(&refresh, &ours(), &full), ["p:product:1 = {\"id\":1,\"na\\\"me\":\"old\"}"]);
}

#[test]
fn a_key_that_is_out_of_line_is_taken_from_the_old_tuple() {
    let new = vec![Datum::Unchanged, NAME];
    let old = OldTuple::Key(row("5", Datum::Null));
    let change = Change::Update { relation: ours(), old, new: new.clone() };
    let refresh = entity(OnChange::Refresh);
    // The value is out of line as well, so it cannot be rendered; but its entry is dropped under the right key.
    assert_eq!(planned(&refresh, &ours(), &change), ["p:product:5 - Toast"]);
    let untold = Change::Update { relation: ours(), old: OldTuple::None, new };
    assert_eq!(planned(&refresh, &ours(), &untold), ["raise"], "a key that is not told may be any");
}

#[test]
fn an_update_whose_old_key_is_not_told_may_have_changed_it() {
    let mut by_name = (*ours()).clone();
    by_name.identity = ReplicaIdentity::Index;
    for column in &mut by_name.columns {
        column.in_identity = column.name != "id";
    }
    let by_name = Arc::new(by_name);
    let change = Change::Update { relation: by_name.clone(), old: OldTuple::None, new: row("2", NAME) };
    let wanted = ["raise", "p:product:2 = {\"id\":2,\"na\\\"me\":\"n\"}"];
    assert_eq!(planned(&entity(OnChange::Refresh), &by_name, &change), wanted);
}

#[test]
fn another_shape_only_invalidates_and_is_looked_up() {
    for columns in
        [&[("id", INT4), ("na\"me", TEXT), ("added", TEXT)][..], &[("id", INT4)], &[("id", INT4), ("na\"me", INT4)]]
    {
        let other = relation(columns);
        let new = columns.iter().map(|_| Datum::Text(b"1")).collect();
        let change = Change::Insert { relation: other.clone(), new };
        assert_eq!(planned(&entity(OnChange::Refresh), &other, &change), ["reshape", "p:product:1 - Shape"]);
    }
}

#[test]
fn a_raised_generation_is_planned_with_the_new_shape() {
    let entity = entity(OnChange::Refresh);
    let mut planner = Planner::new(vec![entity.clone()]);
    let mut effects = Vec::new();
    let added = relation(&[("id", INT4), ("na\"me", TEXT), ("added", TEXT)]);
    planner.announce(&added, &mut effects);
    let mut wider = shape();
    wider.columns.push(ValueColumn { name: "added".into(), type_oid: TEXT, sql_type: SqlType::Text });
    entity.reshape(wider);
    entity.raise(Generation(9));
    effects.clear();
    planner.plan(&Change::Insert { relation: added, new: vec![Datum::Text(b"1"), NAME, NAME] }, &mut effects);
    assert!(matches!(&effects[..], [Effect::Put { generation: Generation(9), .. }]), "{effects:?}");
}

#[test]
fn tables_of_no_entity_have_no_effect() {
    let mut other = (*ours()).clone();
    other.name = "orders".into();
    let other = Arc::new(other);
    let change = Change::Insert { relation: other.clone(), new: row("1", NAME) };
    assert!(planned(&entity(OnChange::Refresh), &other, &change).is_empty());
}
