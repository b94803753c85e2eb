//! The daemon is killed under load, anywhere, and started again.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Shop, soak};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load() {
    let shop = Shop::new("crash").await;
    let mut rng = StdRng::seed_from_u64(1);
    let mut daemon = shop.daemon().await;
    let load = shop.load(&daemon, 1);
    let mut judged = 0;
    let soak = soak();
    for kill in 0.. {
        if kill >= 5 && soak.is_over() {
            break;
        }
        load.reads(20).await;
        load.writes(rng.random_range(20..200)).await;
        daemon.kill().await;
        judged += shop.confirmed_is_applied().await;
        daemon = shop.daemon().await;
    }
    let done = load.stop().await;
    assert!(judged > 50, "O4 looked at {judged} entries only: {done:?}");
    assert!(done.raw_reads > 100, "{done:?}");
    let compared = shop.equals_postgres(&daemon).await;
    assert!(compared.entries > 30, "{compared:?}");
}
