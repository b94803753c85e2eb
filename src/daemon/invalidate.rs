//! What an operator invalidates, said as an application says it: by a message in the source's log.
//!
//! So it has its place among the events, comes again after a crash, and reaches whichever instance leads. This one emits the
//! message, and waits until its own watermark has passed it; where it does not lead, it can tell only that it was written.

mod judge;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use self::judge::{Judged, judge};
use super::{Context, STATEMENT_TIMEOUT, bytes};
use crate::apply::claim::insert_position;
use crate::cache::l2::L2Error;
use crate::cache::tally::{Named, Tally};
use crate::lsn::Lsn;
use crate::serve::admin::Refusal;
use crate::source::{self, SourceError};

/// How long the message may take to be written.
const EMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it is waited for that it is applied.
const APPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long counting may take.
const TALLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of an operator's invalidation.
#[derive(Debug, Serialize)]
struct Done {
    /// Where the log ended when it was written; `null` if it was only to be counted.
    lsn: Option<Lsn>,
    /// Whether this instance has applied it: nothing that it concerns is served here any more.
    applied: bool,
    /// Else why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    /// What L1 and L2 hold of it, if that was to be counted; `null` for a tier that is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    /// Tags that no entry can bear, by this instance's configuration: they concern nothing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unmatched: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Held {
    l1: Option<Tally>,
    l2: Option<Tally>,
}

/// Carries out a command of the form of [`crate::plan::command`], or counts what it would make unservable; gives the answer
/// as JSON, and whether all is done.
pub(super) async fn invalidate(context: &Context, command: &str, dry_run: bool) -> Result<(Bytes, bool), Refusal> {
    let Judged { named, unmatched } = judge(&context.hierarchy.entities, command)?;
    let done = if dry_run {
        let count = tokio::time::timeout(TALLY_TIMEOUT, tally(context, &named)).await;
        let held = count.map_err(|_| Refusal::Failed(format!("counting took longer than {TALLY_TIMEOUT:?}")))?;
        let held = held.map_err(|error| Refusal::Failed(format!("L2 cannot be counted: {error}")))?;
        Done { lsn: None, applied: false, waits_for: None, held: Some(held), unmatched }
    } else {
        let emitted = tokio::time::timeout(EMIT_TIMEOUT, emit(context, command)).await;
        let lsn = emitted
            .map_err(|_| {
                let what = "the source database did not answer within";
                Refusal::Failed(format!("{what} {EMIT_TIMEOUT:?}: it is not known whether it was said"))
            })?
            .map_err(|error| Refusal::Failed(format!("it could not be said in the source's log: {error}")))?;
        let watermark = &context.hierarchy.watermark;
        let leads = context.orders.is_open();
        let applied = leads && watermark.reached(lsn, APPLY_TIMEOUT).await;
        let waits_for = (!applied).then(|| context.waits_for(leads));
        Done { lsn: Some(lsn), applied, waits_for, held: None, unmatched }
    };
    // A struct of numbers always serializes.
    Ok((serde_json::to_vec(&done).unwrap_or_default().into(), dry_run || done.applied))
}

async fn tally(context: &Context, named: &Named) -> Result<Held, L2Error> {
    let (hierarchy, max_value) = (&context.hierarchy, bytes(context.config.apply.max_value));
    Ok(Held { l1: hierarchy.tally_l1(named).await, l2: hierarchy.tally_l2(named, max_value).await? })
}

/// Writes the message; gives where the log ended then.
async fn emit(context: &Context, command: &str) -> Result<Lsn, Box<dyn std::error::Error + Send + Sync>> {
    let client = source::connect(&context.config.source, Some(STATEMENT_TIMEOUT)).await?;
    let server = source::which_server(&client, context.config.source.dead_after).await?;
    if !context.followed.admits(server.as_ref()) {
        return Err(SourceError::Moved.into());
    }
    let emit = client.query_one(include_str!("../../sql/emit_command.sql"), &[&command]).await;
    emit.map_err(|error| SourceError::postgres("write a message into the log", error))?;
    Ok(insert_position(&client).await?)
}
