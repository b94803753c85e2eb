use super::*;
use crate::apply::batch::HashedKey;
use crate::entity::{Definition, Entity, Generation, Shape, hash};
use crate::key::{KeyColumn, KeyType};
use crate::plan::Cause;

const LIMITS: Limits =
    Limits { max_batch_events: 100, max_batch_bytes: 1 << 20, max_transaction_bytes: 3 * size_of::<Effect>() + 400 };

fn put(key: &str, value: &str) -> Effect {
    let text = [&entry::BLANK_HEAD[..], value.as_bytes(), b"}"].concat();
    Effect::Put { entity: 0, generation: Generation(3), key: key.into(), text }
}

fn read(batch: &Batch, key: &str) -> (Label, String) {
    let op = &batch.ops[&HashedKey { hash: hash(key.as_bytes()), key: key.into() }];
    match entry::decode(op.image.clone().unwrap().1.into(), usize::MAX) {
        entry::Stored::Entry(label, value) => (label, String::from_utf8(value.unwrap().to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_effect_on_a_key_wins_and_bears_its_end_lsn() {
    let mut assembler = Assembler::new(LIMITS);
    for (xid, end, value) in [(1, 200, "1"), (2, 300, "2")] {
        assembler.begin(xid, Lsn::from_u64(end - 50), 0);
        assembler.effects(&mut vec![put("a", value)]);
        assert_eq!(assembler.batch.ops.len(), xid as usize - 1, "nothing is added before the commit");
        assembler.commit(Lsn::from_u64(end));
    }
    let batch = assembler.take();
    let (label, value) = read(&batch, "a");
    assert_eq!((label.lo, label.hi, label.split, value.as_str()), (Lsn::from_u64(300), Lsn::from_u64(300), false, "2"));
    assert_eq!((batch.xids, batch.high), (vec![1, 2], Lsn::from_u64(300)));
    assert_eq!(batch.progress.unwrap(), Lsn::from_u64(300));
}

#[test]
fn what_was_written_before_a_truncate_is_not_written() {
    let mut assembler = Assembler::new(LIMITS);
    assembler.begin(1, Lsn::from_u64(150), 0);
    let mut other = put("other", "1");
    if let Effect::Put { entity, .. } = &mut other {
        *entity = 1;
    }
    let raise = || Effect::Raise { entity: 0 };
    assembler.effects(&mut vec![put("a", "1"), put("b", "1"), other, raise(), put("b", "2"), raise(), put("c", "3")]);
    assembler.commit(Lsn::from_u64(200));
    let batch = assembler.take();
    assert_eq!(batch.raise.into_iter().collect::<Vec<_>>(), [0]);
    let written: Vec<_> = batch.ops.iter().filter(|(_, op)| op.image.is_some()).map(|(key, _)| &key.key[..]).collect();
    assert_eq!(written, [&b"other"[..], b"c"]);
    assert_eq!(batch.ops.len(), 4, "the others are dropped, and their cells of the fence raised");
}

fn gap(key: &str, value: &str) -> Effect {
    match put(key, value) {
        Effect::Put { entity, generation, key, text } => Effect::Merge { entity, generation, key, text },
        other => other,
    }
}

#[test]
fn gaps_are_filled_from_what_the_batch_says_of_the_row_before() {
    let mut assembler = Assembler::new(LIMITS);
    let mut end = 200;
    let mut commit = |assembler: &mut Assembler, effects: Vec<Effect>| {
        assembler.begin(1, Lsn::from_u64(end - 50), 0);
        for effect in effects {
            assembler.effects(&mut vec![effect]);
        }
        assembler.commit(Lsn::from_u64(end));
        end += 100;
    };
    let raised = |generation: u64, effect: Effect| match effect {
        Effect::Merge { entity, key, text, .. } => {
            Effect::Merge { entity, generation: Generation(generation), key, text }
        }
        other => other,
    };
    let drop = |key: &str| Effect::Delete { entity: 0, key: key.into(), cause: Cause::Opaque };
    commit(&mut assembler, vec![put("a", r#"{"x":1,"y":"old"}"#), drop("dropped"), put("absent", "null")]);
    commit(&mut assembler, vec![gap("a", r#"{"x":2,"y":}"#), put("other", r#"{"x":1,"y":2}"#)]);
    commit(&mut assembler, vec![gap("b", r#"{"x":,"y":,"z":1}"#), gap("dropped", r#"{"x":,"y":1}"#)]);
    commit(&mut assembler, vec![gap("b", r#"{"x":,"y":2,"z":}"#), gap("absent", r#"{"x":,"y":1}"#)]);
    commit(&mut assembler, vec![raised(4, gap("other", r#"{"x":,"y":1}"#))]);
    let batch = assembler.take();
    let op = |key: &str| &batch.ops[&HashedKey { hash: hash(key.as_bytes()), key: key.into() }];
    let (label, value) = read(&batch, "a");
    assert_eq!((label.lo, label.hi, value.as_str()), (Lsn::from_u64(300), Lsn::from_u64(300), r#"{"x":2,"y":"old"}"#));
    assert_eq!((op("a").gaps, op("a").since), (false, Lsn::from_u64(200)), "it has a value of the first change");
    assert_eq!((read(&batch, "b").1.as_str(), op("b").gaps), (r#"{"x":,"y":2,"z":1}"#, true));
    assert_eq!(op("b").since, Lsn::from_u64(400));
    for key in ["dropped", "absent", "other"] {
        assert!(op(key).image.is_none() && !op(key).gaps, "{key}: {:?}", op(key));
    }
    assert_eq!(batch.invalidations.iter().filter(|(_, cause)| *cause == Cause::Toast).count(), 3);
}

#[test]
fn a_command_keeps_its_place() {
    let mut assembler = Assembler::new(Limits { max_transaction_bytes: 1 << 20, ..LIMITS });
    assembler.begin(1, Lsn::from_u64(150), 0);
    let delete = |key: &str| Effect::Delete { entity: 0, key: key.into(), cause: Cause::Command };
    let discard = |entity| Effect::Discard { entity, cause: Cause::Command };
    let mut other = put("other", "1");
    if let Effect::Put { entity, .. } = &mut other {
        *entity = 1;
    }
    assembler.effects(&mut vec![put("after", "1"), delete("after"), delete("before"), put("before", "1"), other]);
    for _ in 0..3 {
        assembler.effects(&mut vec![discard(1)]);
    }
    assert_eq!(assembler.open.as_ref().unwrap().effects.len(), 6, "what was just done is not done again");
    assembler.commit(Lsn::from_u64(200));
    assert!(!assembler.is_empty());
    let batch = assembler.take();
    let images: Vec<_> = batch.ops.iter().map(|(key, op)| (&key.key[..], op.image.is_some(), op.lsn)).collect();
    let end = Lsn::from_u64(200);
    assert_eq!(images, [(&b"after"[..], false, end), (b"before", true, end), (b"other", false, end)]);
    assert_eq!(batch.discard.into_iter().collect::<Vec<_>>(), [(1, Cause::Command)]);
    assert_eq!((batch.xids, batch.high), (vec![1], end), "it is gated");
}

#[test]
fn a_big_transaction_goes_in_pieces_and_progresses_at_its_end() {
    let mut assembler = Assembler::new(LIMITS);
    assembler.begin(7, Lsn::from_u64(1000), 0);
    for i in 0..8 {
        assembler.effects(&mut vec![put(&format!("k{i}"), "1")]);
    }
    let first = assembler.take();
    assert!(!first.ops.is_empty() && first.progress.is_none());
    assembler.keepalive(Lsn::from_u64(1001));
    assert!(assembler.take().progress.is_none(), "a keepalive within a transaction is no progress");
    assembler.effects(&mut vec![put("last", "1")]);
    assembler.commit(Lsn::from_u64(1040));
    let last = assembler.take();
    assert_eq!(last.progress.unwrap(), Lsn::from_u64(1040));
    for (batch, key) in [(&first, "k0"), (&last, "last")] {
        let (label, _) = read(batch, key);
        assert!(label.split && label.lo == Lsn::from_u64(1001), "{label:?}");
    }
}

#[test]
fn rows_that_discard_the_same_entities_again_and_again_are_held_once() {
    let mut assembler = Assembler::new(LIMITS);
    let all = |cause| (0..1000).map(|entity| Effect::Discard { entity, cause }).collect::<Vec<_>>();
    for end in [200, 300] {
        assembler.begin(1, Lsn::from_u64(end - 50), 0);
        for cause in [Cause::Update, Cause::Update, Cause::Delete] {
            assembler.limits.max_transaction_bytes = usize::MAX;
            assembler.effects(&mut all(cause));
        }
        assert_eq!(assembler.open.as_ref().unwrap().effects.len(), 1000);
        assembler.commit(Lsn::from_u64(end));
    }
    let batch = assembler.take();
    assert_eq!(batch.discard.len(), 1000);
    // What forgets images does so at its place.
    assembler.begin(1, Lsn::from_u64(350), 0);
    let command = || Effect::Discard { entity: 0, cause: Cause::Command };
    assembler.effects(&mut vec![put("a", "1"), command(), put("a", "2"), command(), put("b", "3")]);
    assembler.commit(Lsn::from_u64(400));
    let batch = assembler.take();
    let written: Vec<_> = batch.ops.iter().filter(|(_, op)| op.image.is_some()).map(|(key, _)| &key.key[..]).collect();
    assert_eq!(written, [b"b"]);
}

/// Else nothing would bound the commit times that are held while a batch waits for the gate.
#[test]
fn transactions_without_effects_fill_a_batch_too() {
    let mut assembler = Assembler::new(LIMITS);
    let mut commits = 0;
    while !assembler.is_full() {
        commits += 1;
        assert!(commits <= LIMITS.max_batch_bytes as u64 / 8, "{commits} commits are held");
        assembler.begin(commits as u32, Lsn::from_u64(commits * 10), commits as i64);
        assembler.commit(Lsn::from_u64(commits * 10 + 5));
    }
    let batch = assembler.take();
    assert_eq!(batch.commits.len() as u64, commits);
    assert!(!assembler.is_full() && batch.xids.is_empty());
}

/// Rows whose keys the stream does not tell say of each that all may be concerned.
#[test]
fn rows_that_raise_the_same_entity_again_and_again_are_held_once() {
    let mut assembler = Assembler::new(LIMITS);
    assembler.limits.max_transaction_bytes = usize::MAX;
    let raise = || Effect::Raise { entity: 0 };
    let delete = |n: usize| Effect::Delete { entity: 0, key: n.to_string().into(), cause: crate::plan::Cause::Update };
    for end in [200, 300] {
        assembler.begin(1, Lsn::from_u64(end - 50), 0);
        for n in 0..1000 {
            assembler.effects(&mut vec![raise(), delete(n)]);
        }
        assert_eq!(assembler.open.as_ref().unwrap().effects.len(), 1001);
        assembler.commit(Lsn::from_u64(end));
        assert!(!assembler.batch.has_images.contains(&true), "nothing is gone through to forget what is not there");
    }
    assert_eq!(assembler.batch.raise.len(), 1);
    // Images between two of them are forgotten, and only those after the last are written.
    assembler.begin(1, Lsn::from_u64(350), 0);
    for n in 0..3 {
        assembler.effects(&mut vec![raise()]);
        assembler.effects(&mut vec![put(&format!("a{n}"), "1")]);
    }
    assembler.commit(Lsn::from_u64(400));
    assert_eq!(assembler.batch.has_images, [true]);
    let batch = assembler.take();
    let written: Vec<_> = batch.ops.iter().filter(|(_, op)| op.image.is_some()).map(|(key, _)| &key.key[..]).collect();
    assert_eq!(written, [b"a2"]);
}

/// A lookup is asked once for all that want it, as the first of them; what it finds is dropped as the last change on that key.
#[test]
fn lookups_are_asked_once_and_what_they_find_is_dropped() {
    let mut assembler = Assembler::new(LIMITS);
    let lookup = |rule, value: &str| Effect::Lookup { entity: 0, rule, values: vec![None, Some(value.into())] };
    let dropped = || Effect::Delete { entity: 0, key: b"p:it:1".to_vec(), cause: Cause::Update };
    for (xid, end, effects) in [
        (1, 200, vec![lookup(1, "7"), lookup(1, "8"), lookup(1, "7")]),
        (2, 300, vec![lookup(1, "7"), lookup(2, "7"), dropped()]),
    ] {
        assembler.begin(xid, Lsn::from_u64(end - 50), 0);
        assembler.effects(&mut effects.clone());
        assembler.commit(Lsn::from_u64(end));
    }
    let mut batch = assembler.take();
    let asked: Vec<_> = batch.lookups.values().map(|asked| (asked.lsn.as_u64(), asked.xids.clone())).collect();
    assert_eq!(asked, [(200, vec![1, 2]), (200, vec![1]), (300, vec![2])]);
    let column = KeyColumn { name: "k".into(), type_oid: 0, key_type: KeyType::Text, cast: String::new() };
    let shape = Shape { key: vec![column], ..Shape::unknown(0) };
    let entity = Entity::new(0, Definition::rows("it", "public", "rows"), "p:", shape);
    for (key, end) in [("1", 300), ("2", 200)] {
        batch.drop_found(0, Lsn::from_u64(200), &entity.key(key).unwrap(), Cause::Lookup);
        let hashed = HashedKey { hash: hash(format!("p:it:{key}").as_bytes()), key: format!("p:it:{key}").into() };
        assert_eq!(batch.ops[&hashed].lsn.as_u64(), end, "it fences what was fetched before the last of them");
    }
    assert_eq!(batch.ops.len(), 2);
    let found = batch.invalidations.iter().filter(|(_, cause)| *cause == Cause::Lookup).count();
    assert_eq!((found, batch.high.as_u64()), (2, 300));
}
