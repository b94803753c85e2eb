//! One session of the stream: connect, take the slot, claim L2, stream until something ends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgwire_replication::TlsConfig;
use pgwire_replication::config::SslMode as WireSslMode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::commanded::Commands;
use super::commands::Command;
use super::error::SessionError;
use super::pipeline::{Pipeline, Places};
use super::tap::Recorder;
use super::{Context, STATEMENT_TIMEOUT, bytes, follow, housekeeping, slot};
use crate::apply::batch::{Assembler, Batch, Limits};
use crate::apply::claim::Position;
use crate::apply::lookup::{self, Hold, Lookups};
use crate::apply::reshape::look_without_leading;
use crate::apply::{Applier, LookUpShape, Start};
use crate::capture::connect::{Connection, Started};
use crate::capture::stream::{Progress, stream};
use crate::capture::{self, CaptureError, Output};
use crate::catalog::{self, Signatures};
use crate::config::{Config, Plugin};
use crate::decode::{Decoder, pgoutput, wal2json};
use crate::entity::{Entity, Resolved};
use crate::failpoint::{self, Point};
use crate::gate::Gate;
use crate::lsn::Lsn;
use crate::plan::Planner;
use crate::source::{self, Server, SourceError, SourceUrl, SslMode};

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

/// Looks shapes up for the entities of the configuration.
pub(super) struct Catalog(pub(super) Config);

impl LookUpShape for Catalog {
    async fn look_up(&self, source: &Client, entity: &Entity) -> Result<Resolved, SourceError> {
        let (resolved, _) = catalog::resolve(source, &self.0, &self.0.entities[entity.id]).await?;
        Ok(resolved)
    }

    async fn changed(&self, source: &Client, entities: &[Arc<Entity>]) -> Result<Vec<usize>, SourceError> {
        let signatures = Signatures::prepare(source, &self.0).await?.read(source).await?;
        Ok(differing(entities, &signatures))
    }
}

/// The entities whose signature is not that of the last look.
pub(super) fn differing(entities: &[Arc<Entity>], signatures: &[u64]) -> Vec<usize> {
    entities
        .iter()
        .zip(signatures)
        .filter(|(entity, now)| entity.seen() != **now)
        .map(|(entity, _)| entity.id)
        .collect()
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
    let connected = tokio::select! {
        connected = connect(session, context) => connected?,
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
        shapes: Catalog(config.clone()),
        lookups: Lookups::new(lookup_limits(config), config.source.clone(), server),
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
            let recorder = Recorder::new(context.tap.clone(), entities.clone());
            let (assembler, metrics) = (Assembler::new(limits(&context)), &context.metrics.replication);
            let pipeline = Pipeline::new(decoder, planner, assembler, (places, commands, recorder), metrics);
            let ended = pipeline.run(chunks, batch_sender, end.clone()).await;
            end.cancel();
            ended
        }
    });
    let (command_sender, commands) = mpsc::channel(1);
    context.commands.open(command_sender.clone());
    stages.spawn({
        let (context, end, progress) = (context.clone(), end.clone(), progress.clone());
        async move {
            // A query that is not answered must not hold up the end.
            tokio::select! {
                ended = housekeeping::run(&context, &source, &progress, command_sender, end.clone()) => ended,
                () = end.cancelled() => Ok(()),
            }
        }
    });
    stages.spawn({
        let (end, given_up) = (end.clone(), abort.clone());
        async move {
            // Given up anywhere, it has confirmed nothing: the next session replays it under a claim of its own.
            let ended = tokio::select! {
                ended = apply(applier, batches, commands, &progress) => ended,
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

/// Everything that a session needs of the source, the slot held.
struct Connected {
    source: Arc<Client>,
    gate: Gate,
    capture: capture::Config,
    /// Where the stream comes from, if that tells.
    server: Option<Server>,
    source_id: String,
    /// Why the stream is no continuation, if it is none.
    broken: Option<&'static str>,
    /// Where the stream continues.
    from: Lsn,
    started: Started,
}

async fn connect(session: &mut Session, context: &Context) -> Result<Connected, SessionError> {
    let config = &context.config;
    let source = Arc::new(source::connect(&config.source, Some(STATEMENT_TIMEOUT)).await?);
    // The server's own limit on statements does not help where the way to it is silent.
    let limit = config.source.dead_after;
    // Whether or not it comes to lead.
    let catalog = Catalog(config.clone());
    let look = look_without_leading(&catalog, &source, &context.hierarchy, &context.metrics);
    within("look at tables", limit, look).await??;
    let gate = source::connect(&config.source, Some(STATEMENT_TIMEOUT)).await?;
    let capture = capture_config(context)?;
    let mut connection = Connection::open(&capture).await?;
    let system = connection.identify().await?;
    let server = connection.which_server().await?;
    for client in [&*source, &gate] {
        follow::compare(server.as_ref(), source::which_server(client, limit).await?.as_ref())?;
    }
    let mut gate = within("prepare the gate", limit, Gate::new(gate, limit)).await??;
    let incarnation = within("read when statistics began", limit, slot::incarnation(&source)).await??;
    let (database, slot_name) = (&capture.database, &config.source.slot);
    let source_id = format!("{}/{}/{database}/{slot_name}/{incarnation}", system.identifier, system.timeline);
    let elsewhere = session.source_id.as_ref().is_some_and(|before| *before != source_id);
    if context.followed.is_other(&system) {
        // Not only with the claim: to make a slot may take long.
        follow::abandon(context, &source, &system).await?;
        if let Some(before) = &mut session.source_id {
            // Should this session fail and the next one come to the server of before: that is another one, too.
            before.clone_from(&source_id);
        }
        // A position of another log.
        session.stuck_at = None;
    }
    context.followed.follow(&system);
    let mut slot = slot::ensure(&source, &config.source).await?;
    if let Some(stuck_at) = session.stuck_at
        && let Some(renewed) = slot::renew(&source, &config.source, &slot, stuck_at).await?
    {
        slot = renewed;
    }
    session.confirmed = slot.confirmed;
    if slot.broken.is_some() {
        gate.outlast().await?;
    }
    if let (Some(failover), false) = (slot.failover, slot.active)
        && failover != config.source.failover_slot
    {
        follow::alter(&mut connection, config).await?;
    }
    // Within one process more may have been applied than was confirmed; elsewhere LSNs cannot be compared.
    let broken = slot
        .broken
        .or(elsewhere.then_some("the source is another system, timeline or slot than before, or has crashed"));
    let same = broken.is_none() && session.source_id.is_some();
    let from = |confirmed: Lsn| if same { confirmed.max(context.hierarchy.watermark.load()) } else { confirmed };
    failpoint::reached(Point::SlotRead);
    let started = connection.start(from(slot.confirmed)).await?;
    // Nobody else can confirm from now on. Until then whoever held the slot may have: also what it applied without L2, so
    // that L2 would seem to lack nothing. The server streams from there, whatever was asked for.
    let from = from(slot::confirmed(&source, &config.source).await?);
    info!(slot = config.source.slot, from = %from, system = system.identifier, timeline = system.timeline, "streaming");
    Ok(Connected { source, gate, capture, server, source_id, broken, from, started })
}

async fn within<T>(what: &'static str, after: Duration, work: impl Future<Output = T>) -> Result<T, SessionError> {
    let done = tokio::time::timeout(after, work).await;
    done.map_err(|_| SourceError::Timeout { what, after }.into())
}

/// Applies batches until their sender is gone, and lets capture confirm them.
async fn apply(
    mut applier: Applier<Catalog>,
    mut batches: mpsc::Receiver<Batch>,
    mut commands: mpsc::Receiver<Command>,
    progress: &Progress,
) -> Result<(), SessionError> {
    loop {
        let hold = applier.hold();
        tokio::select! {
            biased;
            Some(command) = commands.recv() => match command {
                Command::Reshape(entity) => applier.reshape(entity).await?,
                Command::LookAround => applier.look_around().await?,
                Command::Retire(swept, reply) => {
                    let done = applier.retire(&swept).await;
                    // Whoever asked may have gone away.
                    let _ = reply.send(done.as_ref().copied().map_err(ToString::to_string));
                    done?;
                }
                Command::Resync(entity, reply) => {
                    let done = applier.resync(entity).await;
                    // Whoever asked may have gone away.
                    let _ = reply.send(done.as_ref().copied().map_err(ToString::to_string));
                    done?;
                }
            },
            connection = applier.l2_returned() => applier.rejoin(connection).await?,
            batch = batches.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                if let Some(lsn) = applier.apply(batch).await? {
                    progress.apply(lsn);
                }
            }
            // Last: a batch that is there already may be all that it needs.
            () = wanted(hold) => if let Some(lsn) = applier.go_on(hold).await? {
                progress.apply(lsn);
            },
        }
    }
}

/// Waits until a round of lookups wants something.
async fn wanted(hold: Hold) {
    match hold {
        Hold::Never => std::future::pending().await,
        Hold::Nudge => {}
        Hold::Until(then) => tokio::time::sleep_until(then.into()).await,
    }
}

fn flatten(stage: Result<Result<(), SessionError>, tokio::task::JoinError>) -> Result<(), SessionError> {
    stage.unwrap_or_else(|panic| Err(SessionError::Panicked(panic.to_string())))
}

fn limits(context: &Context) -> Limits {
    let apply = &context.config.apply;
    Limits {
        max_batch_events: apply.max_batch_events,
        max_batch_bytes: bytes(apply.max_batch_bytes),
        max_transaction_bytes: bytes(apply.max_transaction_bytes),
    }
}

fn lookup_limits(config: &Config) -> lookup::Limits {
    let apply = &config.apply;
    lookup::Limits {
        max_lookups: apply.max_lookups,
        max_distance: apply.max_lookup_distance,
        timeout: apply.lookup_timeout,
        hold: apply.lookup_hold,
    }
}

fn decoder(plugin: Plugin, entities: &[Arc<Entity>], numbers_as_text: bool) -> Decoder {
    match plugin {
        Plugin::Pgoutput => Decoder::Pgoutput(pgoutput::Decoder::new()),
        Plugin::Wal2json => Decoder::Wal2json(Box::new(wal2json::Decoder::new(entities.to_vec(), numbers_as_text))),
    }
}

/// What the plugin is asked for.
fn output(context: &Context) -> Output {
    let source = &context.config.source;
    match source.plugin {
        Plugin::Pgoutput => Output::Pgoutput { publications: source.publication.names().to_vec() },
        Plugin::Wal2json => {
            let shapes: Vec<_> = context.hierarchy.entities.iter().map(|entity| entity.shape()).collect();
            // By name, a partition that is new would be missed; and a list of tables is not followed by anything.
            let tables = (!shapes.iter().any(|shape| shape.is_partitioned())).then(|| {
                let entities = &context.hierarchy.entities;
                let names = entities.iter().flat_map(|e| e.tables()).map(|(s, t)| (s.to_owned(), t.to_owned()));
                names.collect::<BTreeSet<_>>().into_iter().collect()
            });
            Output::Wal2json { tables }
        }
    }
}

fn capture_config(context: &Context) -> Result<capture::Config, SessionError> {
    let source = &context.config.source;
    let url = SourceUrl::parse(&source.url).map_err(SourceError::from)?;
    let (host, port) = url.host();
    let mode = match url.ssl_mode {
        SslMode::Disable => WireSslMode::Disable,
        SslMode::Prefer => WireSslMode::Prefer,
        SslMode::Require => WireSslMode::Require,
        SslMode::VerifyCa => WireSslMode::VerifyCa,
        SslMode::VerifyFull => WireSslMode::VerifyFull,
    };
    Ok(capture::Config {
        host,
        port,
        user: url.user().to_owned(),
        password: url.password().map(|p| String::from_utf8_lossy(p).into_owned()),
        database: url.dbname().to_owned(),
        tls: TlsConfig { mode, ca_pem_path: url.ssl_root_cert.clone(), ..TlsConfig::default() },
        slot: source.slot.clone(),
        output: output(context),
        connect_timeout: source.connect_timeout,
        status_interval: source.status_interval,
        dead_after: source.dead_after,
        max_message: bytes(source.max_message),
    })
}
