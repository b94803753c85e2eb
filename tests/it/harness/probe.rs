//! Ways to hold and to count what a daemon does, from outside.

use std::fs;

use super::{Daemon, Shop, eventually};

/// Makes every read of a row of `counters` by a daemon wait in the middle, for as long as somebody holds the advisory lock
/// 1: its snapshot is taken, the row is read, its JSON is not made yet. `row_to_json` goes through a cast for types that
/// have one.
pub async fn slow_reads(shop: &Shop) {
    paced(shop, "").await;
}

/// As [`slow_reads`]; besides, every read draws a number from the sequence `row_reads`.
pub async fn counted_reads(shop: &Shop) {
    shop.stage.execute("CREATE SEQUENCE row_reads").await;
    paced(shop, "PERFORM nextval('row_reads');").await;
}

async fn paced(shop: &Shop, first: &str) {
    shop.stage
        .execute(&format!(
            "CREATE TYPE pace AS ENUM ('slow', 'fast');
             CREATE FUNCTION paced(pace) RETURNS json LANGUAGE plpgsql VOLATILE AS $$
             BEGIN
                 {first}
                 PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1);
                 RETURN to_json($1::text);
             END $$;
             CREATE CAST (pace AS json) WITH FUNCTION paced(pace);
             ALTER TABLE counters ADD COLUMN pace pace NOT NULL DEFAULT 'slow';"
        ))
        .await;
}

/// Waits until whoever listens on `address` has accepted this many connections, and read all that came over them.
/// Linux only.
pub async fn until_received(address: &str, connections: usize) {
    let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address has a port");
    let local = format!(":{port:04X}");
    eventually("have all requests read", || async {
        let table = fs::read_to_string("/proc/net/tcp").expect("/proc");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The server's ends, established; tx_queue:rx_queue.
        let ours = rows.filter(|fields| fields.len() > 4 && fields[1].ends_with(&local) && fields[3] == "01");
        let read: Vec<bool> = ours.map(|fields| fields[4].ends_with(":00000000")).collect();
        if read.len() == connections && read.iter().all(|read| *read) { Ok(()) } else { Err(format!("{read:?}")) }
    })
    .await;
}

impl Daemon {
    /// The most memory that it has ever held (VmHWM), in MiB. Linux only.
    pub fn peak_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().expect("it runs"))).expect("/proc");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        kib / 1024
    }

    /// What its auditor has found since it started: in a healthy daemon nothing, whatever happens around it.
    pub async fn audit_findings(&self) -> f64 {
        let text = self.admin().get("/metrics").await.expect(200).text();
        let lines = text.lines().filter(|line| line.starts_with("walcache_audit_checks_total{"));
        let found = lines.filter(|line| line.contains("result=\"finding\""));
        found.map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number")).sum()
    }

    /// A metric's value, by its name with labels as it is written.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.admin().get("/metrics").await.expect(200).text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}
