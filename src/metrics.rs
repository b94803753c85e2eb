//! Every metric: its name, labels, unit and help text. Nothing else in the crate names one.
//!
//! Stages keep the structs below, whose handles are resolved once: a cached handle costs a tenth of a look-up. Labels
//! are few and bounded by the configuration, and never contain a key.

mod label;
mod slot;

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use warp::http::StatusCode;

use crate::lsn::Lsn;

pub use label::{Audit, Cause, Command, Commanded, Fenced, Fill, Lookup, Op, Route, SlotStatus, Tier};
pub use slot::SlotMetrics;

const BUILD_INFO: &str = "walcache_build_info";
const REPLICATION_CONNECTED: &str = "walcache_replication_connected";
const REPLICATION_LAG_BYTES: &str = "walcache_replication_lag_bytes";
const REPLICATION_LAG_SECONDS: &str = "walcache_replication_lag_seconds";
const REPLICATION_EVENTS: &str = "walcache_replication_events_total";
const REPLICATION_TRANSACTIONS: &str = "walcache_replication_transactions_total";
const REPLICATION_RECONNECTS: &str = "walcache_replication_reconnects_total";
const REPLICATION_SLOT_SAFE_BYTES: &str = "walcache_replication_slot_safe_bytes";
const REPLICATION_SLOT_STATUS: &str = "walcache_replication_slot_status";
const GATE_WAIT_SECONDS: &str = "walcache_gate_wait_seconds";
const COMMIT_TO_VISIBLE_SECONDS: &str = "walcache_commit_to_visible_seconds";
const APPLY_BATCH_SECONDS: &str = "walcache_apply_batch_seconds";
const APPLY_BATCH_KEYS: &str = "walcache_apply_batch_keys";
const FENCED_WRITES: &str = "walcache_fenced_writes_total";
const CACHE_INVALIDATIONS: &str = "walcache_cache_invalidations_total";
const CACHE_REQUESTS: &str = "walcache_cache_requests_total";
const COMMANDS: &str = "walcache_commands_total";
const FILLS: &str = "walcache_fills_total";
const FILLS_RUNNING: &str = "walcache_fills_running";
const FILLS_WAITING: &str = "walcache_fills_waiting";
const AUDIT_CHECKS: &str = "walcache_audit_checks_total";
const ENTITY_SERVABLE: &str = "walcache_entity_servable";
const L2_TRUSTED: &str = "walcache_l2_trusted";
const LEADER: &str = "walcache_leader";
const DB_POOL_AVAILABLE: &str = "walcache_db_pool_available";
const HTTP_REQUESTS: &str = "walcache_http_requests_total";
const HTTP_REQUEST_DURATION_SECONDS: &str = "walcache_http_request_duration_seconds";

const VISIBLE_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
const BATCH_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const KEYS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16384.0];
const HTTP_BUCKETS: &[f64] = &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];

/// Installs the process's recorder and describes every metric. To be called once, before any handle is made: handles
/// made earlier count nothing. The caller runs [`PrometheusHandle::run_upkeep`] every few seconds, or histograms grow
/// without bound.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    describe();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    [
        (COMMIT_TO_VISIBLE_SECONDS, VISIBLE_BUCKETS),
        (GATE_WAIT_SECONDS, VISIBLE_BUCKETS),
        (APPLY_BATCH_SECONDS, BATCH_BUCKETS),
        (APPLY_BATCH_KEYS, KEYS_BUCKETS),
        (HTTP_REQUEST_DURATION_SECONDS, HTTP_BUCKETS),
    ]
    .into_iter()
    .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
    })
}

fn describe() {
    describe_gauge!(BUILD_INFO, "Always 1; the label says which version runs.");
    describe_gauge!(REPLICATION_CONNECTED, "1 while the replication stream is open.");
    describe_gauge!(
        REPLICATION_LAG_BYTES,
        Unit::Bytes,
        "WAL between the source's end and what was received, what was applied, and what the slot still retains; the last is NaN while the source cannot be asked."
    );
    describe_gauge!(
        REPLICATION_LAG_SECONDS,
        Unit::Seconds,
        "Time since what is applied was certainly current: since the newest heartbeat that came back through the stream was sent; NaN before the first."
    );
    describe_counter!(REPLICATION_EVENTS, "Row changes and truncations received of committed transactions.");
    describe_counter!(REPLICATION_TRANSACTIONS, "Transactions received that touched a published table.");
    describe_counter!(REPLICATION_RECONNECTS, "Times the replication stream was lost and opened again.");
    describe_gauge!(
        REPLICATION_SLOT_SAFE_BYTES,
        Unit::Bytes,
        "WAL that may be written before the slot is in danger of being lost; +Inf without max_slot_wal_keep_size, NaN while the source cannot be asked."
    );
    describe_gauge!(
        REPLICATION_SLOT_STATUS,
        "1 for the state that the source gives the slot, 0 for the others; 0 for all while the source cannot be asked."
    );
    describe_histogram!(
        GATE_WAIT_SECONDS,
        Unit::Seconds,
        "How long batches waited for their transactions to become visible on the primary."
    );
    describe_histogram!(
        COMMIT_TO_VISIBLE_SECONDS,
        Unit::Seconds,
        "From a transaction's commit time to the moment its effects could be read through the cache."
    );
    describe_histogram!(APPLY_BATCH_SECONDS, Unit::Seconds, "Time to write one batch of effects to L2.");
    describe_histogram!(APPLY_BATCH_KEYS, Unit::Count, "Keys in one applied batch, after coalescing.");
    describe_counter!(FENCED_WRITES, "Apply scripts that Redis refused, by reason.");
    describe_counter!(CACHE_INVALIDATIONS, "Entries, or whole entities, made unservable, by cause.");
    describe_counter!(CACHE_REQUESTS, "Lookups by tier and result.");
    describe_counter!(COMMANDS, "Keys (or whole entities) in applications' commands, by what became of them.");
    describe_counter!(FILLS, "Values read from the source, by what became of them.");
    describe_gauge!(FILLS_RUNNING, Unit::Count, "Keys that are being read from the source.");
    describe_gauge!(FILLS_WAITING, Unit::Count, "Reads that wait for the source, those of running fills included.");
    describe_counter!(AUDIT_CHECKS, "Cached entries compared with Postgres, by tier and result.");
    describe_gauge!(
        ENTITY_SERVABLE,
        "1 while the entity is cached; 0 while its table and the configuration, or the publication, do not go together."
    );
    describe_gauge!(L2_TRUSTED, "1 while answers from Redis are used.");
    describe_gauge!(LEADER, "1 while this instance holds the slot and applies events.");
    describe_gauge!(DB_POOL_AVAILABLE, Unit::Count, "Idle connections in the pool for fills.");
    describe_counter!(HTTP_REQUESTS, "HTTP requests answered, by route and status code.");
    describe_histogram!(HTTP_REQUEST_DURATION_SECONDS, Unit::Seconds, "Time to answer an HTTP request, by route.");
}

/// Metrics of the replication stream.
pub struct ReplicationMetrics {
    connected: Gauge,
    lag_received: Gauge,
    lag_applied: Gauge,
    /// What the server says of the slot.
    pub slot: SlotMetrics,
    lag_seconds: Gauge,
    /// Transactions received.
    pub transactions: Counter,
    /// Times the stream was opened again after it was lost.
    pub reconnects: Counter,
    commit_to_visible: Histogram,
    gate_wait: Histogram,
    events: Vec<[Counter; Op::ALL.len()]>,
}

impl ReplicationMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let lag = |kind| gauge!(REPLICATION_LAG_BYTES, "kind" => kind);
        let events = |entity: &str| {
            Op::ALL.map(|(_, op)| counter!(REPLICATION_EVENTS, "entity" => entity.to_owned(), "op" => op))
        };
        ReplicationMetrics {
            connected: gauge!(REPLICATION_CONNECTED),
            lag_received: lag("received"),
            lag_applied: lag("applied"),
            slot: SlotMetrics::new(),
            lag_seconds: gauge!(REPLICATION_LAG_SECONDS),
            transactions: counter!(REPLICATION_TRANSACTIONS),
            reconnects: counter!(REPLICATION_RECONNECTS),
            commit_to_visible: histogram!(COMMIT_TO_VISIBLE_SECONDS),
            gate_wait: histogram!(GATE_WAIT_SECONDS),
            events: entities.into_iter().map(events).collect(),
        }
    }

    /// Whether the stream is open.
    pub fn connected(&self, connected: bool) {
        self.connected.set(f64::from(u8::from(connected)));
    }

    /// The lags behind `current`, the end of the source's log.
    pub fn lag_bytes(&self, current: Lsn, received: Lsn, applied: Lsn) {
        for (gauge, at) in [(&self.lag_received, received), (&self.lag_applied, applied)] {
            gauge.set(current.bytes_since(at) as f64);
        }
    }

    /// How old the oldest state is that a cached answer may show; `None` before replication has caught up for the first
    /// time, when no cached answer is given: that is no lag of zero.
    pub fn lag(&self, lag: Option<Duration>) {
        self.lag_seconds.set(lag.map_or(f64::NAN, |lag| lag.as_secs_f64()));
    }

    /// Counts events on an entity.
    pub fn events(&self, entity_id: usize, op: Op, count: u64) {
        if let Some(ops) = self.events.get(entity_id) {
            ops[op as usize].increment(count);
        }
    }

    /// Records when a transaction's effects became readable, counted from its commit.
    pub fn commit_to_visible(&self, elapsed: Duration) {
        self.commit_to_visible.record(elapsed.as_secs_f64());
    }

    /// Records how long a batch waited for its transactions to become visible.
    pub fn gate_wait(&self, waited: Duration) {
        self.gate_wait.record(waited.as_secs_f64());
    }
}

/// Metrics of the writes to L2.
pub struct ApplyMetrics {
    batch_seconds: Histogram,
    batch_keys: Histogram,
    fenced: [Counter; Fenced::ALL.len()],
    invalidations: Vec<[Counter; Cause::ALL.len()]>,
    servable: Vec<Gauge>,
}

impl ApplyMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let invalidations = |entity: &str| {
            Cause::ALL.map(|(_, cause)| counter!(CACHE_INVALIDATIONS, "entity" => entity.to_owned(), "cause" => cause))
        };
        let (servable, invalidations): (Vec<_>, Vec<_>) = (entities.into_iter())
            .map(|name| (gauge!(ENTITY_SERVABLE, "entity" => name.to_owned()), invalidations(name)))
            .unzip();
        ApplyMetrics {
            batch_seconds: histogram!(APPLY_BATCH_SECONDS),
            batch_keys: histogram!(APPLY_BATCH_KEYS),
            fenced: Fenced::ALL.map(|(_, reason)| counter!(FENCED_WRITES, "reason" => reason)),
            invalidations,
            servable,
        }
    }

    /// Records an applied batch.
    pub fn batch(&self, keys: usize, elapsed: Duration) {
        self.batch_keys.record(keys as f64);
        self.batch_seconds.record(elapsed.as_secs_f64());
    }

    /// Counts a refused script.
    pub fn fenced(&self, reason: Fenced) {
        self.fenced[reason as usize].increment(1);
    }

    /// Whether an entity is cached.
    pub fn servable(&self, entity_id: usize, servable: bool) {
        if let Some(gauge) = self.servable.get(entity_id) {
            gauge.set(f64::from(u8::from(servable)));
        }
    }

    /// Counts invalidations of an entity's entries.
    pub fn invalidations(&self, entity_id: usize, cause: Cause, count: u64) {
        if let Some(causes) = self.invalidations.get(entity_id) {
            causes[cause as usize].increment(count);
        }
    }
}

/// Metrics of the read path for one entity.
pub struct CacheMetrics {
    requests: [[Counter; Lookup::ALL.len()]; Tier::ALL.len()],
    fills: [Counter; Fill::ALL.len()],
}

impl CacheMetrics {
    /// Handles for the entity of this name.
    pub fn new(entity: &str) -> Self {
        let lookup =
            |tier, result| counter!(CACHE_REQUESTS, "tier" => tier, "entity" => entity.to_owned(), "result" => result);
        CacheMetrics {
            requests: Tier::ALL.map(|(_, tier)| Lookup::ALL.map(|(_, result)| lookup(tier, result))),
            fills: Fill::ALL.map(|(_, result)| counter!(FILLS, "entity" => entity.to_owned(), "result" => result)),
        }
    }

    /// Counts a lookup.
    pub fn lookup(&self, tier: Tier, result: Lookup) {
        self.requests[tier as usize][result as usize].increment(1);
    }

    /// Counts values read from the source.
    pub fn fill(&self, result: Fill, count: u64) {
        self.fills[result as usize].increment(count);
    }
}

/// Metrics of the application's commands.
#[derive(Clone)]
pub struct CommandMetrics([[Counter; Commanded::ALL.len()]; Command::ALL.len()]);

impl CommandMetrics {
    /// Handles.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let count = |command, result| counter!(COMMANDS, "command" => command, "result" => result);
        CommandMetrics(Command::ALL.map(|(_, command)| Commanded::ALL.map(|(_, result)| count(command, result))))
    }

    /// Counts a key that a command names, or a command without one.
    pub fn count(&self, command: Command, result: Commanded) {
        self.0[command as usize][result as usize].increment(1);
    }
}

/// How much is being read from the source.
#[derive(Clone)]
pub struct FillMetrics {
    /// Keys that are being read.
    pub running: Gauge,
    /// Reads that wait, those of the running fills included.
    pub waiting: Gauge,
}

impl FillMetrics {
    /// Handles. Both begin at zero.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let metrics = FillMetrics { running: gauge!(FILLS_RUNNING), waiting: gauge!(FILLS_WAITING) };
        metrics.running.set(0.0);
        metrics.waiting.set(0.0);
        metrics
    }
}

/// Metrics of audits.
pub struct AuditMetrics {
    /// Of L1, then of L2.
    checks: [[Counter; Audit::ALL.len()]; 2],
}

impl AuditMetrics {
    /// Handles.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let check = |tier, result| counter!(AUDIT_CHECKS, "tier" => tier, "result" => result);
        AuditMetrics { checks: ["l1", "l2"].map(|tier| Audit::ALL.map(|(_, result)| check(tier, result))) }
    }

    /// Counts a check of an entry in L1 or L2; the source is not checked.
    pub fn check(&self, tier: Tier, result: Audit) {
        if let Some(results) = self.checks.get(tier as usize) {
            results[result as usize].increment(1);
        }
    }
}

/// Metrics of the instance's standing.
pub struct InstanceMetrics {
    l2_trusted: Gauge,
    leader: Gauge,
    db_pool_available: Gauge,
}

impl InstanceMetrics {
    /// Handles. All three begin at zero.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let zero = |gauge: Gauge| {
            gauge.set(0.0);
            gauge
        };
        InstanceMetrics {
            l2_trusted: zero(gauge!(L2_TRUSTED)),
            leader: zero(gauge!(LEADER)),
            db_pool_available: zero(gauge!(DB_POOL_AVAILABLE)),
        }
    }

    /// Whether answers from Redis are used.
    pub fn l2_trusted(&self, trusted: bool) {
        self.l2_trusted.set(f64::from(u8::from(trusted)));
    }

    /// Whether this instance applies events.
    pub fn leader(&self, leader: bool) {
        self.leader.set(f64::from(u8::from(leader)));
    }

    /// Idle connections in the pool for fills.
    pub fn db_pool_available(&self, connections: usize) {
        self.db_pool_available.set(connections as f64);
    }
}

/// The status codes that the API answers with.
const CODES: [u16; 11] = [200, 304, 400, 404, 405, 408, 413, 414, 415, 431, 503];

/// Metrics of the HTTP API. A handle is made when its first request is answered: most combinations never occur.
#[derive(Default)]
pub struct HttpMetrics {
    requests: [[OnceLock<Counter>; CODES.len()]; Route::ALL.len()],
    duration: [OnceLock<Histogram>; Route::ALL.len()],
}

impl HttpMetrics {
    /// Counts an answered request.
    pub fn observe(&self, route: Route, status: StatusCode, elapsed: Duration) {
        let label = Route::ALL[route as usize].1;
        let request = || counter!(HTTP_REQUESTS, "route" => label, "code" => status.as_str().to_owned());
        match CODES.iter().position(|code| *code == status.as_u16()) {
            Some(code) => self.requests[route as usize][code].get_or_init(request).increment(1),
            None => request().increment(1),
        }
        self.duration[route as usize]
            .get_or_init(|| histogram!(HTTP_REQUEST_DURATION_SECONDS, "route" => label))
            .record(elapsed.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            cache.lookup(Tier::L2, Lookup::Stale);
            cache.fill(Fill::Voided, 1);
            CommandMetrics::new().count(Command::Invalidate, Commanded::BadKey);
            FillMetrics::new().running.increment(3.0);
            AuditMetrics::new().check(Tier::L2, Audit::Finding);
            InstanceMetrics::new().leader(true);
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
        assert!(Cause::ALL.iter().enumerate().all(|(i, (cause, _))| *cause as usize == i));
    }
}
