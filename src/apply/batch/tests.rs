use super::*;

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
    assert_eq!(batch.raise, [0]);
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
    assert_eq!(batch.discard, [(1, Cause::Command)]);
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
