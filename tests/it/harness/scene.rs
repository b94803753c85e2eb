//! A stage with the daemon on it: what most scenarios begin with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use walcache::lsn::Lsn;

use super::{Config, Daemon, Http, LONG_LIMIT, Oracle, Response, Stage, cli, current_lsn, eventually_within};

/// A running daemon with its stage, and a client for each of its sides.
pub struct Scene {
    /// The databases.
    pub stage: Stage,
    /// The daemon's configuration.
    pub config: Config,
    /// The daemon, ready.
    pub daemon: Daemon,
    /// The listener that serves reads.
    pub http: Http,
    /// One connection to the source: the application's.
    pub sql: Client,
    /// L2.
    pub l2: MultiplexedConnection,
}

/// An entry in L2, taken apart as any Redis client could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Everything committed up to here is in the value.
    pub lo: Lsn,
    /// Nothing committed after here is.
    pub hi: Lsn,
    /// The generation, in hexadecimal.
    pub generation: String,
    /// The text of the value: JSON.
    pub value: String,
}

impl Scene {
    /// Runs `schema` in a new database, then `setup --apply`, then the daemon with `entities` added by `configure`.
    pub async fn open(name: &str, schema: &str, configure: impl FnOnce(Config) -> Config) -> Scene {
        let stage = Stage::shared(name).await;
        stage.execute(schema).await;
        Scene::on(stage, configure).await
    }

    /// As [`Scene::open`] on a stage whose tables are there already.
    pub async fn on(stage: Stage, configure: impl FnOnce(Config) -> Config) -> Scene {
        // Nothing is called stale, given up or voided because other tests keep the machine busy, or write to the same log.
        let config = stage
            .config()
            .set("freshness", "stale_after", "60s")
            .set("apply", "lookup_timeout", "30s")
            .set("apply", "lookup_hold", "60s")
            .set("apply", "max_lookup_distance", "4GiB")
            .set("source", "fill_timeout", "10s");
        let config = configure(config);
        let setup = cli(&config, &["setup", "--apply"], &[]).await;
        assert!(setup.status.success(), "{setup:?}");
        let daemon = Daemon::start(&config).await;
        daemon.wait_ready().await;
        let (http, sql, l2) = (daemon.http(), stage.sql().await, stage.l2().await);
        Scene { stage, config, daemon, http, sql, l2 }
    }

    /// Runs statements as the application, and waits until everything that they committed is applied.
    pub async fn write(&self, sql: &str) -> Lsn {
        self.sql.batch_execute(sql).await.unwrap_or_else(|e| panic!("{e}: {:?}\n{sql}", e.as_db_error()));
        self.applied().await
    }

    /// Waits until everything that is committed now is applied.
    pub async fn applied(&self) -> Lsn {
        let lsn = current_lsn(&self.sql).await;
        self.daemon.wait_applied(lsn).await;
        lsn
    }

    /// `GET /v1/{path}`.
    pub async fn get(&self, path: &str) -> Response {
        self.http.get(&format!("/v1/{path}")).await
    }

    /// Reads until L1 answers, and gives that answer.
    pub async fn warm(&self, path: &str) -> Response {
        eventually_within(LONG_LIMIT, &format!("answer {path} from L1"), || async {
            let response = self.get(path).await;
            if response.header("x-cache") == "HIT-L1" { Ok(response) } else { Err(format!("{response:?}")) }
        })
        .await
    }

    /// What stands in L2 at a key, as it is.
    pub async fn raw(&self, key: &str) -> Option<Bytes> {
        let bytes: Option<Vec<u8>> = self.l2.clone().get(key).await.expect("GET from the private Redis");
        bytes.map(Bytes::from)
    }

    /// The entry in L2 at a key; a lease is none.
    pub async fn stored(&self, key: &str) -> Option<Stored> {
        self.raw(key).await.and_then(|bytes| Stored::parse(&bytes))
    }

    /// All keys of an entity in L2, sorted, without the entity's name.
    pub async fn keys(&self, entity: &str) -> Vec<String> {
        let start = format!("{entity}:");
        let all: Vec<String> = self.l2.clone().keys("*").await.expect("KEYS from the private Redis");
        let mut keys: Vec<String> =
            all.into_iter().filter_map(|key| key.strip_prefix(&start).map(str::to_owned)).collect();
        keys.sort();
        keys
    }

    /// Compares every entry and every answer with Postgres, see [`Oracle::verify`].
    pub async fn verify(&self) {
        Oracle::new(self).verify().await;
    }

    /// A metric's value, by its name with labels as it is written.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.daemon.admin().get("/metrics").await.expect(200).text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Stored {
    /// Takes an entry apart; `None` for a lease.
    ///
    /// # Panics
    /// If it is neither.
    pub fn parse(bytes: &[u8]) -> Option<Stored> {
        let text = std::str::from_utf8(bytes).expect("UTF-8");
        let whole: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
        if whole.contains_key("lease") {
            return None;
        }
        let hex = |at: usize| Lsn::from_hex16(&bytes[at..at + 16]).unwrap_or_else(|| panic!("no LSN at {at}: {text}"));
        assert!(text.starts_with("{\"lo\":\"") && &text[23..31] == "\",\"hi\":\"", "{text}");
        assert!(
            &text[47..54] == "\",\"g\":\"" && &text[70..76] == "\",\"s\":" && &text[77..83] == ",\"x\":\"",
            "{text}"
        );
        assert!(&text[96..102] == "\",\"z\":" && &text[103..108] == ",\"v\":", "{text}");
        let mut value = text[108..].strip_suffix('}').expect("the closing brace").to_owned();
        if &text[102..103] == "1" {
            let frame = STANDARD.decode(value.trim_matches('"')).expect("base64");
            value = String::from_utf8(zstd::stream::decode_all(&frame[..]).expect("a zstd frame")).expect("UTF-8");
        }
        Some(Stored { lo: hex(7), hi: hex(31), generation: text[54..70].to_owned(), value })
    }
}
