use std::sync::Arc;

use serde_json::{Value, json};

use super::recorder::MAX_BYTES_OF_TRANSACTION;
use super::*;
use crate::entity::{Definition, Entity, Shape};
use crate::key::{KeyColumn, KeyType};
use crate::plan::{Cause, Effect};
use crate::void::Void;
use crate::void::glob::Glob;
use crate::void::tag::Cell;

fn entities() -> Vec<Arc<Entity>> {
    let entity = |(id, name): (usize, &str)| {
        Arc::new(Entity::new(id, Definition::rows(name, "public", name), "p:", Shape::unknown(0)))
    };
    ["loud", "quiet"].into_iter().enumerate().map(entity).collect()
}

fn lsn(number: u64) -> Lsn {
    Lsn::from_u64(number)
}

/// One that somebody watches.
fn tap() -> Arc<Tap> {
    let tap = Tap { watched_until: AtomicU64::new(u64::MAX), ..Tap::default() };
    Arc::new(tap)
}

fn drop_of(entity: usize, key: usize) -> Effect {
    let name = ["loud", "quiet"][entity];
    Effect::Delete { entity, key: format!("p:{name}:{key}").into_bytes(), cause: Cause::Update }
}

fn recorder(tap: &Arc<Tap>, applied: u64) -> Recorder {
    Recorder::new(tap.clone(), entities(), lsn(applied))
}

/// Records a transaction of `events` events on an entity.
fn transaction(recorder: &mut Recorder, end: u64, entity: usize, events: usize) {
    recorder.begin(1, 0);
    for key in 0..events {
        recorder.record("update", &[], &[drop_of(entity, key)]);
    }
    recorder.commit(lsn(end));
}

fn json(answer: &Answer) -> Vec<Value> {
    answer.events.iter().map(|event| serde_json::from_str(event.get()).unwrap()).collect()
}

fn at(tap: &Tap, number: u64) -> Place {
    Place { ring: tap.ring.lock().id, number }
}

fn applied(at: u64) -> Watermark {
    let watermark = Watermark::default();
    watermark.advance(lsn(at));
    watermark
}

#[tokio::test]
async fn who_watches_too_slowly_is_told_how_much_was_missed() {
    let tap = tap();
    let mut recorder = recorder(&tap, 0);
    for end in 1..=12 {
        transaction(&mut recorder, end, 0, 1000);
    }
    transaction(&mut recorder, 13, 0, 5);
    let watermark = applied(100);
    let mut answer = tap.ask(Some(at(&tap, 3)), None, &watermark).await;
    // 12,005 were recorded, 10,000 are kept.
    assert_eq!((answer.missed, answer.restarted, answer.events.len()), (2002, false, 1000));
    assert_eq!(json(&answer)[0]["lsn"], "0/3");
    // The rest in order, each once.
    let mut lsns = Vec::new();
    while answer.next != at(&tap, 12_005) {
        lsns.extend(json(&answer).into_iter().map(|event| event["lsn"].clone()));
        answer = tap.ask(Some(answer.next), None, &watermark).await;
        assert_eq!(answer.missed, 0);
    }
    lsns.extend(json(&answer).into_iter().map(|event| event["lsn"].clone()));
    assert_eq!(lsns.len(), 10_000);
    assert_eq!((&lsns[9_994], &lsns[9_995]), (&"0/C".into(), &"0/D".into()));
}

/// What does not concern the entity passes by whoever waits, and is neither missed nor looked at again.
#[tokio::test]
async fn a_quiet_entity_on_a_busy_stream_misses_nothing() {
    let tap = tap();
    let watermark = Arc::new(applied(1_000_000));
    let mut recorder = recorder(&tap, 0);
    let asked = tokio::spawn({
        let (tap, watermark) = (tap.clone(), watermark.clone());
        async move { tap.ask(None, Some(1), &watermark).await }
    });
    for end in 1..=150 {
        transaction(&mut recorder, end, 0, 100);
        // One thread: whoever waits looks now.
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    transaction(&mut recorder, 200, 1, 1);
    let answer = asked.await.unwrap();
    assert_eq!((answer.missed, json(&answer)[0]["lsn"].clone()), (0, "0/C8".into()));
    assert_eq!((answer.events.len(), answer.next), (1, at(&tap, 15_001)));
}

#[test]
fn the_ring_is_let_go_of_now_and_then() {
    let tap = tap();
    let mut recorder = recorder(&tap, 0);
    for end in 1..=5 {
        transaction(&mut recorder, end, 0, 999);
    }
    let (answer, then) = tap.look(at(&tap, 0), Some(1), lsn(4));
    assert_eq!((answer.next, then, answer.events.len()), (at(&tap, 1000), Then::Look, 0));
    let (answer, then) = tap.look(at(&tap, 3990), Some(1), lsn(4));
    assert_eq!((answer.next, then), (at(&tap, 3996), Then::Applied(lsn(5))));
    let (answer, then) = tap.look(at(&tap, 4990), Some(1), lsn(5));
    assert_eq!((answer.next, then), (at(&tap, 4995), Then::Arrival));
}

#[tokio::test]
async fn an_event_and_a_transaction_are_bounded() {
    let tap = tap();
    let mut recorder = recorder(&tap, 0);
    // One message may drop half a million keys.
    let many: Vec<Effect> = (0..500_000).map(|key| drop_of(usize::from(key == 499_999), key)).collect();
    recorder.begin(7, 0);
    recorder.record("command", &[], &many);
    recorder.commit(lsn(1));
    let watermark = applied(10);
    let answer = tap.ask(Some(at(&tap, 0)), Some(1), &watermark).await;
    let event = &json(&answer)[0];
    assert_eq!((&event["more"], &event["xid"]), (&499_900.into(), &7.into()));
    assert_eq!(event["effects"].as_array().unwrap().len(), 100);
    assert_eq!(event["effects"][99], json!({ "entity": "loud", "key": "99", "effect": "void", "cause": "update" }));

    // Events of one transaction, by their number.
    transaction(&mut recorder, 2, 0, 1234);
    let answer = tap.ask(Some(at(&tap, 1)), None, &watermark).await;
    assert_eq!(answer.events.len(), 1000);
    let answer = tap.ask(Some(answer.next), Some(1), &watermark).await;
    assert_eq!((answer.events.len(), &json(&answer)[0]["left_out"]), (1, &234.into()), "whomever it concerns");

    // And by their size.
    recorder.begin(8, 0);
    let key = [b"p:loud:".to_vec(), vec![b'x'; 16_000]].concat();
    let long = vec![Effect::Delete { entity: 0, key, cause: Cause::Update }; 10];
    for _ in 0..100 {
        recorder.record("update", &[], &long);
    }
    assert!(recorder.bytes < 2 * MAX_BYTES_OF_TRANSACTION, "{}", recorder.bytes);
    recorder.commit(lsn(3));
    let answer = tap.ask(Some(at(&tap, 1002)), None, &watermark).await;
    let events = json(&answer);
    let told = events.len() as u64 - 1;
    assert_eq!(events.last().unwrap()["left_out"], 100 - told);
    assert!((2..20).contains(&told), "{told}");
    // All together, too.
    for end in 4..100 {
        recorder.begin(9, 0);
        recorder.record("update", &[], &long);
        recorder.commit(lsn(end));
    }
    let ring = tap.ring.lock();
    assert!(ring.bytes <= MAX_BYTES && ring.bytes > MAX_BYTES / 2, "{}", ring.bytes);
    assert_eq!(ring.bytes, ring.events.iter().map(Recorded::bytes).sum::<usize>());
}

#[tokio::test]
async fn what_may_concern_any_entity_is_shown_of_each() {
    let tap = tap();
    let mut recorder = recorder(&tap, 0);
    let watermark = applied(10);
    let glob = Arc::new(Glob::parse("loud:1*").unwrap());
    let cases = [
        (vec![Effect::Void(Void::Tag(Cell::of("tenant:7")))], vec![0, 1]),
        (vec![Effect::LookAround], vec![0, 1]),
        (vec![drop_of(0, 1), Effect::Void(Void::Tag(Cell::of("x")))], vec![0, 1]),
        (vec![Effect::Void(Void::Pattern { entity: 0, glob })], vec![0]),
        (vec![Effect::Raise { entity: 1 }, drop_of(1, 1)], vec![1]),
    ];
    for (i, (effects, wanted)) in cases.into_iter().enumerate() {
        recorder.begin(1, 0);
        recorder.record("command", &[], &effects);
        recorder.commit(lsn(1));
        for entity in [0, 1] {
            let (answer, _) = tap.look(at(&tap, i as u64), Some(entity), watermark.load());
            assert_eq!(answer.events.len(), usize::from(wanted.contains(&entity)), "{effects:?} of {entity}");
        }
    }
}

/// What was applied is shown once, what was not comes again.
#[tokio::test]
async fn another_session_goes_on_where_this_one_ends() {
    let tap = tap();
    let mut first = recorder(&tap, 0);
    for end in 1..=5 {
        transaction(&mut first, end, 0, 2);
    }
    let watermark = applied(3);
    let answer = tap.ask(Some(at(&tap, 0)), None, &watermark).await;
    assert_eq!((answer.events.len(), answer.next), (6, at(&tap, 6)));
    // One that was applied, and not shown yet; confirmed was less.
    watermark.advance(lsn(4));
    let mut second = recorder(&tap, 4);
    for end in 2..=7 {
        transaction(&mut second, end, 0, 2);
    }
    watermark.advance(lsn(6));
    let answer = tap.ask(Some(answer.next), None, &watermark).await;
    let lsns: Vec<Value> = json(&answer).into_iter().map(|event| event["lsn"].clone()).collect();
    assert_eq!(lsns, ["0/4", "0/4", "0/5", "0/5", "0/6", "0/6"]);
    assert_eq!((answer.missed, answer.restarted), (0, false));
    let ring = tap.ring.lock();
    assert_eq!(ring.bytes, ring.events.iter().map(Recorded::bytes).sum::<usize>());
}

#[tokio::test]
async fn a_place_of_another_ring_is_known() {
    let (tap, other) = (tap(), tap());
    let watermark = applied(10);
    let mut first = recorder(&tap, 0);
    transaction(&mut first, 1, 0, 3);
    // Of a daemon before this one, whatever its number.
    for number in [0, 2, 1_000_000] {
        let answer = tap.ask(Some(at(&other, number)), None, &watermark).await;
        assert_eq!((answer.restarted, answer.events.len(), answer.next), (true, 3, at(&tap, 3)), "{number}");
    }
    let answer = tap.ask(Some(at(&tap, 1)), None, &watermark).await;
    assert_eq!((answer.restarted, answer.events.len()), (false, 2));
    let shown: Place = serde_json::to_value(&answer).unwrap()["next"].as_str().unwrap().parse().unwrap();
    assert_eq!(shown, at(&tap, 3));
    // Where LSNs start over, numbers do.
    watermark.restart(lsn(2));
    let mut again = recorder(&tap, 2);
    transaction(&mut again, 3, 0, 4);
    watermark.advance(lsn(3));
    let answer = tap.ask(Some(shown), None, &watermark).await;
    assert_eq!((answer.restarted, answer.events.len()), (true, 4));
    for bad in ["", "7", "-7", "x-7", "1-", "1-x", "123456789-1"] {
        assert_eq!(bad.parse::<Place>(), Err(()), "{bad}");
    }
}

#[test]
fn nothing_is_recorded_while_nobody_watches() {
    let tap = Arc::new(Tap::default());
    let mut recorder = recorder(&tap, 0);
    transaction(&mut recorder, 1, 0, 3);
    assert!(tap.ring.lock().events.is_empty());
    tap.watched_until.store(1000 * 60 * 60, Ordering::Relaxed);
    transaction(&mut recorder, 2, 0, 3);
    assert_eq!(tap.ring.lock().events.len(), 3);
}

/// It comes when later transactions are recorded already, and is told before them, to whoever has seen what is applied.
#[test]
fn what_lookups_find_is_told_behind_its_change() {
    let tap = tap();
    let mut recorder = recorder(&tap, 2);
    for end in [3, 5, 9] {
        transaction(&mut recorder, end, 0, 1);
    }
    let (seen, then) = tap.look(at(&tap, 0), None, lsn(3));
    assert_eq!((seen.next, then), (at(&tap, 1), Then::Applied(lsn(5))));
    let column = KeyColumn { name: "k".into(), type_oid: 0, key_type: KeyType::Text, cast: String::new() };
    let shape = Shape { key: vec![column], ..Shape::unknown(0) };
    let quiet = Entity::new(1, Definition::rows("quiet", "public", "quiet"), "p:", shape);
    let found = |lsn| (1, Lsn::from_u64(lsn), quiet.key("x").unwrap());
    // What ended before the session began is applied, and was told then.
    witness(tap.clone(), entities(), lsn(2))(&[found(5), found(2)]);
    let (answer, _) = tap.look(seen.next, None, lsn(9));
    let told = json(&answer).into_iter().map(|event| (event["lsn"].clone(), event["op"].clone())).collect::<Vec<_>>();
    let wanted = [("0/5", "update"), ("0/5", "found"), ("0/9", "update")];
    assert_eq!(told, wanted.map(|(lsn, op)| (lsn.into(), op.into())));
    let (answer, _) = tap.look(seen.next, Some(1), lsn(9));
    let effect = json!({ "entity": "quiet", "key": "x", "effect": "void", "cause": "lookup" });
    assert_eq!((answer.events.len(), &json(&answer)[0]["effects"]), (1, &json!([effect])));
}
