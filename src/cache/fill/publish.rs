//! Publishing: values that were filled, put into L2 under leases that still stand.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::Batch;
use super::lease::Lease;
use super::queue::Flight;
use crate::entity::Entity;
use crate::entry::{self, Due, Label};
use crate::failpoint::{self, Point};
use crate::metrics::Fill;

/// Bytes of values that are compressed at once; more are left to a thread of their own.
const PACK_INLINE: usize = 64 << 10;

impl Batch {
    pub(super) async fn publish(
        &self,
        flights: &[Arc<Flight>],
        (values, dues): (&[Option<Bytes>], &[Option<Due>]),
        label: &Label,
        now: Due,
        lease: &Lease<'_>,
    ) {
        failpoint::reached(Point::BeforePublish);
        let mut small = Vec::with_capacity(flights.len());
        for ((flight, value), due) in flights.iter().zip(values).zip(dues) {
            match due.filter(|_| self.fits(value)) {
                Some(due) => small.push((flight, value, due)),
                None => {
                    // So that others do not wait for it. If this fails, it expires.
                    let _ = lease.l2.drop_same(flight.key.redis(), lease.text.as_bytes()).await;
                    self.count(if due.is_some() { Fill::Large } else { Fill::Uncached }, 1);
                }
            }
        }
        if small.is_empty() {
            return;
        }
        let entries = small.iter().map(|(_, value, due)| (Label { due: *due, ..*label }, (*value).clone())).collect();
        let texts = texts(&self.entity, entries).await;
        let texts: Vec<(&str, Vec<u8>)> =
            small.iter().zip(texts).map(|((flight, ..), text)| (flight.key.redis(), text)).collect();
        let base = now.before(self.entity.lifetime.stale);
        match lease.l2.publish(&texts, lease.text, label.hi, base).await {
            Ok(published) => {
                failpoint::reached(Point::AfterPublish);
                for (published, (_, value, _)) in published.iter().zip(&small) {
                    self.count(
                        match (published, value) {
                            (true, Some(_)) => Fill::Published,
                            (true, None) => Fill::Absent,
                            (false, _) => Fill::Voided,
                        },
                        1,
                    );
                }
            }
            // The leases expire; until then readers read through.
            Err(_) => self.count(Fill::Uncached, small.len()),
        }
    }
}

/// Entries' texts as they are stored in L2; none if they could not be made.
pub(super) async fn texts(entity: &Entity, entries: Vec<(Label, Option<Bytes>)>) -> Vec<Vec<u8>> {
    let Some(above) = entity.compress_above else {
        return entries.iter().map(|(label, value)| entry::encode(label, value.as_deref())).collect();
    };
    let size: usize = entries.iter().flat_map(|(_, value)| value).map(Bytes::len).sum();
    let pack = move || {
        let text = |(label, value): &(Label, Option<Bytes>)| {
            let text = entry::encode(label, value.as_deref());
            entry::packed::pack_text(&text, above).unwrap_or(text)
        };
        entries.iter().map(text).collect()
    };
    // Much of it takes milliseconds: not on a thread that serves readers, too.
    if size < PACK_INLINE { pack() } else { tokio::task::spawn_blocking(pack).await.unwrap_or_default() }
}
