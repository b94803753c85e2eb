use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::FutureExt;

use super::index::Index;
use super::*;
use crate::entity::{Definition, Entity, Shape};

fn cached(key: &str, as_of: u64) -> Cached {
    Cached {
        key: key.into(),
        value: Some(Bytes::from_static(b"1")),
        etag: 1,
        as_of: Lsn::from_u64(as_of),
        hi: Lsn::from_u64(as_of),
        generation: Generation(1),
        due: Due::NEVER,
        expires: Instant::now() + Duration::from_secs(3600),
        tags: Box::default(),
        checked: AtomicU64::new(0),
        over: Instant::now() + Duration::from_secs(3600),
        charge: Charge::default(),
    }
}

fn hash(n: usize) -> u64 {
    crate::entity::hash(format!("product:{n}").as_bytes())
}

fn fill(l1: &L1, entity: usize, keys: std::ops::Range<usize>) {
    for n in keys {
        l1.insert(entity, hash(n), cached(&format!("product:{n}"), 5));
    }
}

fn walk(l1: &L1, entity: usize, limit: usize) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut place = Some(Place::default());
    while let Some(from) = place {
        let (page, next) = l1.page(entity, from, limit);
        assert!(page.len() <= limit);
        for hash in page {
            assert!(found.insert(hash), "{hash} came twice");
        }
        place = next;
    }
    found
}

/// Everything in the index of all shards, duplicates included.
fn noted(l1: &L1, entity: usize) -> usize {
    l1.parts[0].shards.iter().filter_map(OnceLock::get).map(|s| s.index.len(entity)).sum()
}

async fn settled(l1: &L1) {
    for shard in l1.parts[0].shards.iter().filter_map(OnceLock::get) {
        shard.cache.wait().await.unwrap();
        shard.compact().await;
    }
}

#[tokio::test]
async fn a_walk_meets_every_entry_of_its_entity_once() {
    let l1 = L1::new(64 << 20);
    fill(&l1, 0, 0..3000);
    fill(&l1, 2, 3000..3100);
    // Again, as after a change.
    fill(&l1, 0, 0..500);
    for limit in [1, 7, 256, 10_000] {
        assert_eq!(walk(&l1, 0, limit), (0..3000).map(hash).collect(), "{limit}");
        assert_eq!(walk(&l1, 2, limit), (3000..3100).map(hash).collect(), "{limit}");
        assert!(walk(&l1, 1, limit).is_empty() && walk(&l1, 9, limit).is_empty());
    }
    for hash in walk(&l1, 2, 10) {
        assert!(l1.peek(2, hash).is_some());
    }
}

#[tokio::test]
async fn the_index_stays_within_twice_what_is_held() {
    // Room for some 2,500 entries in one shard.
    let l1 = L1::new(1 << 20);
    let mut held = 0;
    // The same keys again and again, and many that are evicted.
    for round in 0..20 {
        fill(&l1, 0, 0..500);
        fill(&l1, 1, 1000 + round * 400..1000 + (round + 1) * 400);
        // Inserts go on while it is compacted, but not for ever.
        while l1.parts[0].shards.iter().filter_map(OnceLock::get).any(|s| s.index.is_compacting()) {
            tokio::task::yield_now().await;
        }
        held = held.max(l1.len());
    }
    let most = noted(&l1, 0) + noted(&l1, 1);
    // A round may come before the compaction that it is due for.
    assert!(most <= 2 * held.max(1024) + 900, "{most} for {held}");
    settled(&l1).await;
    // Compacted just now, it is exact.
    let held = l1.len();
    assert!(held > 500, "{held}");
    assert_eq!(noted(&l1, 0) + noted(&l1, 1), held);
    assert_eq!(walk(&l1, 0, 1000).len() + walk(&l1, 1, 1000).len(), held);
}

/// stretto's own `get_ttl` takes a lock for reading twice: with a writer between the two nobody ever went on.
#[test]
fn compacting_and_writing_do_not_wait_for_each_other() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let _inside = runtime.enter();
    let l1 = L1::new(1 << 20);
    fill(&l1, 0, 0..500);
    let shard = l1.parts[0].shards[0].get().unwrap().clone();
    let (done, ended) = std::sync::mpsc::channel();
    let (writer, written) = (shard.clone(), done.clone());
    runtime.spawn(async move {
        for n in (0..500).cycle().take(200_000) {
            let _ = writer.cache.insert(hash(n), Arc::new(cached("product:1", 5)), 1).now_or_never();
        }
        written.send("written").unwrap();
    });
    runtime.spawn(async move {
        for _ in 0..400 {
            shard.compact().await;
        }
        done.send("compacted").unwrap();
    });
    let ended = [(); 2].map(|()| ended.recv_timeout(Duration::from_secs(60)));
    // Waits for no thread that hangs.
    runtime.shutdown_background();
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}

#[tokio::test]
async fn what_is_inserted_while_the_index_is_compacted_is_kept() {
    let index = Index::default();
    for hash in 0..600 {
        index.note(0, hash);
        index.note(0, hash);
    }
    let compact = index.compact(|hash| hash % 2 == 0 && hash < 600);
    let insert = async {
        for hash in 600..700 {
            index.note(0, hash);
            index.note(1, hash);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(compact, insert);
    let wanted: Vec<u64> = (0..600).step_by(2).chain(600..700).collect();
    assert_eq!(index.page(0, 0, 10_000), wanted);
    assert_eq!(index.page(1, 0, 10_000), (600..700).collect::<Vec<_>>());
}

#[tokio::test]
async fn samples_are_of_one_entity_and_reach_all_of_it() {
    let l1 = L1::new(64 << 20);
    fill(&l1, 0, 0..5000);
    fill(&l1, 1, 5000..5020);
    let seen: BTreeSet<u64> = l1.sample(1, 1000).into_iter().collect();
    // Each is missed with a chance of (19/20)^1000.
    assert_eq!(seen, (5000..5020).map(hash).collect());
    let many: BTreeSet<u64> = l1.sample(0, 5000).into_iter().collect();
    assert!(many.len() > 2500 && many.is_subset(&(0..5000).map(hash).collect()), "{}", many.len());
    assert!(l1.sample(2, 10).is_empty());
}

#[tokio::test]
async fn an_invalidated_cell_takes_nothing_that_was_fetched_before() {
    let l1 = L1::new(1 << 20);
    fill(&l1, 0, 0..1);
    let (one, generation) = (hash(0), Generation(1));
    let held = l1.peek(0, one).unwrap();
    assert_eq!(l1.judge(one, &held, generation), Ok(()));
    assert_eq!(l1.judge(one, &held, Generation(2)), Err(Unservable::Generation));
    l1.invalidate(0, one, Lsn::from_u64(7)).await;
    assert_eq!(l1.judge(one, &held, generation), Err(Unservable::Fenced));
    assert!(l1.peek(0, one).is_none());
    // A reader that had it from L2 just before.
    l1.insert(0, one, cached("product:0", 7));
    assert!(l1.peek(0, one).is_none());
    l1.insert(0, one, cached("product:0", 8));
    assert!(l1.peek(0, one).is_some_and(|cached| l1.judge(one, &cached, generation).is_ok()));
    let late = Cached { over: Instant::now(), ..cached("product:0", 8) };
    assert_eq!(l1.judge(one, &late, generation), Err(Unservable::Expired));
}

#[tokio::test]
async fn a_part_of_its_own_neither_evicts_nor_is_evicted() {
    let l1 = L1::with_parts(1 << 20, &[None, Some(1 << 20), None]);
    fill(&l1, 1, 0..300);
    let hot = |l1: &L1| (0..300).filter(|n| l1.peek(1, hash(*n)).is_some()).count();
    assert_eq!(hot(&l1), 300);
    // Many times what fits, of entities that share the other part; and then of this one.
    fill(&l1, 0, 1000..9000);
    fill(&l1, 2, 40_000..44_000);
    for shard in l1.parts.iter().flat_map(|part| &part.shards).filter_map(OnceLock::get) {
        shard.cache.wait().await.unwrap();
    }
    assert_eq!(hot(&l1), 300, "others have evicted it");
    let fullness = l1.fullness();
    let [(None, shared), (Some(1), own)] = fullness[..] else { panic!("{fullness:?}") };
    assert!(shared.size <= shared.max_size && shared.size > shared.max_size / 2, "{shared:?}");
    assert_eq!((own.entries, own.max_size, l1.len()), (300, 1 << 20, 300 + shared.entries));
    assert!((300 * 200..300 * 1000).contains(&own.size), "{own:?}");
    let others = (1000..9000).filter(|n| l1.peek(0, hash(*n)).is_some()).count();
    fill(&l1, 1, 60_000..66_000);
    assert_eq!((1000..9000).filter(|n| l1.peek(0, hash(*n)).is_some()).count(), others, "it has evicted others");
}

#[tokio::test]
async fn what_is_over_is_removed_and_its_memory_given_back() {
    let l1 = L1::new(8 << 20);
    let shape = Shape::unknown(0);
    let entity = Entity::new(0, Definition::rows("product", "public", "products"), "", shape);
    entity.raise(Generation(1));
    fill(&l1, 0, 0..1000);
    for n in 0..600 {
        let over = Instant::now();
        l1.insert(0, hash(n), Cached { over, ..cached(&format!("product:{n}"), 5) });
    }
    let before = l1.fullness()[0].1;
    assert_eq!(before.entries, 1000);
    let (mut expired, mut place) = (0, Some(Place::default()));
    while let Some(from) = place {
        let (found, next) = l1.expire(&entity, from, 64).await;
        (expired, place) = (expired + found, next);
    }
    assert_eq!(expired, 600);
    // Removals are carried out beside.
    for shard in l1.parts[0].shards.iter().filter_map(OnceLock::get) {
        shard.cache.wait().await.unwrap();
    }
    let after = l1.fullness()[0].1;
    assert_eq!(after.entries, 400);
    assert!(after.size < before.size / 2, "{before:?}, {after:?}");
    assert!((0..1000).all(|n| l1.peek(0, hash(n)).is_some() == (n >= 600)));
}

/// Not run by default: it measures. `cargo test --release --lib l1::tests::cost -- --ignored --nocapture`
#[tokio::test]
#[ignore = "it measures"]
async fn cost_of_the_index() {
    let rounds = 4;
    for round in 0..3 {
        let l1 = L1::new(256 << 20);
        let keys: Vec<(u64, String)> = (0..50_000).map(|n| (hash(n), format!("product:{n}"))).collect();
        let begin = Instant::now();
        for _ in 0..rounds {
            for (hash, key) in &keys {
                l1.insert(0, *hash, cached(key, 5));
            }
            tokio::task::yield_now().await;
        }
        let all = begin.elapsed();
        let index = Index::default();
        let begin = Instant::now();
        for _ in 0..rounds {
            for (hash, _) in &keys {
                if index.note(0, *hash) {
                    index.compact(|_| true).await;
                }
            }
        }
        let noting = begin.elapsed();
        let each = |elapsed: Duration| elapsed.as_nanos() / (rounds * keys.len()) as u128;
        println!("round {round}: insert {} ns, of which the index {} ns", each(all), each(noting));
    }
}
