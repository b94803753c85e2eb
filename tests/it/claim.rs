//! What a claim on L2 notices: other timelines, and a server that went back behind a connection that still stands.

use std::time::Duration;

use walcache::apply::ApplyError;
use walcache::apply::claim::{Claim, Position, Scripts, claim};
use walcache::cache::Hierarchy;
use walcache::cache::l2::{self, L2};
use walcache::cache::voids::Voids;
use walcache::cache::watermark::Watermark;
use walcache::lsn::Lsn;

use crate::harness::Stage;

fn l2(stage: &Stage) -> L2 {
    let patience = Duration::from_secs(20);
    L2::new(l2::Config {
        url: stage.l2_url(),
        prefix: String::new(),
        response_timeout: patience,
        connect_timeout: patience,
        lease_ttl: patience,
        lease_wait: patience,
    })
    .unwrap()
}

struct Claimant {
    source: tokio_postgres::Client,
    hierarchy: Hierarchy,
    l2: L2,
    scripts: Scripts,
}

impl Claimant {
    async fn new(stage: &Stage) -> Claimant {
        stage.execute("CREATE SCHEMA walcache; CREATE SEQUENCE walcache.epoch").await;
        let (watermark, voids) = (Watermark::default(), Voids::new(0));
        let hierarchy = Hierarchy { entities: Vec::new(), l1: None, l2: None, watermark, voids };
        Claimant { source: stage.sql().await, hierarchy, l2: l2(stage), scripts: Scripts::default() }
    }

    async fn claim(&self, source: &str, applied: u64) -> Claim {
        let position = Position { source, applied: Lsn::from_u64(applied), broken: None, missed: None };
        let connection = self.l2.connect().await.unwrap();
        claim(connection, &self.hierarchy, &self.l2, &self.scripts, &self.source, &position).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_came_along_to_a_shorter_timeline_takes_the_watermark_back() {
    let stage = Stage::shared("claim_timeline").await;
    let claimant = Claimant::new(&stage).await;
    claimant.claim("cluster/1/db/slot", 1000).await;
    claimant.hierarchy.watermark.advance(Lsn::from_u64(1000));
    let claim = claimant.claim("cluster/2/db/slot", 900).await;
    assert_eq!((claim.done, claim.takeover), (Lsn::from_u64(900), Lsn::from_u64(900)));
    assert_eq!(claimant.hierarchy.watermark.load(), Lsn::from_u64(900), "1000 lies on the other timeline");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_back_is_not_marked_as_done() {
    let stage = Stage::shared("claim_went_back").await;
    let claimant = Claimant::new(&stage).await;
    let mut claim = claimant.claim("cluster/1/db/slot", 1000).await;
    let done = |lsn: u64| [("done".to_owned(), Lsn::from_u64(lsn).hex16().to_vec())];
    let acknowledged = Some(Lsn::from_u64(1000));
    claim.set(&claimant.l2, &claimant.scripts, acknowledged, &done(2000)).await.unwrap();
    // As after a full resynchronisation from a server that missed some writes: connections stay, data goes.
    let mut l2 = stage.l2().await;
    let fence = &claimant.l2.fence_key;
    redis::cmd("HSET").arg(fence).arg("done").arg(&Lsn::from_u64(1000).hex16()).exec_async(&mut l2).await.unwrap();
    let acknowledged = Some(Lsn::from_u64(2000));
    let refused = claim.set(&claimant.l2, &claimant.scripts, acknowledged, &done(3000)).await;
    assert!(matches!(refused, Err(ApplyError::WentBack)), "{refused:?}");
}

/// On a promoted standby that lacks the sequence's last record, numbers would come again.
#[tokio::test(flavor = "multi_thread")]
async fn no_epoch_or_generation_comes_twice() {
    let stage = Stage::shared("claim_sequence").await;
    let claimant = Claimant::new(&stage).await;
    let mut claim = claimant.claim("cluster/1/db/slot", 1000).await;
    let raised = [("gen:product".to_owned(), Lsn::from_u64(77).hex16().to_vec())];
    claim.set(&claimant.l2, &claimant.scripts, None, &raised).await.unwrap();
    stage.execute("SELECT setval('walcache.epoch', 1, false)").await;
    let next = claimant.claim("cluster/2/db/slot", 900).await;
    assert_eq!(next.epoch, Lsn::from_u64(78).hex16());
    let stale = claim.set(&claimant.l2, &claimant.scripts, None, &raised).await;
    assert!(matches!(stale, Err(ApplyError::Fenced)), "{stale:?}");
}
