//! An entity whose truth is made of many rows: the members of a group, which move, and what is counted of each.
//!
//! Memberships have histories as counters have: the value of a membership says in which group it is. So an answer is judged
//! row by row, by what it shows and by what it does not show.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use walcache::lsn::Lsn;

use super::histories::{Claim, Histories, Kind, Violation};
use super::shop::Shop;
use super::{Daemon, Entity, Http, Response, Stage, cli, eventually};

/// Groups.
const GROUPS: i64 = 8;

/// A change of a counter tells of its group only by way of its membership.
const ENTITY: &str = r#"
    name = "club"
    params = { grp = "int4" }
    query = """
        SELECT c.id, c.version, m.tag FROM members m JOIN counters c ON c.id = m.counter_id
        WHERE m.grp = $1 ORDER BY c.id"""
    on_change = "invalidate"
    depends_on = [
        { table = "public.members", key = { grp = "grp" } },
        { table = "public.counters", lookup = "SELECT grp FROM members WHERE counter_id = $1", from = ["id"] },
    ]"#;

/// The table of memberships, and what was written to it.
pub struct Club {
    stage: Arc<Stage>,
    counters: Arc<Histories>,
    members: Arc<Histories>,
    reads: Arc<AtomicU64>,
}

/// Those who write and read memberships.
pub struct ClubLoad {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    violations: Arc<Mutex<Vec<Violation>>>,
}

impl Club {
    /// Adds it to a shop, before its daemon starts.
    pub async fn add(shop: &mut Shop) -> Club {
        shop.stage
            .execute(
                "CREATE TABLE members (counter_id int PRIMARY KEY, grp int NOT NULL, tag bigint NOT NULL);
                 ALTER TABLE members REPLICA IDENTITY FULL;
                 CREATE INDEX ON members (grp)",
            )
            .await;
        shop.config = shop.config.clone().entity(Entity::written(ENTITY));
        let done = cli(&shop.config, &["setup", "--apply"], &[]).await;
        assert!(done.status.success(), "{done:?}");
        let members = Arc::new(Histories::new(shop.histories.len()));
        Club { stage: shop.stage.clone(), counters: shop.histories.clone(), members, reads: Arc::default() }
    }

    /// Answers judged so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Starts them.
    pub fn load(&self, daemon: &Daemon, seed: u64) -> ClubLoad {
        let (stop, violations) = (CancellationToken::new(), Arc::new(Mutex::default()));
        let mut tasks = JoinSet::new();
        let write = write(self.stage.clone(), self.members.clone(), stop.clone(), StdRng::seed_from_u64(seed));
        tasks.spawn(write);
        for number in 1..=3 {
            let reader = Reader {
                http: Http::new(daemon.http_address()),
                counters: self.counters.clone(),
                members: self.members.clone(),
                violations: violations.clone(),
                reads: self.reads.clone(),
                last: HashMap::new(),
            };
            tasks.spawn(reader.run(stop.clone(), StdRng::seed_from_u64(seed + number)));
        }
        ClubLoad { stop, tasks, violations }
    }

    /// O1, once all writes have ended and all is applied.
    pub async fn compare(&self, daemon: &Daemon) -> Vec<Violation> {
        let sql = self.stage.sql().await;
        let query = "SELECT coalesce(json_agg(json_build_object('id', c.id, 'version', c.version, 'tag', m.tag) ORDER BY c.id), '[]')::text \
            FROM members m JOIN counters c ON c.id = m.counter_id WHERE m.grp = $1";
        let mut violations = Vec::new();
        for group in 0..GROUPS as i32 {
            let row = sql.query_one(query, &[&group]).await.expect("read a group");
            let truth: Value = serde_json::from_str(row.get(0)).expect("JSON");
            let response = eventually("be answered", || async {
                let response = daemon.http().get(&format!("/v1/club/{group}")).await;
                if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
            })
            .await;
            if response.json() != truth {
                let what = format!("group {group}: {response:?}, in Postgres {truth}");
                violations.push(Violation { kind: Kind::Differs, what });
            }
        }
        self.members.forget();
        violations
    }
}

impl ClubLoad {
    /// Stops them; gives what was found to be wrong.
    pub async fn end(mut self) -> Vec<Violation> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a member of the club");
        }
        std::mem::take(&mut *self.violations.lock())
    }
}

/// Moves members from group to group, lets them in, and puts them out.
async fn write(stage: Arc<Stage>, members: Arc<Histories>, stop: CancellationToken, mut rng: StdRng) {
    let mut session = None;
    let mut last = None;
    while !stop.is_cancelled() {
        let Some(sql) = session.as_ref().filter(|sql: &&tokio_postgres::Client| !sql.is_closed()) else {
            (session, last) = (stage.postgres.connect(&stage.name).await.ok(), None);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            continue;
        };
        let row = rng.random_range(0..members.len());
        let group = rng.random_range(0..GROUPS);
        let tag = rng.random_bool(0.9).then(|| members.version() * GROUPS + group);
        let statement = match tag {
            Some(tag) => format!(
                "INSERT INTO members VALUES ({row}, {group}, {tag}) ON CONFLICT (counter_id) DO UPDATE SET grp = {group}, tag = {tag}"
            ),
            None => format!("DELETE FROM members WHERE counter_id = {row}"),
        };
        let turn = members.turns(&BTreeSet::from([row])).await;
        let transaction = turn.begin(&BTreeMap::from([(row, tag)]), last);
        let written = async {
            sql.batch_execute(&statement).await?;
            sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await
        };
        match written.await {
            Ok(at) => {
                let at: Lsn = at.get::<_, &str>(0).parse().expect("an LSN");
                transaction.committed(at);
                last = Some(at);
            }
            // It may have been committed, or not: both may be read.
            Err(_) => session = None,
        }
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
}

struct Reader {
    http: Http,
    counters: Arc<Histories>,
    members: Arc<Histories>,
    violations: Arc<Mutex<Vec<Violation>>>,
    reads: Arc<AtomicU64>,
    /// `X-Read-LSN` of the last answer, by group.
    last: HashMap<i64, Lsn>,
}

impl Reader {
    async fn run(mut self, stop: CancellationToken, mut rng: StdRng) {
        while !stop.is_cancelled() {
            let group = rng.random_range(0..GROUPS);
            let demanded = self.last.get(&group).copied().filter(|_| rng.random());
            let text = demanded.map(|lsn| lsn.to_string());
            let headers: Vec<(&str, &str)> = text.iter().map(|lsn| ("x-min-lsn", lsn.as_str())).collect();
            let path = format!("/v1/club/{group}");
            let answer = self.http.send(hyper::Method::GET, &path, &headers, bytes::Bytes::new()).await;
            match answer {
                Ok(response) if response.status == 200 => self.judge(group, demanded, &response),
                _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    }

    fn judge(&mut self, group: i64, demanded: Option<Lsn>, response: &Response) {
        let lsn = |name: &str| response.header(name).parse::<Lsn>().expect("an LSN");
        let read = lsn("x-read-lsn");
        let claim = Claim { lo: lsn("x-applied-lsn"), hi: Some(read), demanded, ..Claim::default() };
        let mut shown = HashMap::new();
        for row in response.json().as_array().expect("an array") {
            let number = |name: &str| row[name].as_i64().expect("a number");
            shown.insert(number("id") as usize, (number("version"), number("tag")));
        }
        for row in 0..self.members.len() {
            let judged = match shown.get(&row) {
                Some((version, tag)) => self
                    .members
                    .judge(row, Some(*tag), claim)
                    .and_then(|_| self.counters.judge(row, Some(*version), claim))
                    .map(drop),
                None => {
                    let elsewhere = |tag: Option<i64>| tag.is_none_or(|tag| tag % GROUPS != group);
                    let may = self.members.may_be(row, claim, &elsewhere)
                        || self.counters.may_be(row, claim, &|version| version.is_none());
                    let what = || format!("row {row} is missing");
                    if may { Ok(()) } else { Err(Violation { kind: Kind::Stale, what: what() }) }
                }
            };
            if let Err(mut violation) = judged {
                violation.what = format!("group {group}, {}; {response:?}", violation.what);
                let mut violations = self.violations.lock();
                if violations.len() < 100 {
                    violations.push(violation);
                }
            }
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let last = self.last.entry(group).or_insert(read);
        *last = read.max(*last);
    }
}
