//! Readers: over HTTP in every way that a client may ask, and straight from Redis as the README says.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::sleep;
use walcache::lsn::Lsn;

use super::Shared;
use super::writer::partner;
use crate::harness::histories::{Claim, Found};
use crate::harness::judge::{Raw, servable};
use crate::harness::shop::version;
use crate::harness::{Http, Response};

/// The pause between two reads of Redis: unpaced it would take most of a core from those whom it watches.
const RAW_PACE: Duration = Duration::from_millis(1);
/// How long Redis may take to answer, before it is taken for away.
const RAW_PATIENCE: Duration = Duration::from_secs(1);
/// Keys of a batch, at most.
const BATCH: usize = 6;

/// What a reader was last given for a key.
#[derive(Clone, Copy)]
struct Seen {
    read: Lsn,
    state: usize,
}

/// A client with what it remembers: the last answer for each key with an even number. It passes the LSN of that on
/// whenever it reads such a key; the others it reads as a client does that keeps nothing.
struct Reader {
    shared: Arc<Shared>,
    http: Http,
    seen: HashMap<usize, Seen>,
}

/// Reads over HTTP, and judges each answer.
pub(super) async fn read(shared: Arc<Shared>, http: Http, mut rng: StdRng) {
    let mut reader = Reader { shared: shared.clone(), http, seen: HashMap::new() };
    let rows = shared.histories.len();
    while !shared.stop.is_cancelled() {
        let row = if rng.random() { rng.random_range(0..rows.min(8)) } else { rng.random_range(0..rows) };
        let read = match rng.random_range(0..40) {
            0 => reader.one(row, None, None, true).await.map(drop),
            1..4 => {
                let own = shared.own.lock().pop_back();
                let (row, at, transaction) = own.map_or((row, None, None), |(r, at, t)| (r, Some(at), Some(t)));
                reader.one(row, at, transaction, false).await.map(drop)
            }
            4..7 => {
                let rows = (0..rng.random_range(1..=BATCH)).map(|_| rng.random_range(0..rows)).collect();
                reader.many(rows, rng.random()).await
            }
            7..14 => reader.pair(row, &mut rng).await,
            _ => reader.one(row, None, None, false).await.map(drop),
        };
        if read.is_none() {
            shared.failed_reads.fetch_add(1, Ordering::Relaxed);
            shared.pause().await;
        }
    }
}

impl Reader {
    /// Reads a key; with what it was found to be, and the answer's `X-Read-LSN`. `None` if there was no answer; the
    /// inner one if it was wrong.
    async fn one(
        &mut self,
        row: usize,
        min: Option<Lsn>,
        contains: Option<u64>,
        fresh: bool,
    ) -> Option<Option<(Found, Lsn)>> {
        let known = self.known(row);
        let demanded = min.max(known.map(|seen| seen.read));
        let response = self.send(Method::GET, &format!("/v1/counter/{row}"), demanded, fresh, Bytes::new()).await?;
        let value = match response.status.as_u16() {
            200 => version(&response.json()),
            404 => None,
            _ => return None,
        };
        Some(self.judge(row, value, demanded, contains, &response))
    }

    /// A row and then its partner, or any other row: whatever the first answer contained must be in the second.
    async fn pair(&mut self, row: usize, rng: &mut StdRng) -> Option<()> {
        let Some((found, read)) = self.one(row, None, None, false).await? else { return Some(()) };
        let other = partner(row).unwrap_or_else(|| rng.random_range(0..self.shared.histories.len()));
        self.one(other, Some(read), Some(found.transaction), false).await.map(drop)
    }

    /// Reads some rows in one request, with or without what is known of them.
    async fn many(&mut self, rows: Vec<usize>, follow: bool) -> Option<()> {
        let known = rows.iter().filter_map(|row| self.known(*row)).map(|seen| seen.read).max();
        // Without it, only rows of which nothing is known may be judged by the reader's memory.
        let demanded = known.filter(|_| follow);
        let body = Bytes::from(json!({ "keys": rows }).to_string());
        let response = self.send(Method::POST, "/v1/counter/batch", demanded, false, body).await?;
        if response.status != 200 {
            return None;
        }
        let answer = response.json();
        for (row, item) in rows.into_iter().zip(answer["items"].as_array().expect("items")) {
            assert_eq!(item["key"], row, "the order of the keys");
            let value = match item["status"].as_u64() {
                Some(200) => version(&item["value"]),
                Some(404) => None,
                _ => {
                    self.shared.failed_reads.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            self.judge(row, value, demanded, None, &response);
        }
        Some(())
    }

    fn known(&self, row: usize) -> Option<Seen> {
        self.seen.get(&row).copied()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        demanded: Option<Lsn>,
        fresh: bool,
        body: Bytes,
    ) -> Option<Response> {
        let text = demanded.map(|lsn| lsn.to_string());
        let mut headers: Vec<(&str, &str)> = text.iter().map(|lsn| ("x-min-lsn", lsn.as_str())).collect();
        if fresh {
            headers.push(("cache-control", "no-cache"));
        }
        self.http.send(method, path, &headers, body).await.ok()
    }

    fn judge(
        &mut self,
        row: usize,
        value: Option<i64>,
        demanded: Option<Lsn>,
        contains: Option<u64>,
        response: &Response,
    ) -> Option<(Found, Lsn)> {
        let lsn = |name: &str| response.header(name).parse::<Lsn>().expect("an LSN");
        let read = lsn("x-read-lsn");
        let floor = self.known(row).filter(|seen| demanded >= Some(seen.read)).map_or(0, |seen| seen.state);
        let claim = Claim { lo: lsn("x-applied-lsn"), hi: Some(read), floor, demanded, contains };
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        match self.shared.histories.judge(row, value, claim) {
            Ok(found) => {
                // What was read without passing on what was known promises nothing for the next time.
                let keeps = row.is_multiple_of(2) && self.known(row).is_none_or(|seen| demanded >= Some(seen.read));
                if keeps {
                    self.seen.insert(row, Seen { read, state: found.state });
                }
                Some((found, read))
            }
            Err(mut violation) => {
                violation.what = format!("over HTTP, {}; {:?}", violation.what, response.headers);
                self.shared.wrong(violation);
                None
            }
        }
    }
}

/// Reads Redis as a client without a library may, and judges what entries say of themselves.
pub(super) async fn read_raw(shared: Arc<Shared>, mut rng: StdRng) {
    let mut raw: Option<Raw> = None;
    while !shared.stop.is_cancelled() {
        let row = rng.random_range(0..shared.histories.len());
        let key = format!("counter:{row}");
        let looked = match &mut raw {
            Some(raw) if rng.random() => raw.look(&key).await,
            Some(raw) => raw.look_in_turn(&key).await.map(Some),
            None => match Raw::connect_within(RAW_PATIENCE, &shared.stage).await {
                Ok(connected) => {
                    raw = Some(connected);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let Ok(stored) = looked else {
            raw = None;
            shared.pause().await;
            continue;
        };
        if let Some(entry) = stored.as_ref().and_then(|stored| servable(stored, "counter")) {
            // What is done was in the fence before the entry was read, so it is in the entry, too.
            let claim = Claim { lo: entry.lo.max(entry.done), hi: Some(entry.hi), ..Claim::default() };
            if let Err(mut violation) = shared.histories.judge(row, entry.version(), claim) {
                violation.what = format!("in Redis, {}; {stored:?}", violation.what);
                shared.wrong(violation);
            }
            shared.raw_reads.fetch_add(1, Ordering::Relaxed);
        }
        sleep(RAW_PACE).await;
    }
}

/// Drops whatever stands at one key or another, entries and leases, as Redis does when it is full.
pub(super) async fn evict(shared: Arc<Shared>, pace: Duration, mut rng: StdRng) {
    let mut raw: Option<Raw> = None;
    while !shared.stop.is_cancelled() {
        match &mut raw {
            Some(connected) => {
                let row = rng.random_range(0..shared.histories.len());
                if connected.run(&["UNLINK", &format!("counter:{row}")]).await.is_err() {
                    raw = None;
                }
            }
            None => raw = Raw::connect_within(RAW_PATIENCE, &shared.stage).await.ok(),
        }
        sleep(pace).await;
    }
}
