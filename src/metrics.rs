//! Every metric: its name, labels, unit and help text, by stage. Nothing else in the crate names one.
//!
//! Stages keep the structs of these modules, whose handles are resolved once: a cached handle costs a tenth of a look-up.
//! Labels are few and bounded by the configuration, and never contain a key.

mod apply;
mod audit;
mod cache;
mod command;
mod http;
mod instance;
mod label;
mod lifetime;
mod requery;
mod slot;
mod stream;
mod sweep;
mod warm;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use apply::ApplyMetrics;
pub use audit::AuditMetrics;
pub use cache::{CacheMetrics, FillMetrics};
pub use command::CommandMetrics;
pub use http::HttpMetrics;
pub use instance::InstanceMetrics;
pub use label::{
    Answered, Audit, Cause, Command, Commanded, Fenced, Fill, LookupVoid, NoRequery, Op, Renewal, Route, SlotStatus,
    Tier, Warmed,
};
pub use lifetime::LifetimeMetrics;
pub use requery::RequeryMetrics;
pub use slot::SlotMetrics;
pub use stream::ReplicationMetrics;
pub use sweep::SweepMetrics;
pub use warm::WarmMetrics;

/// Told by the stream, and by the look at the slot.
const REPLICATION_LAG_BYTES: &str = "walcache_replication_lag_bytes";

/// Installs the process's recorder and describes every metric. To be called once, before any handle is made: handles
/// made earlier count nothing. The caller runs [`PrometheusHandle::run_upkeep`] every few seconds, or histograms grow
/// without bound.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    describe();
    instance::tell_version();
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    [stream::BUCKETS, apply::BUCKETS, http::BUCKETS]
        .into_iter()
        .flatten()
        .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
            builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
        })
}

fn describe() {
    instance::describe();
    stream::describe();
    sweep::describe();
    slot::describe();
    apply::describe();
    cache::describe();
    lifetime::describe();
    requery::describe();
    command::describe();
    audit::describe();
    http::describe();
    warm::describe();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use warp::http::StatusCode;

    use super::*;
    use crate::lsn::Lsn;

    #[test]
    fn rendered_with_labels_buckets_and_help() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            let replication = ReplicationMetrics::new(["product", "note"]);
            replication.connected(true);
            replication.lag_bytes(Lsn::from_u64(100), Lsn::from_u64(90), Lsn::from_u64(200));
            replication.slot.set(SlotStatus::Extended, Some(50), None);
            replication.events(1, Op::Delete, 3);
            replication.events(7, Op::Delete, 3);
            replication.commit_to_visible(Duration::from_micros(1200));
            let apply = ApplyMetrics::new(["product"]);
            apply.batch(128, Duration::from_millis(1));
            apply.fenced(Fenced::Epoch);
            apply.invalidations(0, Cause::Toast, 2);
            apply.servable(0, true);
            let cache = CacheMetrics::new("product");
            cache.lookup(Tier::L2, Answered::Stale);
            cache.fill(Fill::Voided, 1);
            cache.lifetime.expired(Tier::L1, 4);
            cache.lifetime.overdue();
            cache.lifetime.renewed(Renewal::Overtaken, 1);
            CommandMetrics::new().count(Command::Invalidate, Commanded::BadKey);
            FillMetrics::new().running.increment(3.0);
            AuditMetrics::new().check(Tier::L2, Audit::Finding);
            let instance = InstanceMetrics::new();
            instance.leader(true);
            instance.l1(Some("product"), 3, (1000, 1 << 20));
            instance.l1(None, 0, (0, 1 << 20));
            HttpMetrics::default().observe(Route::Read, StatusCode::OK, Duration::from_micros(20));
            HttpMetrics::default().observe(Route::Other, StatusCode::IM_A_TEAPOT, Duration::from_micros(20));
        });
        let text = handle.render();
        for line in [
            "# TYPE walcache_replication_connected gauge",
            "walcache_replication_connected 1",
            "walcache_replication_lag_bytes{kind=\"received\"} 10",
            "walcache_replication_lag_bytes{kind=\"applied\"} 0",
            "walcache_replication_lag_bytes{kind=\"retained\"} 50",
            "walcache_replication_slot_safe_bytes inf",
            "walcache_replication_slot_status{status=\"reserved\"} 0",
            "walcache_replication_slot_status{status=\"extended\"} 1",
            "walcache_replication_events_total{entity=\"note\",op=\"delete\"} 3",
            "walcache_replication_events_total{entity=\"product\",op=\"insert\"} 0",
            "walcache_commit_to_visible_seconds_bucket{le=\"0.001\"} 0",
            "walcache_commit_to_visible_seconds_bucket{le=\"0.0015\"} 1",
            "walcache_apply_batch_keys_bucket{le=\"128\"} 1",
            "walcache_fenced_writes_total{reason=\"epoch\"} 1",
            "walcache_cache_invalidations_total{entity=\"product\",cause=\"toast\"} 2",
            "walcache_cache_requests_total{tier=\"l2\",entity=\"product\",result=\"stale\"} 1",
            "walcache_fills_total{entity=\"product\",result=\"voided\"} 1",
            "walcache_cache_expired_total{tier=\"l1\",entity=\"product\"} 4",
            "walcache_cache_overdue_total{entity=\"product\"} 1",
            "walcache_renewals_total{entity=\"product\",result=\"overtaken\"} 1",
            "walcache_renewals_total{entity=\"product\",result=\"published\"} 0",
            "walcache_l1_bytes{part=\"product\"} 1000",
            "walcache_l1_max_bytes{part=\"_shared\"} 1048576",
            "walcache_commands_total{command=\"invalidate\",result=\"bad_key\"} 1",
            "walcache_fills_running 3",
            "walcache_fills_waiting 0",
            "walcache_audit_checks_total{tier=\"l2\",result=\"finding\"} 1",
            "walcache_audit_checks_total{tier=\"l1\",result=\"ok\"} 0",
            "walcache_entity_servable{entity=\"product\"} 1",
            "walcache_leader 1",
            "walcache_l2_trusted 0",
            "walcache_http_requests_total{route=\"read\",code=\"200\"} 1",
            "walcache_http_requests_total{route=\"other\",code=\"418\"} 1",
            "walcache_http_request_duration_seconds_bucket{route=\"read\",le=\"0.000025\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n--\n{text}");
        }
        let helped = |line: &&str| text.contains(&format!("# HELP {} ", line.split(' ').nth(2).unwrap()));
        assert!(text.lines().filter(|line| line.starts_with("# TYPE")).all(|line| helped(&line)), "{text}");
    }

    #[test]
    fn label_values_stand_in_the_order_of_their_variants() {
        assert!(Op::ALL.iter().enumerate().all(|(i, (op, _))| *op as usize == i));
        assert!(Command::ALL.iter().enumerate().all(|(i, (command, _))| *command as usize == i));
        assert!(Commanded::ALL.iter().enumerate().all(|(i, (result, _))| *result as usize == i));
        assert!(Audit::ALL.iter().enumerate().all(|(i, (audit, _))| *audit as usize == i));
        assert!(SlotStatus::ALL.iter().enumerate().all(|(i, (status, _))| *status as usize == i));
        assert!(Renewal::ALL.iter().enumerate().all(|(i, (result, _))| *result as usize == i));
        assert!(Cause::ALL.iter().enumerate().all(|(i, (cause, _))| *cause as usize == i));
    }
}
