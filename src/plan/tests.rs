use super::*;
use crate::change::{Datum, OldTuple, RelationColumn, ReplicaIdentity, Tuple};
use crate::entity::{Definition, Generation, OnChange, Shape, ValueColumn};
use crate::entry;
use crate::key::{KeyColumn, KeyType};
use crate::sqltype::SqlType;

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
        ..Shape::unknown(0)
    }
}

fn entity(on_change: OnChange) -> Arc<Entity> {
    let definition = Definition { on_change, ..Definition::rows("product", "public", "products") };
    Arc::new(Entity::new(0, definition, "p:", shape()))
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

/// Effects in words: `p:product:1 = {...}`, `p:product:1 ~ {...}` (with gaps), `p:product:1 - Toast`, `raise`, `reshape`.
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
        Effect::Merge { key, text, .. } => {
            let value = &text[entry::HEAD..text.len() - 1];
            format!("{} ~ {}", String::from_utf8(key).unwrap(), String::from_utf8(value.into()).unwrap())
        }
        Effect::Delete { key, cause, .. } => format!("{} - {cause:?}", String::from_utf8(key).unwrap()),
        Effect::Lookup { rule, .. } => format!("lookup {rule}"),
        Effect::Raise { .. } => "raise".into(),
        Effect::Discard { cause, .. } => format!("discard - {cause:?}"),
        Effect::Reshape { .. } => "reshape".into(),
        Effect::Moved { .. } => "moved".into(),
        Effect::LookAround => "look around".into(),
        Effect::Void(void) => format!("{void:?}"),
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
    let gap = ["p:product:1 ~ {\"id\":1,\"na\\\"me\":}"];
    assert_eq!(planned(&refresh, &ours(), &update(OldTuple::None)), gap);
    assert_eq!(planned(&refresh, &ours(), &update(OldTuple::Key(row("1", Datum::Null)))), gap);
    // What stands at the key is not of this row: of the one that was there before, or of none.
    let moved = planned(&refresh, &ours(), &update(OldTuple::Key(row("2", Datum::Null))));
    assert_eq!(moved, ["p:product:2 = null", "p:product:1 - Toast"]);
    let entered = Change::Insert { relation: ours(), new: row("1", Datum::Unchanged) };
    assert_eq!(planned(&refresh, &ours(), &entered), ["p:product:1 - Toast"]);
    let dropped = planned(&entity(OnChange::Invalidate), &ours(), &update(OldTuple::None));
    assert_eq!(dropped, ["p:product:1 - Update"]);
    let full = update(OldTuple::Full(row("1", Datum::Text(b"old"))));
    assert_eq!(planned(&refresh, &ours(), &full), ["p:product:1 = {\"id\":1,\"na\\\"me\":\"old\"}"]);
}

#[test]
fn a_key_that_is_out_of_line_is_taken_from_the_old_tuple() {
    let new = vec![Datum::Unchanged, NAME];
    let old = OldTuple::Key(row("5", Datum::Null));
    let change = Change::Update { relation: ours(), old, new: new.clone() };
    let refresh = entity(OnChange::Refresh);
    // The value is out of line as well, so it is not told; but it is that of the entry under the right key.
    assert_eq!(planned(&refresh, &ours(), &change), ["p:product:5 ~ {\"id\":,\"na\\\"me\":\"n\"}"]);
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
fn a_value_that_is_too_large_is_dropped() {
    // {"id":1,"na\"me":"n"}
    const LENGTH: usize = 21;
    for (max_value, wanted) in [(LENGTH, "put"), (LENGTH - 1, "large"), (1, "large"), (usize::MAX, "put")] {
        let mut planner = Planner::new(vec![entity(OnChange::Refresh)]).max_value(max_value);
        let mut effects = Vec::new();
        planner.announce(&ours(), &mut effects);
        planner.plan(&Change::Insert { relation: ours(), new: row("1", NAME) }, &mut effects);
        let found = match &effects[..] {
            [Effect::Put { text, .. }] => {
                assert_eq!(text.len(), entry::HEAD + LENGTH + 1);
                "put"
            }
            [Effect::Delete { key, cause: Cause::Large, .. }] if key == b"p:product:1" => "large",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, wanted, "{max_value}");
    }
}

#[test]
fn a_row_of_which_nothing_is_known_may_be_any() {
    let mut planner = Planner::new(vec![entity(OnChange::Refresh)]);
    let mut effects = Vec::new();
    planner.announce(&ours(), &mut effects);
    planner.plan_unknown(&ours(), &mut effects);
    assert_eq!(effects, [Effect::Discard { entity: 0, cause: Cause::Large }]);
}

#[test]
fn tables_of_no_entity_have_no_effect() {
    let mut other = (*ours()).clone();
    (other.oid, other.name) = (8, "orders".into());
    let other = Arc::new(other);
    let change = Change::Insert { relation: other.clone(), new: row("1", NAME) };
    assert!(planned(&entity(OnChange::Refresh), &other, &change).is_empty());
}

/// A table of that name whose columns are not the catalog's: its rows drop entries, and it is told from others alike.
#[test]
fn strangers_drop_what_they_touch() {
    let entity = entity(OnChange::Refresh);
    let stranger = |columns| {
        let mut relation = (*relation(columns)).clone();
        relation.columns.iter_mut().for_each(|column| column.in_identity = false);
        Arc::new(Relation { oid: 0, identity: ReplicaIdentity::Index, ..relation })
    };
    let ours = stranger(&[("id", INT4), ("na\"me", TEXT)]);
    let insert = Change::Insert { relation: ours.clone(), new: row("1", NAME) };
    assert_eq!(planned(&entity, &ours, &insert), ["reshape", "p:product:1 - Shape"]);
    let delete = Change::Delete { relation: ours.clone(), old: OldTuple::Key(row("1", Datum::Null)) };
    assert_eq!(planned(&entity, &ours, &delete), ["reshape", "p:product:1 - Shape"]);
    let update = Change::Update { relation: ours.clone(), old: OldTuple::None, new: row("1", NAME) };
    assert_eq!(planned(&entity, &ours, &update), ["reshape", "raise", "p:product:1 - Shape"]);

    // Another one with the same number, without the key.
    let other = stranger(&[("na\"me", TEXT)]);
    let insert = Change::Insert { relation: other, new: vec![NAME] };
    assert_eq!(planned(&entity, &ours, &insert), ["reshape", "raise"]);
}

#[test]
fn what_is_not_told_is_not_made_up() {
    let entity = entity(OnChange::Refresh);
    let insert = |name| Change::Insert { relation: ours(), new: row("1", name) };
    assert_eq!(planned(&entity, &ours(), &insert(Datum::Untold)), ["p:product:1 - Opaque"]);
    // Not even by the old row's value, as if it were unchanged.
    let new = vec![Datum::Untold, NAME];
    let update = Change::Update { relation: ours(), old: OldTuple::Key(row("1", Datum::Null)), new };
    assert_eq!(planned(&entity, &ours(), &update), ["p:product:1 = null", "raise"]);
    assert_eq!(planned(&entity, &ours(), &Change::Untold { relation: ours() }), ["raise"]);
}

#[test]
fn a_table_is_placed_by_what_it_is_a_partition_of() {
    let whole = entity(OnChange::Refresh);
    let mut split = shape();
    split.partitioned = true;
    let split = Arc::new(Entity::new(1, Definition::rows("split", "public", "split"), "p:", split));
    let planner = Planner::new(vec![whole, split]);
    let placed = |of: &[(&str, &str)]| {
        let of: Vec<_> = of.iter().map(|(schema, name)| ((*schema).to_owned(), (*name).to_owned())).collect();
        let mut effects = Vec::new();
        let concerns_us = planner.place(&of, &mut effects);
        assert_eq!(concerns_us, !effects.is_empty());
        effects
    };
    assert_eq!(placed(&[("public", "split_1"), ("public", "split")]), [Effect::Reshape { entity: 1 }]);
    assert_eq!(placed(&[("public", "elsewhere"), ("other", "split")]), []);
    assert_eq!(placed(&[]), [Effect::Raise { entity: 1 }], "it is gone: it may have been a partition");
}

#[test]
fn the_entitys_table_under_another_name_makes_what_is_cached_unservable() {
    for (schema, name) in [("public", "products_old"), ("archive", "products")] {
        let mut renamed = (*ours()).clone();
        (renamed.schema, renamed.name) = (schema.into(), name.into());
        let renamed = Arc::new(renamed);
        let change = Change::Insert { relation: renamed.clone(), new: row("1", NAME) };
        assert_eq!(planned(&entity(OnChange::Refresh), &renamed, &change), ["moved"]);
    }
}

#[test]
fn another_table_of_the_entitys_name_says_nothing_of_which_rows_there_are() {
    let mut former = (*ours()).clone();
    former.oid = 6;
    let former = Arc::new(former);
    let change = Change::Delete { relation: former.clone(), old: OldTuple::Key(row("1", Datum::Null)) };
    assert_eq!(planned(&entity(OnChange::Refresh), &former, &change), ["reshape", "p:product:1 - Shape"]);
}

#[test]
fn nothing_is_written_of_an_entity_that_is_not_cached() {
    let entity = entity(OnChange::Refresh);
    entity.set_standing(crate::entity::Standing::Uncached("for a reason".into()));
    let change = Change::Insert { relation: ours(), new: row("1", NAME) };
    assert_eq!(planned(&entity, &ours(), &change), ["p:product:1 - Shape"]);
}
