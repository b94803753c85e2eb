//! With one rule of the protocol left out, under a workload that makes its race likely, the judge finds what goes wrong;
//! with all rules in force, the same workload shows nothing.

use std::collections::{BTreeMap, BTreeSet};

use walcache::failpoint::{Rule, WITHOUT};
use walcache::sandbox::RedisOptions;

use crate::harness::{
    Crowd, Daemon, Hidden, Kind, Raw, Shop, Violation, assert_none, current_lsn, slow_reads, until_a_read_waits,
};

/// Whether a workload runs with all rules, or without the one that it is about.
#[derive(Clone, Copy)]
enum Rules {
    All,
    Without(Rule),
}

impl Rules {
    async fn daemon(self, shop: &Shop) -> Daemon {
        match self {
            Rules::All => shop.daemon().await,
            Rules::Without(rule) => {
                // The auditor would mend what goes wrong, sooner or later than it is looked for.
                let config = shop.config.clone().set("audit", "rate", 0);
                let daemon = Daemon::start_with(&config, &[(WITHOUT, rule.name())]).await;
                daemon.wait_ready().await;
                assert!(daemon.log().contains("A RULE OF THE PROTOCOL IS SWITCHED OFF"), "it must say so");
                daemon
            }
        }
    }
}

/// What readers find after some more reads, and what O1 finds then.
async fn look(shop: &Shop, daemon: &Daemon, reads: u64) -> Vec<Violation> {
    let load = shop.readers(daemon, 7);
    load.reads(reads).await;
    let (_, mut violations) = load.end().await;
    violations.extend(shop.compare(daemon).await.1);
    violations
}

/// Everything wrong is of these kinds, and each of them is found.
#[track_caller]
fn finds(violations: &[Violation], always: &[Kind], perhaps: &[Kind]) {
    let found: BTreeSet<Kind> = violations.iter().map(|violation| violation.kind).collect();
    assert!(always.iter().all(|kind| found.contains(kind)), "found {found:?}, not all of {always:?}");
    let others: Vec<_> =
        violations.iter().filter(|v| !always.contains(&v.kind) && !perhaps.contains(&v.kind)).collect();
    assert!(others.is_empty(), "of other kinds: {others:#?}");
}

/// Commits that are streamed before they are visible, and fills of their rows meanwhile.
async fn hidden_commits(name: &str, rules: Rules) -> Vec<Violation> {
    let mut shop = Shop::with(name, Hidden::postgres(), RedisOptions::new()).await;
    shop.config = shop.config.set("l1", "enabled", false);
    let sql = shop.sql().await;
    let rows = BTreeSet::from_iter(0..8);
    for row in &rows {
        shop.put(&sql, *row, 1).await;
    }
    let daemon = rules.daemon(&shop).await;
    let (http, mut raw) = (daemon.http(), Raw::connect(&shop.stage).await.unwrap());
    let mut violations = Vec::new();
    for version in 2..5 {
        let changes = BTreeMap::from_iter(rows.iter().map(|row| (*row, Some(version))));
        let transaction = shop.histories.turns(&rows).await.begin(&changes, None);
        let update = format!("UPDATE counters SET version = {version} WHERE id < 8");
        let hidden = Hidden::write(&shop, &daemon, &[&update]).await;
        for _ in 0..20 {
            for row in &rows {
                raw.run(&["UNLINK", &format!("counter:{row}")]).await.unwrap();
                http.get(&format!("/v1/counter/{row}")).await.expect(200);
            }
        }
        hidden.show(&sql).await;
        let at = current_lsn(&sql).await;
        transaction.committed(at);
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(at).await;
        violations.extend(look(&shop, &daemon, 200).await);
    }
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_gate_hidden_commits_leave_stale_entries() {
    let violations = hidden_commits("no_gate", Rules::Without(Rule::Gate)).await;
    finds(&violations, &[Kind::Stale, Kind::Differs], &[Kind::Torn]);
    assert_none(&hidden_commits("with_gate", Rules::All).await);
}

/// Events that overtake fills.
async fn overtaken_fills(name: &str, rules: Rules) -> Vec<Violation> {
    let mut shop = Shop::new(name).await;
    // Fills are held until the event is applied.
    shop.config =
        shop.config.set("l1", "enabled", false).set("source", "fill_timeout", "30s").set("l2", "lease_ttl", "30s");
    slow_reads(&shop).await;
    let (sql, writer) = (shop.sql().await, shop.sql().await);
    shop.put(&sql, 1, 1).await;
    let daemon = rules.daemon(&shop).await;
    let (http, mut raw) = (daemon.http(), Raw::connect(&shop.stage).await.unwrap());
    let mut violations = Vec::new();
    for version in 2..5 {
        sql.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
        raw.run(&["UNLINK", "counter:1"]).await.unwrap();
        let fill = tokio::spawn({
            let http = http.clone();
            async move { http.get("/v1/counter/1").await.expect(200) }
        });
        until_a_read_waits(&sql).await;
        let at = shop.put(&writer, 1, version).await;
        writer.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(at).await;
        sql.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        fill.await.unwrap();
        violations.extend(look(&shop, &daemon, 200).await);
    }
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lease_overtaken_fills_leave_stale_entries() {
    let violations = overtaken_fills("no_lease", Rules::Without(Rule::Lease)).await;
    finds(&violations, &[Kind::Stale, Kind::Differs], &[]);
    assert_none(&overtaken_fills("with_lease", Rules::All).await);
}

/// Rows that change while they are in L1.
async fn cached_rows_change(name: &str, rules: Rules) -> Vec<Violation> {
    let shop = Shop::new(name).await;
    let daemon = rules.daemon(&shop).await;
    let load = shop.load_of(&daemon, 5, Crowd { raw: 0, ..Crowd::default() });
    for _ in 0..10 {
        load.reads(200).await;
    }
    if matches!(rules, Rules::Without(_)) {
        load.violated().await;
    }
    let (_, violations) = load.end().await;
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_fence_l1_is_stale() {
    let violations = cached_rows_change("no_fence", Rules::Without(Rule::L1Fence)).await;
    finds(&violations, &[Kind::Stale], &[Kind::Backwards, Kind::Torn]);
    assert_none(&cached_rows_change("with_fence", Rules::All).await);
}
