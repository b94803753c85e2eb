//! Connecting: everything that a session needs of the source, up to the stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgwire_replication::TlsConfig;
use pgwire_replication::config::SslMode as WireSslMode;
use tokio_postgres::Client;
use tracing::info;

use super::Session;
use crate::apply::reshape::look_without_leading;
use crate::capture::connect::{Connection, Started};
use crate::capture::{self, Output};
use crate::config::Plugin;
use crate::daemon::error::SessionError;
use crate::daemon::settings::bytes;
use crate::daemon::shapes::Catalog;
use crate::daemon::{Context, STATEMENT_TIMEOUT, follow, slot};
use crate::failpoint::{self, Point};
use crate::gate::Gate;
use crate::lsn::Lsn;
use crate::source::{self, Server, SourceError, SourceUrl, SslMode, within};

/// Everything that a session needs of the source, the slot held.
pub(super) struct Connected {
    pub(super) source: Arc<Client>,
    pub(super) gate: Gate,
    pub(super) capture: capture::Config,
    /// Where the stream comes from, if that tells.
    pub(super) server: Option<Server>,
    pub(super) source_id: String,
    /// Why the stream is no continuation, if it is none.
    pub(super) broken: Option<&'static str>,
    /// Where the stream continues.
    pub(super) from: Lsn,
    pub(super) started: Started,
}

pub(super) async fn connect(
    session: &mut Session,
    context: &Context,
    shapes: &Catalog,
) -> Result<Connected, SessionError> {
    let config = &context.config;
    let source = Arc::new(source::connect(&config.source, Some(STATEMENT_TIMEOUT)).await?);
    // Whether or not it comes to lead. Each statement has its limit; all of them together take as long as there are entities.
    look_without_leading(shapes, &source, &context.hierarchy, &context.metrics).await?;
    // The server's own limit on statements does not help where the way to it is silent.
    let limit = config.source.dead_after;
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
        search_path: source.search_path.clone(),
        slot: source.slot.clone(),
        output: output(context),
        connect_timeout: source.connect_timeout,
        status_interval: source.status_interval,
        dead_after: source.dead_after,
        max_message: bytes(source.max_message),
    })
}
