//! One session of the stream: connect, take the slot, claim L2, stream until something ends it.

mod applying;
mod connect;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::applying::apply;
use self::connect::{Connected, connect};
use super::commands::Commands;
use super::error::SessionError;
use super::pipeline::{Pipeline, Places};
use super::settings::{batch_limits, bytes, decoder, lookup_limits};
use super::shapes::Catalog;
use super::tap::{Recorder, witness};
use super::{Context, housekeeping};
use crate::apply::batch::Assembler;
use crate::apply::claim::Position;
use crate::apply::lookup::Lookups;
use crate::apply::{Applier, Start};
use crate::capture::CaptureError;
use crate::capture::connect::Started;
use crate::capture::stream::{Progress, stream};
use crate::lsn::Lsn;
use crate::plan::Planner;

/// Chunks that wait to be decoded, of up to some 256 KiB.
const CHUNKS: usize = 2;

/// The part of the grace period in which a batch may be finished.
const PATIENCE: f32 = 0.7;

/// How long a session that has failed goes on with the batch in hand: what it waits for may never come.
const FAILED_PATIENCE: Duration = Duration::from_secs(1);

/// What one session leaves to the next.
#[derive(Default)]
pub(super) struct Session {
    /// The source of the last session that streamed.
    source_id: Option<String>,
    streaming_since: Option<Instant>,
    /// Where the slot stood when it was looked at last.
    confirmed: Lsn,
    /// Where the stream ended, if it did because a publication was missing then.
    stuck_at: Option<Lsn>,
}

impl Session {
    /// Whether any session has streamed.
    pub(super) fn streamed(&self) -> bool {
        self.source_id.is_some()
    }

    /// The stream has ended because a publication did not exist when a change was made.
    pub(super) fn lacked_publication(&mut self, applied: Lsn) {
        self.stuck_at = Some(applied.max(self.confirmed));
    }

    /// How long the last session has streamed, if it has; asked once.
    pub(super) fn take_streamed_for(&mut self) -> Option<Duration> {
        self.streaming_since.take().map(|since| since.elapsed())
    }
}

/// Runs one session.
///
/// # Errors
/// Whatever ended it, other than `stop`.
pub(super) async fn run(
    session: &mut Session,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), SessionError> {
    let config = &context.config;
    // Connecting may take as long as the source likes; making a slot waits for every transaction that runs.
    let shapes = Catalog::new(config.clone());
    let connected = tokio::select! {
        connected = connect(session, context, &shapes) => connected?,
        () = stop.cancelled() => return Ok(()),
    };
    let Connected { source, gate, capture, server, source_id, broken, from, started } = connected;
    let Started { socket, numbers_as_text } = started;
    context.metrics.replication.connected(true);
    context.status.set_connected(true);

    // Ends this session, whether it failed or the daemon stops.
    let end = stop.child_token();
    let capture_end = CancellationToken::new();
    // Gives up a batch that cannot be finished in time, because it waits for a gate or for L2.
    let abort = CancellationToken::new();
    let mut patience = JoinSet::new();
    patience.spawn({
        let (end, abort, stop, grace) = (end.clone(), abort.clone(), stop.clone(), config.http.grace);
        async move {
            end.cancelled().await;
            tokio::time::sleep(if stop.is_cancelled() { grace.mul_f32(PATIENCE) } else { FAILED_PATIENCE }).await;
            abort.cancel();
        }
    });
    let progress = Arc::new(Progress::new(from));
    context.status.set_progress(progress.clone(), &source_id);
    let (chunk_sender, chunks) = mpsc::channel(CHUNKS);
    let (batch_sender, batches) = mpsc::channel(1);
    let mut streaming = tokio::spawn({
        let (progress, capture_end) = (progress.clone(), capture_end.clone());
        async move { stream(socket, &capture, progress, chunk_sender, capture_end).await }
    });

    let position = Position { source: &source_id, applied: from, broken, missed: None };
    let applied = context.hierarchy.watermark.load();
    let witness = witness(context.tap.clone(), context.hierarchy.entities.clone(), applied);
    let start = Start {
        hierarchy: context.hierarchy.clone(),
        config: crate::apply::Config {
            script_keys: config.apply.script_keys,
            in_flight: config.apply.in_flight,
            max_value: bytes(config.apply.max_value),
        },
        gate,
        source: source.clone(),
        position,
        shapes: shapes.clone(),
        lookups: Lookups::new(lookup_limits(config), config.source.clone(), server, witness),
        outage: context.outage.clone(),
        requeries: context.requeries.clone(),
        metrics: context.metrics.clone(),
        cancel: abort.clone(),
    };
    // Meanwhile the stream is kept alive, and waits.
    let claimed = tokio::select! {
        () = end.cancelled() => Err(crate::apply::ApplyError::Cancelled.into()),
        claimed = Applier::start(start) => claimed.map_err(SessionError::from),
        ended = &mut streaming => Err(match ended {
            Ok(Ok(())) => CaptureError::Ended.into(),
            Ok(Err(e)) => e.into(),
            Err(panic) => SessionError::Panicked(panic.to_string()),
        }),
    };
    let applier = match claimed {
        Ok(applier) => applier,
        Err(e) => {
            capture_end.cancel();
            if !streaming.is_finished() {
                // Until then the slot is held, and the next session would be refused. It says farewell in bounded time.
                let _ = streaming.await;
            }
            return Err(e);
        }
    };
    context.hierarchy.take_over(from);
    context.instance.leader(true);
    context.status.set_problem(None);
    session.source_id = Some(source_id);
    session.streaming_since = Some(Instant::now());

    let mut stages: JoinSet<Result<(), SessionError>> = JoinSet::new();
    stages.spawn({
        let (context, end, source) = (context.clone(), end.clone(), source.clone());
        async move {
            let entities = &context.hierarchy.entities;
            let planner = Planner::new(entities.clone()).max_value(bytes(context.config.apply.max_value));
            let decoder = decoder(context.config.source.plugin, entities, numbers_as_text);
            let places = Places::new(source, context.config.source.dead_after);
            let commands = Commands::new(entities.clone(), context.warmer.clone(), context.commanded.clone());
            let applied = context.hierarchy.watermark.load();
            let recorder = Recorder::new(context.tap.clone(), entities.clone(), applied);
            let (assembler, metrics) = (Assembler::new(batch_limits(&context.config)), &context.metrics.replication);
            let pipeline = Pipeline::new(decoder, planner, assembler, (places, commands, recorder), metrics);
            let ended = pipeline.run(chunks, batch_sender, end.clone()).await;
            end.cancel();
            ended
        }
    });
    let (order_sender, orders) = mpsc::channel(1);
    context.orders.open(order_sender.clone());
    stages.spawn({
        let (context, end, progress) = (context.clone(), end.clone(), progress.clone());
        async move { housekeeping::run(&context, (&source, &shapes), &progress, order_sender, end).await }
    });
    stages.spawn({
        let (end, given_up) = (end.clone(), abort.clone());
        async move {
            // Given up anywhere, it has confirmed nothing: the next session replays it under a claim of its own.
            let ended = tokio::select! {
                ended = apply(applier, batches, orders, &progress) => ended,
                () = given_up.cancelled() => Err(crate::apply::ApplyError::Cancelled.into()),
            };
            end.cancel();
            ended
        }
    });
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            // It ends by itself only if the connection broke, or nobody takes its chunks any more.
            ended = &mut streaming => {
                end.cancel();
                while let Some(stage) = stages.join_next().await {
                    outcome = outcome.and(flatten(stage));
                }
                let ended = match ended {
                    Ok(ended) => ended.map_err(SessionError::from),
                    Err(panic) => Err(SessionError::Panicked(panic.to_string())),
                };
                return outcome.and(ended);
            }
            stage = stages.join_next() => match stage {
                Some(stage) => {
                    outcome = outcome.and(flatten(stage));
                    if outcome.is_err() {
                        end.cancel();
                    }
                }
                // Everything that was taken is applied: the last status can go.
                None => capture_end.cancel(),
            },
        }
        if stages.is_empty() {
            capture_end.cancel();
            let ended = match streaming.await {
                Ok(ended) => ended.map_err(SessionError::from),
                Err(panic) => Err(SessionError::Panicked(panic.to_string())),
            };
            return outcome.and(ended);
        }
    }
}

fn flatten(stage: Result<Result<(), SessionError>, tokio::task::JoinError>) -> Result<(), SessionError> {
    stage.unwrap_or_else(|panic| Err(SessionError::Panicked(panic.to_string())))
}
