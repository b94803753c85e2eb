//! A Redis that goes back to before a sweep.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use walcache::cache::Hierarchy;
use walcache::cache::l2::{Config, L2};
use walcache::cache::voids::Voids;
use walcache::cache::watermark::Watermark;
use walcache::entity::{Definition, Entity, Generation, Shape};
use walcache::entry::{Due, Label, encode};
use walcache::lsn::Lsn;
use walcache::metrics::InstanceMetrics;
use walcache::sandbox::{Redis, RedisOptions, Restart};
use walcache::void::Void;
use walcache::void::glob::Glob;

use crate::harness::eventually;

const FENCE: &str = "~walcache:fence";
const EPOCH: u64 = 1;

/// 17: the dump is from between a void and its sweep, and is loaded when all was swept but the pattern not forgotten. What the
/// fence shows as done is right, and readers find a new connection by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_swept_before_redis_went_back_is_swept_again() {
    let redis = Redis::start(RedisOptions::new()).await.unwrap();
    let config = Config {
        url: redis.url(),
        prefix: String::new(),
        response_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        lease_ttl: Duration::from_secs(5),
        lease_wait: Duration::ZERO,
    };
    let entity = Arc::new(Entity::new(0, Definition::rows("item", "public", "items"), "", Shape::unknown(0)));
    let l2 = Arc::new(L2::new(config).unwrap());
    let (watermark, voids) = (Watermark::default(), Voids::new(1));
    let entities = vec![entity.clone()];
    let hierarchy = Arc::new(Hierarchy { entities, l1: None, l2: Some(l2.clone()), watermark, voids });
    let (old, voided) = (Lsn::from_u64(10), Lsn::from_u64(20));

    // As whoever leads leaves it once a void is applied: an entry stands that is older.
    let glob = Arc::new(Glob::parse("item:*").unwrap());
    let fields = hierarchy.voids.raise(&hierarchy.entities, [(&Void::Pattern { entity: 0, glob }, voided)].into_iter());
    let mut fence: HashMap<String, Vec<u8>> = fields.into_iter().collect();
    fence.extend(["hw", "done"].map(|field| (field.to_owned(), voided.hex16().to_vec())));
    fence.insert("epoch".to_owned(), Generation(EPOCH).hex16().to_vec());
    let mut raw = redis.connect().await.unwrap();
    let fence: Vec<(String, Vec<u8>)> = fence.into_iter().collect();
    raw.hset_multiple::<_, _, _, ()>(FENCE, &fence).await.unwrap();
    let label = Label { lo: old, hi: old, generation: Generation(0), split: false, due: Due::NEVER };
    raw.set::<_, _, ()>("item:1", encode(&label, Some(b"{\"id\":1}"))).await.unwrap();
    redis.save().await.unwrap();
    hierarchy.watermark.advance(voided);
    l2.claimed(EPOCH, voided);
    let stop = CancellationToken::new();
    let metrics = Arc::new(InstanceMetrics::new());
    let connected = tokio::spawn(l2.clone().keep_connected(hierarchy.clone(), metrics, stop.clone()));
    let stands = async || {
        // A connection that broke is found out by whoever uses it.
        eventually("reach L2", || l2.get(&["item:1"])).await.pop().flatten()
    };
    assert!(stands().await.is_some());

    let sweep = hierarchy.sweep(hierarchy.due(), 10_000).await.unwrap();
    assert_eq!(sweep.removed.l2, 1);
    assert_eq!(stands().await, None);
    redis.kill().await.unwrap();
    redis.start_again(Restart::KeepData).await.unwrap();
    assert!(stands().await.is_some(), "it went back");
    assert_eq!(hierarchy.retire(&sweep), None);
    let swept = hierarchy.voids.swept(&entity);
    let is_served = |swept| hierarchy.stands(&entity, "item:1", old, Some(b"{\"id\":1}"), swept);
    assert!(!is_served(swept), "the pattern is forgotten, and what it voids is there");

    let sweep = hierarchy.sweep(hierarchy.due(), 10_000).await.unwrap();
    assert_eq!(sweep.removed.l2, 1);
    let gone = hierarchy.retire(&sweep).expect("the same connection");
    assert_eq!(gone, [("glob:item:item:*".to_owned(), Vec::new())]);
    assert!(hierarchy.voids.patterns(0).is_empty());
    stop.cancel();
    connected.await.unwrap();
}
