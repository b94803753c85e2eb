//! Rows that are told from the catalog's, and tables that are no entity's.

use super::*;

/// Only a row whose columns are exactly the catalog's bears the relation that entities are made of.
#[test]
fn rows_of_another_shape_bear_a_relation_of_their_own() {
    let (id, big, plain) = (("id", INT, "1", 1), ("big", TEXT, "\"b\"", 2), ("plain", INT, "2", 4));
    let known = |action, columns: &[_]| made_of(&[&change(action, columns)])[0].starts_with("relation 7 ");
    assert!(known('I', &[id, big, plain]));
    assert!(known('U', &[id, big, plain]));
    assert!(known('U', &[id, plain]), "an unchanged value that lies out of line is left out");
    for (what, action, columns) in [
        ("an insert leaves nothing out", 'I', vec![id, plain]),
        ("an update leaves out only what can lie out of line", 'U', vec![id, big]),
        ("renamed", 'U', vec![id, ("huge", TEXT, "\"b\"", 2), plain]),
        ("another type", 'U', vec![id, big, ("plain", TEXT, "\"2\"", 4)]),
        ("dropped and added again", 'U', vec![id, big, ("plain", INT, "2", 5)]),
        ("added", 'U', vec![id, big, plain, ("more", INT, "2", 5)]),
        ("none", 'U', vec![]),
    ] {
        let said = made_of(&[&change(action, &columns)]);
        assert!(said[0].starts_with("relation 0 public.t Index: "), "{what}: {said:?}");
        assert_eq!(said.len(), 2, "{what}: {said:?}");
    }
}

/// It is announced once, and again after the table has been as the catalog says.
#[test]
fn strangers_are_announced_once() {
    let stranger = change('I', &[("id", INT, "1", 1)]);
    let known = change('U', &[("id", INT, "1", 1), ("big", TEXT, "\"b\"", 2), ("plain", INT, "2", 4)]);
    let said = made_of(&[&stranger, &stranger, &known, &known, &stranger]);
    let kinds: Vec<&str> = said.iter().map(|event| &event[..10]).collect();
    let (relation0, relation7) = ("relation 0", "relation 7");
    assert_eq!(
        kinds,
        [relation0, "insert pub", "insert pub", relation7, "update pub", "update pub", relation0, "insert pub"]
    );
    let relation = "relation 0 public.t Index: id 23(-1)";
    assert_eq!(said[..2], [relation.to_owned(), "insert public.t (\"1\")".to_owned()]);
}

/// Unchanged, or dropped: the catalog is asked before anything is made of the row, each time.
#[test]
fn a_value_that_is_left_out_has_its_table_looked_up() {
    let left_out = change('U', &[("id", INT, "1", 1), ("plain", INT, "2", 4)]);
    let said = made_of(&[&left_out, &left_out]);
    let looked_up = |event: &String| event.starts_with("relation 7 ");
    assert_eq!(said.iter().map(looked_up).collect::<Vec<_>>(), [true, true, false, true, false]);
}

/// Identity and row are put together by name, whatever the shape.
#[test]
fn a_stranger_without_its_key_column_keeps_the_old_one() {
    let said = made_of(&[&change('U', &[("plain", INT, "2", 4)])]);
    assert_eq!(said[1], "update public.t key (null, \"1\") to (\"2\", unchanged)");
}

#[test]
fn a_new_shape_is_looked_up_when_its_generation_is_raised() {
    let before = table(7, "t", &["id 23 1"]);
    let entity = entity(vec![before]);
    let mut decoder = decoder(vec![entity.clone()]);
    events(&mut decoder, BEGIN).unwrap();
    let wide = change('I', &[("id", INT, "1", 1), ("b", TEXT, "\"x\"", 2)]);
    let mut first = |wide: &str| events(&mut decoder, wide.as_bytes()).unwrap().remove(0);
    assert!(first(&wide).starts_with("relation 0 "));
    entity.reshape(shape(vec![table(7, "t", &["id 23 1", "~b 25 2"])]));
    entity.raise(crate::entity::Generation(5));
    assert_eq!(first(&wide), "relation 7 public.t Index: id 23(-1), b 25(-1)");
    // Nothing else was changed: the relation is the same, and not announced again.
    entity.raise(crate::entity::Generation(6));
    assert_eq!(first(&wide), "insert public.t (\"1\", \"x\")");
}

#[test]
fn other_tables_are_asked_for_until_they_are_known_to_be_elsewhere() {
    let mut decoder = decoder(captured_tables());
    events(&mut decoder, BEGIN).unwrap();
    let row = br#"{"action":"D","schema":"a\"b","table":"t","identity":[]}"#;
    for _ in 0..2 {
        assert_eq!(events(&mut decoder, row).unwrap(), ["unplaced a\"b.t"]);
    }
    decoder.set_elsewhere("a\"b", "t");
    assert_eq!(events(&mut decoder, row).unwrap(), ["elsewhere"]);
    let emptied = br#"{"action":"T","schema":"public","table":"u"}"#;
    assert_eq!(events(&mut decoder, emptied).unwrap(), ["unplaced public.u"]);
}

fn notice(text: &str) -> Vec<u8> {
    format!("SWARNING\0VWARNING\0C01000\0M{text}\0Fwal2json.c\0L2188\0\0").into_bytes()
}

/// Without an identity wal2json leaves changes out, and says so in a warning.
#[test]
fn warnings_of_changes_that_are_left_out_are_changes() {
    let mut decoder = decoder(captured_tables());
    let mut said = |text: &str| {
        let mut events = Vec::new();
        decoder.notice(&notice(text), &mut |event| events.push(fixture::describe(&event)));
        events
    };
    let text = "no tuple identifier for UPDATE in table \"public\".\"item\"";
    assert_eq!(said(text)[1..], ["untold public.item"]);
    assert_eq!(said(&text.replace("UPDATE", "DELETE")), ["untold public.item"]);
    assert_eq!(said("no old tuple data for DELETE in table \"public\".\"split_low\"")[1..], ["untold public.split"]);
    let odd = "no tuple identifier for UPDATE in table \"a \"b\" ünï\".\"sélect\"";
    assert_eq!(said(odd)[1..], ["untold a \"b\" ünï.sélect"]);
    assert_eq!(said("no tuple identifier for UPDATE in table \"public\".\"stranger\""), ["unplaced public.stranger"]);
    assert_eq!(said("something in table \"public\".\"item\""), [""; 0]);
    assert_eq!(said("no tuple identifier for UPDATE"), [""; 0]);
}
