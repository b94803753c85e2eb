//! Entries that are filled anew while they still stand: past their ttl, or before it is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcache::cache::Hierarchy;
use walcache::cache::l2::renew::{Claimed, Renewed};
use walcache::cache::l2::{self, L2};
use walcache::cache::voids::Voids;
use walcache::cache::watermark::Watermark;
use walcache::entity::{Definition, EntryKey, Generation, Shape};
use walcache::entry::{self, Due, Label};
use walcache::key::{KeyColumn, KeyType};
use walcache::lsn::Lsn;
use walcache::metrics::InstanceMetrics;

use crate::harness::{
    Daemon, Entity, Raw, Response, Scene, Shop, Stage, counted_reads, current_lsn, eventually, until_a_read_waits,
    version,
};

/// A shop whose reads are counted and can be held, with an entity that is soon due and then served for long.
async fn shop(name: &str, more: impl FnOnce(Entity) -> Entity) -> Shop {
    let mut shop = Shop::new(name).await;
    counted_reads(&shop).await;
    let entity = Entity::new("soon", "public.counters").set("ttl", "1s").set("ttl_jitter", 0.0);
    // Audits would be counted. Reads are held until much has happened.
    shop.config = shop
        .config
        .set("audit", "rate", 0)
        .set("freshness", "stale_after", "60s")
        .set("source", "fill_timeout", "30s")
        .set("l2", "lease_ttl", "30s")
        .entity(more(entity));
    shop
}

fn stale(entity: Entity) -> Entity {
    entity.set("stale_while_revalidate", "5m")
}

async fn rows_read(sql: &Client) -> i64 {
    sql.query_one("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM row_reads", &[]).await.unwrap().get(0)
}

async fn until_from(daemon: &Daemon, path: &str, from: &[&str]) -> Response {
    eventually(&format!("answer {path} from {from:?}"), || async {
        let response = daemon.http().get(path).await.expect(200);
        if from.contains(&response.header("x-cache")) { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await
}

async fn metric(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric(&format!("walcache_renewals_total{{entity=\"soon\",result=\"{result}\"}}")).await.unwrap()
}

/// With L2, with L2 alone, and with L1 alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_its_ttl_an_entry_is_served_while_one_fill_replaces_it() {
    for (name, l1, l2) in [("renew_both", true, true), ("renew_l2", false, true), ("renew_l1", true, false)] {
        let mut shop = shop(name, stale).await;
        shop.config = shop.config.set("l1", "enabled", l1);
        if !l2 {
            shop.config = shop.config.without("l2");
        }
        let (sql, holder) = (shop.sql().await, shop.sql().await);
        shop.put(&sql, 1, 7).await;
        let daemon = shop.daemon().await;
        let end = current_lsn(&sql).await;
        daemon.wait_applied(end).await;
        let http = daemon.http();
        http.get("/v1/soon/1").await.expect(200);
        holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
        let before = rows_read(&sql).await;
        let marked = until_from(&daemon, "/v1/soon/1", &["STALE"]).await;
        let status = marked.header("cache-status");
        assert!(status.starts_with("walcache; hit; detail=L") && status.contains("; ttl=-"), "{status}");
        until_a_read_waits(&sql).await;
        // However many ask meanwhile, none waits, and Postgres is asked once.
        for _ in 0..50 {
            let began = Instant::now();
            let response = http.get("/v1/soon/1").await.expect(200);
            assert_eq!((response.header("x-cache"), version(&response.json())), ("STALE", Some(7)), "{name}");
            assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
        }
        assert_eq!(rows_read(&sql).await - before, 1, "{name}");
        assert!(daemon.metric("walcache_cache_overdue_total{entity=\"soon\"}").await.unwrap() >= 50.0);
        // A reader who wants Postgres waits for it; a token is met by what is there.
        let token = [("x-min-lsn", end.to_string())];
        let token: Vec<(&str, &str)> = token.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let met = http.get_with("/v1/soon/1", &token).await.expect(200);
        assert_eq!(met.header("x-cache"), "STALE", "{met:?}");
        let fresh = tokio::spawn({
            let http = http.clone();
            async move { http.get_with("/v1/soon/1", &[("cache-control", "no-cache")]).await }
        });
        holder.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        assert_eq!(fresh.await.unwrap().expect(200).header("x-cache"), "BYPASS");
        let renewed = until_from(&daemon, "/v1/soon/1", &["HIT-L1", "HIT-L2"]).await;
        assert_eq!(version(&renewed.json()), Some(7));
        let counted = if l2 { "published" } else { "uncached" };
        eventually("count the renewal", || async {
            let count = metric(&daemon, counted).await;
            if count >= 1.0 { Ok(()) } else { Err(format!("{name}: {count} {counted}")) }
        })
        .await;
        if l2 {
            let stays: i64 = shop.stage.l2().await.pttl("soon:1").await.unwrap();
            assert!(stays > 200_000, "{name}: it is to be served past its ttl, too, and stays for {stays} ms");
        }
        // Whatever was queued comes before the next renewal: with the reader's own, three reads in all.
        until_from(&daemon, "/v1/soon/1", &["STALE"]).await;
        until_from(&daemon, "/v1/soon/1", &["HIT-L1", "HIT-L2"]).await;
        let reads = rows_read(&sql).await - before;
        assert!((3..=5).contains(&reads), "{name}: {reads} reads");
        shop.put(&sql, 1, 8).await;
        if l2 {
            shop.equals_postgres(&daemon).await;
        }
    }
}

/// An entry comes to its end in the middle of its renewal: by an event, by expiry or eviction, and by both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_overtaken_is_not_published() {
    let shop = shop("renew_overtaken", stale).await;
    let (sql, holder) = (shop.sql().await, shop.sql().await);
    let daemon = shop.daemon().await;
    let mut redis = shop.stage.l2().await;
    for (row, expires, changes, refilled) in
        [(1, false, true, false), (2, true, true, false), (3, true, false, false), (4, false, true, true)]
    {
        let path = format!("/v1/soon/{row}");
        let end = shop.put(&sql, row, 10).await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(end).await;
        daemon.http().get(&path).await.expect(200);
        let overtaken = metric(&daemon, "overtaken").await;
        holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
        until_from(&daemon, &path, &["STALE"]).await;
        until_a_read_waits(&sql).await;
        let key = format!("soon:{row}");
        if expires {
            let _: () = redis.del(&key).await.unwrap();
        }
        if changes {
            let end = shop.put(&sql, row, 11).await;
            sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
            daemon.wait_applied(end).await;
        }
        let stands: Option<String> = redis.get(&key).await.unwrap();
        assert_eq!(stands, None, "the event has dropped it");
        let late = refilled.then(|| {
            // Somebody who reads now misses, and fills under a lease while the renewal still flies.
            let (http, path) = (daemon.http(), path.clone());
            tokio::spawn(async move { version(&http.get(&path).await.expect(200).json()) })
        });
        if refilled {
            eventually("have a lease", || async {
                let stands: Option<String> = redis.clone().get(&key).await.unwrap();
                match stands {
                    Some(text) if text.contains("lease") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        holder.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        if let Some(late) = late {
            assert_eq!(late.await.unwrap(), Some(11));
        }
        eventually("notice that it was overtaken", || async {
            let count = metric(&daemon, "overtaken").await;
            if count > overtaken { Ok(()) } else { Err(count) }
        })
        .await;
        let mut raw = Raw::connect(&shop.stage).await.unwrap();
        let stored = format!("{:?}", raw.look(&key).await.unwrap());
        assert!(!stored.contains("\\\"version\\\":10"), "row {row}: {stored}");
        for _ in 0..5 {
            let response = daemon.http().get(&path).await.expect(200);
            assert_eq!(version(&response.json()), Some(if changes { 11 } else { 10 }), "{response:?}");
        }
    }
    shop.equals_postgres(&daemon).await;
}

/// Postgres gives a renewal up that takes too long, beside one that does not: neither entry is dropped for that, and both are
/// renewed once it answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_outlives_a_renewal_that_takes_too_long() {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
        INSERT INTO items SELECT i, 7 FROM generate_series(1, 3) i;
        CREATE FUNCTION held(id int) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN
            IF id <> 2 THEN PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1); END IF;
            RETURN id;
        END $$";
    let query = r#"
        params = { id = "int" }
        query = "select held(id) as id, n from items where id = $1"
        shape = "one"
        on_change = "invalidate"
        depends_on = [{ table = "public.items", key = { id = "id" } }]
    "#;
    let soon = stale(Entity::query("soon", query).set("ttl", "1s").set("ttl_jitter", 0.0));
    let scene = Scene::open("renew_slow", schema, |config| {
        let config = config.set("audit", "rate", 0).set("source", "fill_timeout", "3s");
        config.set("l2", "lease_wait", "300ms").set("l2", "lease_ttl", "5s").entity(soon)
    })
    .await;
    for id in 1..=3 {
        scene.get(&format!("soon/{id}")).await.expect(200);
    }
    let before = scene.stored("soon:1").await.expect("an entry");
    let holder = scene.stage.sql().await;
    holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    // While this one waits, the other two come together.
    until_from(&scene.daemon, "/v1/soon/3", &["STALE"]).await;
    until_a_read_waits(&scene.sql).await;
    let failed = metric(&scene.daemon, "error").await;
    let (one, two) = tokio::join!(scene.get("soon/1"), scene.get("soon/2"));
    assert_eq!((one.header("x-cache"), two.header("x-cache")), ("STALE", "STALE"));
    eventually("give all three up", || async {
        let count = metric(&scene.daemon, "error").await - failed;
        if count >= 3.0 { Ok(()) } else { Err(count) }
    })
    .await;
    assert_eq!(scene.stored("soon:1").await.as_ref(), Some(&before), "it was dropped");
    let stands = scene.get("soon/1").await.expect(200);
    assert_eq!((stands.header("x-cache"), &stands.json()["n"]), ("STALE", &7.into()));
    holder.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    for id in 1..=3 {
        until_from(&scene.daemon, &format!("/v1/soon/{id}"), &["HIT-L1", "HIT-L2"]).await;
    }
    scene.verify().await;
}

/// Renewed where it is read when it is older than 3 s, and served for as long after that.
fn ahead(entity: Entity) -> Entity {
    entity.set("ttl", "6s").set("refresh_ahead", 0.5)
}

/// A hot entry is never missed, and one that nobody reads is left to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_entry_is_renewed_before_it_is_due() {
    for (name, l1, l2) in [("ahead_both", true, true), ("ahead_l2", false, true), ("ahead_l1", true, false)] {
        let mut shop = shop(name, ahead).await;
        let brief = Entity::new("brief", "public.counters").set("ttl", "2s").set("ttl_jitter", 0.0);
        shop.config = shop.config.set("l1", "enabled", l1).entity(brief.set("refresh_ahead", 0.1));
        if !l2 {
            shop.config = shop.config.without("l2");
        }
        let sql = shop.sql().await;
        shop.put(&sql, 1, 7).await;
        let end = shop.put(&sql, 2, 7).await;
        let daemon = shop.daemon().await;
        daemon.wait_applied(end).await;
        for path in ["/v1/soon/1", "/v1/brief/2"] {
            eventually("be cached", || async {
                let response = daemon.http().get(path).await.expect(200);
                if response.header("x-cache").starts_with("HIT") { Ok(()) } else { Err("not yet") }
            })
            .await;
        }
        let before = rows_read(&sql).await;
        let counted = if l2 { "published" } else { "uncached" };
        let began = Instant::now();
        // The other one is over by then.
        eventually("renew it twice", || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let response = daemon.http().get("/v1/soon/1").await.expect(200);
            assert!(response.header("x-cache").starts_with("HIT"), "{name}: {response:?}");
            let count = metric(&daemon, counted).await;
            if count >= 2.0 { Ok(()) } else { Err(count) }
        })
        .await;
        // Not sooner than half of its life after the first time.
        assert!(began.elapsed() > Duration::from_millis(2900), "{name}: {:?}", began.elapsed());
        // Before the second was counted, the next one may have begun.
        let reads = rows_read(&sql).await - before;
        assert!((2..=3).contains(&reads), "{name}: {reads} reads");
        let cold = daemon.http().get("/v1/brief/2").await.expect(200);
        assert_eq!(cold.header("x-cache"), "MISS", "{name}");
    }
}

/// What is due in L1 gives way to a newer one in L2, as another instance may have renewed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_in_l1_is_looked_for_in_l2() {
    let shop = shop("renew_newer", stale).await;
    let sql = shop.sql().await;
    let end = shop.put(&sql, 1, 7).await;
    let daemon = shop.daemon().await;
    daemon.wait_applied(end).await;
    until_from(&daemon, "/v1/soon/1", &["HIT-L1"]).await;
    let mut redis = shop.stage.l2().await;
    let mut text: Vec<u8> = redis.get("soon:1").await.unwrap();
    text[entry::DUE].copy_from_slice(&Due::now().after(Duration::from_secs(100)).digits());
    let _: () = redis.set("soon:1", text).await.unwrap();
    let next = until_from(&daemon, "/v1/soon/1", &["STALE", "HIT-L2", "MISS", "BYPASS"]).await;
    assert_eq!(next.header("x-cache"), "HIT-L2");
}

/// A hot entry that L2 has evicted is filled before its life in L1 ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_l2_has_lost_is_filled_ahead_all_the_same() {
    let shop = shop("ahead_lost", ahead).await;
    let sql = shop.sql().await;
    let end = shop.put(&sql, 1, 7).await;
    let daemon = shop.daemon().await;
    daemon.wait_applied(end).await;
    until_from(&daemon, "/v1/soon/1", &["HIT-L1"]).await;
    let mut redis = shop.stage.l2().await;
    let _: () = redis.del("soon:1").await.unwrap();
    eventually("have it in L2 again", || async {
        let response = daemon.http().get("/v1/soon/1").await.expect(200);
        assert!(response.header("x-cache").starts_with("HIT"), "{response:?}");
        let stands: Option<Vec<u8>> = redis.clone().get("soon:1").await.unwrap();
        if stands.is_some_and(|text| text.starts_with(b"{\"lo\":")) { Ok(()) } else { Err("it is not there") }
    })
    .await;
}

/// L2 as an instance sees it, with the fence of a leader.
struct Tier {
    l2: Arc<L2>,
    redis: MultiplexedConnection,
    entity: walcache::entity::Entity,
    stop: CancellationToken,
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const FENCE: &str = "p:~walcache:fence";

impl Tier {
    async fn new(stage: &Stage) -> Tier {
        let patience = Duration::from_secs(20);
        let l2 = L2::new(l2::Config {
            url: stage.l2_url(),
            prefix: "p:".into(),
            response_timeout: patience,
            connect_timeout: patience,
            lease_ttl: Duration::from_secs(30),
            lease_wait: patience,
        });
        let (l2, mut redis) = (Arc::new(l2.unwrap()), stage.l2().await);
        let lsn = |n: u64| String::from_utf8(Lsn::from_u64(n).hex16().to_vec()).unwrap();
        let fields = [("epoch", lsn(1)), ("hw", lsn(50)), ("done", lsn(50)), ("gen", lsn(3))];
        let _: () = redis.hset_multiple(FENCE, &fields).await.unwrap();
        let stop = CancellationToken::new();
        l2.claimed(1, Lsn::from_u64(50));
        let hierarchy = Hierarchy {
            entities: Vec::new(),
            l1: None,
            l2: Some(l2.clone()),
            watermark: Watermark::default(),
            voids: Voids::new(0),
        };
        let metrics = Arc::new(InstanceMetrics::new());
        tokio::spawn(l2.clone().keep_connected(Arc::new(hierarchy), metrics, stop.clone()));
        eventually("be trusted", || async { if l2.is_trusted() { Ok(()) } else { Err("not yet") } }).await;
        let key = KeyColumn { name: "id".into(), type_oid: 25, key_type: KeyType::Text, cast: String::new() };
        let shape = Shape { key: vec![key], ..Shape::unknown(0) };
        let entity = walcache::entity::Entity::new(0, Definition::rows("row", "public", "rows"), "p:", shape);
        Tier { l2, redis, entity, stop }
    }

    fn key(&self) -> EntryKey {
        self.entity.key("a").unwrap()
    }

    /// Stores an entry as somebody else would.
    async fn put(&mut self, (lo, hi, generation): (u64, u64, u64), due: Due, value: &str) -> Vec<u8> {
        let label = Label {
            lo: Lsn::from_u64(lo),
            hi: Lsn::from_u64(hi),
            generation: Generation(generation),
            split: false,
            due,
        };
        let text = entry::encode(&label, Some(value.as_bytes()));
        let _: () = self.redis.set(self.key().redis(), &text).await.unwrap();
        text
    }

    async fn claim(&self, seen: Due) -> Claimed {
        let (hw, claims) = self.l2.claim_renewals(&[(self.key(), seen)], Generation(3)).await.unwrap();
        assert_eq!(hw, Some(Lsn::from_u64(50)));
        claims.into_iter().next().unwrap()
    }

    /// Publishes a renewed value; what stands there then.
    async fn replace(&mut self, head: &[u8; entry::HEAD], due: Option<Due>) -> (bool, Option<String>) {
        let label =
            |due| Label { lo: Lsn::from_u64(50), hi: Lsn::from_u64(70), generation: Generation(3), split: false, due };
        let text = due.map(|due| entry::encode(&label(due), Some(b"\"new\"")));
        let key = self.key();
        let renewed = [Renewed { key: &key, head, text }];
        let replaced = self.l2.replace(&renewed, Due::now().before(Duration::from_secs(60)), Lsn::from_u64(70)).await;
        let stands: Option<Vec<u8>> = self.redis.get(key.redis()).await.unwrap();
        let marks: Vec<String> = self.redis.keys("p:~walcache:renew:*").await.unwrap();
        assert!(marks.is_empty(), "{marks:?}");
        (replaced.unwrap()[0], stands.map(|text| String::from_utf8(text[entry::HEAD..].to_vec()).unwrap()))
    }
}

/// What the scripts promise one another: see `cache::l2::renew`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_very_entry_that_was_claimed_is_replaced() {
    let stage = Stage::shared("renew_scripts").await;
    let mut tier = Tier::new(&stage).await;
    let (old, later) = (Due::now(), Due::now().after(Duration::from_secs(100)));
    assert_eq!(tier.claim(later).await, Claimed::Nothing, "there is none");
    // One flight at a time, and not for an entry that is newer than the one that was read, or of another generation.
    tier.put((20, 30, 3), old, "\"old\"").await;
    let Claimed::Entry(head) = tier.claim(old).await else { panic!("it is there") };
    assert_eq!(tier.claim(old).await, Claimed::Elsewhere);
    assert_eq!(tier.replace(&head, Some(later)).await, (true, Some("\"new\"}".into())));
    let (filled, stays): (String, i64) =
        (tier.redis.hget(FENCE, "filled").await.unwrap(), tier.redis.pttl("p:row:a").await.unwrap());
    assert_eq!(filled, "0000000000000046", "events up to 70 must look");
    assert!((100_000..=160_000).contains(&stays), "{stays}");
    assert_eq!(tier.claim(old).await, Claimed::Nothing, "it was renewed meanwhile");
    tier.put((20, 30, 2), old, "\"old\"").await;
    assert_eq!(tier.claim(later).await, Claimed::Nothing, "of another generation");

    // Each replaces what was claimed; none gives way to the renewed value, which lacks it.
    let others =
        [((60, 60, 3), "an event"), ((20, 31, 3), "another hi"), ((21, 30, 3), "a fill"), ((20, 30, 4), "raised")];
    for (labels, what) in others {
        tier.put((20, 30, 3), old, "\"old\"").await;
        let Claimed::Entry(head) = tier.claim(later).await else { panic!("{what}: it is there") };
        tier.put(labels, old, "\"event\"").await;
        assert_eq!(tier.replace(&head, Some(later)).await, (false, Some("\"event\"}".into())), "{what}");
    }
    // Gone, or a lease: it stays so.
    for stands in [None, Some("{\"lease\":\"00000000deadbeef\"}")] {
        tier.put((20, 30, 3), old, "\"old\"").await;
        let Claimed::Entry(head) = tier.claim(later).await else { panic!("it is there") };
        let _: () = match stands {
            None => tier.redis.del("p:row:a").await.unwrap(),
            Some(lease) => tier.redis.set("p:row:a", lease).await.unwrap(),
        };
        let (key, due) = (tier.key(), Due::now());
        let renewed = [Renewed { key: &key, head: &head, text: Some(b"x".to_vec()) }];
        let replaced = tier.l2.replace(&renewed, due, Lsn::from_u64(70));
        assert_eq!(replaced.await.unwrap(), [false]);
        let left: Option<String> = tier.redis.get("p:row:a").await.unwrap();
        assert_eq!(left.as_deref(), stands);
    }
    // What the row says is over is dropped.
    tier.put((20, 30, 3), old, "\"old\"").await;
    let Claimed::Entry(head) = tier.claim(later).await else { panic!("it is there") };
    assert_eq!(tier.replace(&head, None).await, (true, None));
}
