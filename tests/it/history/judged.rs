//! The judge itself, on histories written by hand: it finds each kind of violation, and nothing where there is none.

use walcache::lsn::Lsn;

use crate::harness::{Claim, Found, Histories, Kind, Row};

fn lsn(lsn: u64) -> Lsn {
    Lsn::from_u64(lsn)
}

/// An answer that says: everything up to `lo` is in me, and nothing after `hi`.
fn says(lo: u64, hi: u64) -> Claim {
    Claim { lo: lsn(lo), hi: Some(lsn(hi)), ..Claim::default() }
}

/// A row of states `(value, after, done)`; the transactions are numbered from 1.
fn row(states: &[(Option<i64>, u64, Option<u64>)]) -> Row {
    let mut row = Row::new();
    for (number, (value, after, done)) in states.iter().enumerate() {
        row.begin(*value, number as u64 + 1, Some(lsn(*after)));
        if let Some(done) = done {
            row.commit(lsn(*done));
        }
    }
    row
}

/// Inserted at 10..20, updated at 30..40 and 50..60, deleted at 70..80; an update from 90 on is under way.
fn usual() -> Row {
    row(&[
        (Some(1), 10, Some(20)),
        (Some(2), 30, Some(40)),
        (Some(3), 50, Some(60)),
        (None, 70, Some(80)),
        (Some(5), 90, None),
    ])
}

fn ok(state: usize) -> Result<Found, Kind> {
    Ok(Found { state, transaction: state as u64 })
}

#[test]
fn what_is_true_passes() {
    let row = usual();
    // Exactly as old as it says, and newer than it must be.
    assert_eq!(row.judge(Some(2), says(40, 45)), ok(2));
    assert_eq!(row.judge(Some(2), says(59, 59)), ok(2));
    assert_eq!(row.judge(Some(3), says(20, 55)), ok(3));
    // Absent: before the first insert or after the delete, whichever is old enough.
    assert_eq!(row.judge(None, says(5, 5)), ok(0));
    assert_eq!(row.judge(None, says(85, 85)), ok(4));
    // A commit whose outcome is not known may be seen, and need not be.
    assert_eq!(row.judge(Some(5), says(85, 100)), ok(5));
    assert_eq!(row.judge(None, says(1000, 1000)), ok(4));
    // A reader who goes on from what it saw; a demand that is met; a partner's transaction that is there.
    assert_eq!(row.judge(Some(3), Claim { floor: 2, ..says(20, 60) }), ok(3));
    assert_eq!(row.judge(Some(3), Claim { demanded: Some(lsn(60)), ..says(20, 60) }), ok(3));
    assert_eq!(row.judge(Some(3), Claim { contains: Some(2), ..says(20, 60) }), ok(3));
    // Of a transaction that did not touch this row nothing is required.
    assert_eq!(row.judge(Some(1), Claim { contains: Some(77), ..says(20, 60) }), ok(1));
}

#[test]
fn what_was_never_committed_is_a_phantom() {
    assert_eq!(usual().judge(Some(4), says(0, 1000)), Err(Kind::Phantom));
    // Not there yet, and never deleted.
    let mut never = row(&[(Some(1), 10, Some(20))]);
    assert_eq!(never.judge(None, says(15, 15)), ok(0));
    never.begin(Some(2), 2, Some(lsn(30)));
    assert_eq!(never.judge(Some(3), says(40, 40)), Err(Kind::Phantom));
}

#[test]
fn what_is_older_than_it_says_is_stale() {
    let row = usual();
    assert_eq!(row.judge(Some(1), says(40, 45)), Err(Kind::Stale));
    assert_eq!(row.judge(Some(3), says(80, 80)), Err(Kind::Stale), "deleted");
    // Honest about its age, and older than was asked for.
    assert_eq!(row.judge(Some(1), says(20, 60)), ok(1));
    assert_eq!(row.judge(Some(1), Claim { demanded: Some(lsn(60)), ..says(20, 60) }), Err(Kind::Stale));
}

#[test]
fn what_a_reader_has_seen_does_not_go_away() {
    let row = usual();
    assert_eq!(row.judge(Some(1), Claim { floor: 2, ..says(20, 60) }), Err(Kind::Backwards));
    assert_eq!(row.judge(Some(2), Claim { floor: 2, ..says(20, 60) }), ok(2));
    // Seen while its outcome was open: from then on it is there.
    assert_eq!(row.judge(None, Claim { floor: 5, ..says(85, 100) }), Err(Kind::Backwards));
}

#[test]
fn what_is_newer_than_it_says_is_ahead() {
    let row = usual();
    assert_eq!(row.judge(Some(3), says(40, 49)), Err(Kind::Ahead));
    assert_eq!(row.judge(Some(3), says(40, 51)), ok(3));
    assert_eq!(row.judge(Some(5), says(85, 85)), Err(Kind::Ahead));
    assert_eq!(row.judge(None, says(20, 45)), Err(Kind::Stale), "not inserted yet, or deleted already: the former");
}

#[test]
fn a_transaction_is_seen_as_a_whole() {
    let row = usual();
    assert_eq!(row.judge(Some(1), Claim { contains: Some(2), ..says(20, 60) }), Err(Kind::Torn));
    assert_eq!(row.judge(None, Claim { contains: Some(5), ..says(85, 100) }), Err(Kind::Torn));
}

#[test]
fn an_answer_reaches_what_was_demanded() {
    let claim = Claim { demanded: Some(lsn(61)), ..says(60, 60) };
    assert_eq!(usual().judge(Some(3), claim), Err(Kind::Refused));
}

#[test]
fn to_delete_what_is_absent_changes_nothing() {
    let row = row(&[(Some(1), 10, Some(20)), (None, 30, Some(40)), (None, 50, Some(60)), (None, 70, Some(80))]);
    // Cached after the first delete, and still right after the third.
    assert_eq!(row.judge(None, says(80, 45)), ok(4));
    assert_eq!(row.judge(None, says(80, 25)), Err(Kind::Stale), "there was a row then");
}

#[tokio::test]
async fn a_record_is_kept_judged_and_forgotten() {
    let histories = Histories::new(8);
    let write = async |rows: [usize; 2], value: i64, after: u64| {
        let turns = histories.turns(&rows.into()).await;
        turns.begin(&rows.map(|row| (row, Some(value))).into(), Some(lsn(after)))
    };
    write([6, 7], 1, 10).await.committed(lsn(20));
    let first = histories.judge(6, Some(1), says(20, 20)).unwrap();
    let open = write([6, 7], 2, 30).await;
    // Seen before its outcome is known: its partner must be there, too.
    let seen = histories.judge(6, Some(2), says(20, 40)).unwrap();
    assert_ne!(seen.transaction, first.transaction);
    let torn = histories.judge(7, Some(1), Claim { contains: Some(seen.transaction), ..says(20, 40) });
    assert_eq!(torn.unwrap_err().kind, Kind::Torn);
    // Then it turns out that it was rolled back.
    let phantoms = open.aborted();
    assert_eq!(phantoms.iter().map(|violation| violation.kind).collect::<Vec<_>>(), [Kind::Phantom]);
    assert_eq!(histories.judge(6, Some(2), says(20, 40)).unwrap_err().kind, Kind::Phantom);
    assert!(write([6, 7], 3, 50).await.aborted().is_empty(), "nobody saw it");

    let (before, open) = (histories.newest(7), write([1, 7], 4, 60).await);
    histories.forget();
    assert_eq!(before.value, Some(1));
    assert!(histories.judge(7, Some(1), says(20, 70)).is_ok(), "the last one that is known to be committed is kept");
    open.committed(lsn(70));
    histories.forget();
    assert_eq!(histories.judge(7, Some(1), says(70, 70)).unwrap_err().kind, Kind::Stale, "known, and forgotten");
    let old = histories.judge(7, Some(1), says(20, 20)).unwrap();
    assert_eq!(old.state, 0, "older than anything that is remembered, and honest about it");
    assert_eq!(
        histories.judge(7, Some(1), Claim { floor: seen.state + 1, ..says(20, 20) }).unwrap_err().kind,
        Kind::Backwards
    );
    assert_eq!(histories.judge(7, Some(9), says(70, 70)).unwrap_err().kind, Kind::Phantom);
    assert!(histories.judge(7, Some(4), Claim { floor: seen.state, ..says(70, 70) }).is_ok());
}
