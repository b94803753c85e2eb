//! What metrics need every few seconds.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::cache::l1::L1;

/// How often histograms are condensed.
const UPKEEP: Duration = Duration::from_secs(5);

/// Runs until `stop`.
pub(super) async fn run(prometheus: &PrometheusHandle, context: &Context, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP);
    let hierarchy = &context.hierarchy;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                prometheus.run_upkeep();
                context.instance.db_pool_available(context.pool.status().available);
                for (entity, l1) in hierarchy.l1.iter().flat_map(L1::fullness) {
                    let name = entity.map(|id| hierarchy.entities[id].name.as_str());
                    context.instance.l1(name, l1.entries, (l1.size, l1.max_size));
                }
            }
        }
    }
}
