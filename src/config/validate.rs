//! Constraints that go beyond one field's form.

mod entity;
mod lifetimes;
mod query;

use std::collections::HashSet;
use std::time::Duration;

use super::error::Violation;
use super::units::MIB;
use super::violations::Violations;
use super::{Config, L2Config};
use crate::source::SourceUrl;

impl Config {
    /// Every constraint that the values break; empty if the configuration can be used.
    pub fn validate(&self) -> Vec<Violation> {
        let mut found = Violations::default();
        self.validate_source(&mut found);
        self.validate_apply(&mut found);
        self.validate_tiers(&mut found);
        self.validate_http(&mut found);
        self.validate_audit(&mut found);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            found.add("log.level", format!("not a filter such as \"info\" or \"walcache=debug,info\": {error}"));
        }
        if self.entities.is_empty() {
            found.add("entity", "at least one [[entity]] with a name and a table (or a query) is needed");
        }
        let mut names = HashSet::new();
        for (i, entity) in self.entities.iter().enumerate() {
            entity::validate(i, entity, &mut found);
            lifetimes::validate(i, entity, self, &mut found);
            query::validate(i, entity, &mut found);
            found.require(names.insert(&entity.name), &format!("entity[{i}].name"), || {
                format!("{:?} is the name of an earlier entity; names must be unique", entity.name)
            });
        }
        found.0
    }

    fn validate_source(&self, found: &mut Violations) {
        let source = &self.source;
        if source.url.is_empty() {
            found.add("source.url", "required (or source.url_file): postgres://user:password@host:port/database");
        } else if let Err(error) = SourceUrl::parse(&source.url) {
            found.add("source.url", error.to_string());
        }
        let slot = &source.slot;
        let plain = slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        found.require((1..=63).contains(&slot.len()) && plain, "source.slot", || {
            format!("{slot:?} must be 1 to 63 of a-z, 0-9 and _")
        });
        if let Some(violation) = source.publication.violation() {
            found.add("source.publication", violation);
        }
        found.positive("source.connect_timeout", source.connect_timeout);
        found.positive("source.status_interval", source.status_interval);
        found.positive("source.heartbeat_interval", source.heartbeat_interval);
        found.positive("source.reconnect_max", source.reconnect_max);
        found.positive("source.fill_timeout", source.fill_timeout);
        found.positive("source.schema_check_interval", source.schema_check_interval);
        found.at_least_one("source.pool_size", source.pool_size);
        found.at_least_one("source.max_fills", source.max_fills);
        found.at_least_one("source.max_waiting_fills", source.max_waiting_fills);
        found.require(source.max_message >= MIB, "source.max_message", || "must be at least 1MiB".to_owned());
        found.require(source.dead_after > source.heartbeat_interval, "source.dead_after", || {
            "must be longer than source.heartbeat_interval, or a live but idle connection looks dead".to_owned()
        });
        found.require(source.dead_after > source.status_interval, "source.dead_after", || {
            "must be longer than source.status_interval".to_owned()
        });
    }

    fn validate_apply(&self, found: &mut Violations) {
        let apply = &self.apply;
        found.at_least_one("apply.max_batch_events", apply.max_batch_events);
        found.at_least_one("apply.script_keys", apply.script_keys);
        found.at_least_one("apply.in_flight", apply.in_flight);
        found.positive("apply.lookup_timeout", apply.lookup_timeout);
        found.positive("apply.lookup_hold", apply.lookup_hold);
        found.require(apply.max_batch_bytes >= 1024, "apply.max_batch_bytes", || "must be at least 1KiB".to_owned());
        found.require(apply.max_transaction_bytes >= 1024, "apply.max_transaction_bytes", || {
            "must be at least 1KiB".to_owned()
        });
        // Redis takes strings of up to 512 MB, and commands of up to 1 GB.
        found.require((1024..=256 * MIB).contains(&apply.max_value), "apply.max_value", || {
            "must be from 1KiB to 256MiB".to_owned()
        });
    }

    fn validate_tiers(&self, found: &mut Violations) {
        let (l1, freshness) = (&self.l1, &self.freshness);
        found.require(!l1.enabled || l1.max_size >= MIB, "l1.max_size", || {
            "must be at least 1MiB; l1.enabled = false turns L1 off".to_owned()
        });
        match &self.l2 {
            Some(l2) => validate_l2(l2, self.source.fill_timeout, found),
            None => found
                .require(l1.enabled, "l1.enabled", || "there is no [l2] either: nothing would be cached".to_owned()),
        }
        found.positive("freshness.stale_after", freshness.stale_after);
        found.require(freshness.max_staleness >= freshness.stale_after, "freshness.max_staleness", || {
            "must not be shorter than freshness.stale_after".to_owned()
        });
        self.validate_bound("freshness.max_staleness", freshness.max_staleness, found);
        for (i, bound) in self.entities.iter().enumerate().filter_map(|(i, e)| Some((i, e.max_staleness?))) {
            self.validate_bound(&format!("entity[{i}].max_staleness"), bound, found);
        }
        found.require(freshness.min_lsn_wait_max >= freshness.min_lsn_wait, "freshness.min_lsn_wait_max", || {
            "must not be shorter than freshness.min_lsn_wait".to_owned()
        });
    }

    fn validate_bound(&self, field: &str, bound: Duration, found: &mut Violations) {
        found.require(bound > self.source.heartbeat_interval, field, || {
            "must be longer than source.heartbeat_interval, by which staleness is known, or hits are refused while all is well"
                .to_owned()
        });
    }

    fn validate_audit(&self, found: &mut Violations) {
        let audit = &self.audit;
        found.require(audit.rate <= 100_000, "audit.rate", || "must be at most 100000; 0 turns it off".to_owned());
        // Whoever asks for an audit over HTTP waits as long.
        let fits = audit.wait > Duration::ZERO && audit.wait <= Duration::from_secs(60);
        found.require(fits, "audit.wait", || "must be longer than zero, and at most 1m".to_owned());
    }

    fn validate_http(&self, found: &mut Violations) {
        let http = &self.http;
        found.require(http.max_body > 0, "http.max_body", || "must be at least 1B".to_owned());
        found.at_least_one("http.max_batch", http.max_batch);
        found.at_least_one("http.max_connections", http.max_connections);
        found.positive("http.header_timeout", http.header_timeout);
        let clash = http.listen == self.admin.listen && http.listen.port() != 0;
        found.require(!clash, "admin.listen", || "must differ from http.listen".to_owned());
    }
}

fn validate_l2(l2: &L2Config, fill_timeout: Duration, found: &mut Violations) {
    if l2.url.is_empty() {
        found.add("l2.url", "required (or l2.url_file): redis://user:password@host:port/database");
    } else if redis::parse_redis_url(l2.url.expose()).is_none() {
        found.add("l2.url", "not a URL of the form redis://user:password@host:port/database or rediss://...");
    }
    let plain = l2.prefix.chars().all(|c| !c.is_control() && !c.is_whitespace() && !matches!(c, '{' | '}'));
    found.require(plain, "l2.prefix", || "must not hold blanks, control characters, { or }".to_owned());
    found.positive("l2.response_timeout", l2.response_timeout);
    found.positive("l2.connect_timeout", l2.connect_timeout);
    found.require(l2.lease_ttl >= fill_timeout, "l2.lease_ttl", || {
        "must not be shorter than source.fill_timeout, or slow fills are never published".to_owned()
    });
    found.require(l2.sweep_rate >= 1, "l2.sweep_rate", || "must be at least 1".to_owned());
    found.require(l2.lease_wait <= l2.lease_ttl, "l2.lease_wait", || "must not be longer than l2.lease_ttl".to_owned());
}
