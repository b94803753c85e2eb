//! The private servers and the harness themselves: they start, fail on request, come back, and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use walcache::sandbox::{Postgres, PostgresOptions, Redis, RedisOptions, RedisStop, Restart, StopMode};

use crate::harness::{Proxy, Stage, WAIT_LIMIT, Way, current_lsn, eventually};

/// Long enough to tell that nothing comes, on this machine, from something that is only slow.
const SILENCE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn postgres_starts_ready_for_logical_replication() {
    let options = PostgresOptions::new().setting("timezone", "Asia/Kolkata").setting("work_mem", "5MB");
    let postgres = Postgres::start(options).await.unwrap();
    let client = postgres.connect("postgres").await.unwrap();
    for (name, value) in [("wal_level", "logical"), ("TimeZone", "Asia/Kolkata"), ("work_mem", "5MB"), ("fsync", "off")]
    {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{name}");
    }
    let slot = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    client.batch_execute(slot).await.unwrap();
    let before = current_lsn(&client).await;
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    assert!(current_lsn(&client).await > before);

    let wrong = postgres.url("postgres").replace(postgres.password(), "wrong");
    let refused = tokio_postgres::connect(&wrong, tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(refused.code().unwrap().code(), "28P01", "{refused}");
}

#[tokio::test]
async fn postgres_accepts_the_settings_we_recommend() {
    let options = PostgresOptions::new().config(include_str!("../../postgresql.conf"));
    let postgres = Postgres::start(options).await.unwrap();
    let client = postgres.connect("postgres").await.unwrap();
    let errors = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL";
    assert_eq!(client.query_one(errors, &[]).await.unwrap().get::<_, i64>(0), 0, "{}", postgres.log_tail(20));
}

/// There may be no Docker where the tests run, so the parts of the compose file are tried on a private server.
#[tokio::test]
async fn the_compose_files_fit_each_other() {
    let postgres = Postgres::start(PostgresOptions::new()).await.unwrap();
    postgres.create_database("shop").await.unwrap();
    postgres.execute("shop", include_str!("../../compose/shop.sql")).await.unwrap();
    let url = include_str!("../../compose/source_url").trim();
    let url = url.replace("@postgres:5432/", &format!("@127.0.0.1:{}/", postgres.port()));
    let (walcache, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let config: toml::Table = include_str!("../../compose/walcache.toml").parse().unwrap();
    let text = |section: &str, key: &str| config[section][key].as_str().unwrap().to_owned();

    walcache.batch_execute("CREATE SCHEMA walcache; CREATE SEQUENCE walcache.epoch").await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
    walcache.query_one(slot, &[&text("source", "slot")]).await.unwrap();
    let tables = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = $1";
    let table = walcache.query_one(tables, &[&text("source", "publication")]).await.unwrap();
    assert_eq!(config["entity"][0]["table"].as_str(), Some(table.get(0)));
    let rows = walcache.query_one("SELECT count(*) FROM products", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 1000);
}

#[tokio::test]
async fn postgres_keeps_committed_rows_over_kill_and_stop() {
    let postgres = Postgres::start(PostgresOptions::new()).await.unwrap();
    postgres.execute("postgres", "CREATE TABLE t (id int)").await.unwrap();
    let port = postgres.port();
    for (round, mode) in
        [None, Some(StopMode::Smart), Some(StopMode::Fast), Some(StopMode::Immediate)].iter().enumerate()
    {
        postgres.execute("postgres", "INSERT INTO t VALUES (1)").await.unwrap();
        match mode {
            None => postgres.kill().await.unwrap(),
            Some(mode) => postgres.stop(*mode).await.unwrap(),
        }
        assert_eq!(postgres.pid(), None);
        assert!(postgres.connect("postgres").await.is_err());
        postgres.start_again().await.unwrap();
        assert_eq!(postgres.port(), port);
        let client = postgres.connect("postgres").await.unwrap();
        let rows: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(rows, round as i64 + 1, "after {mode:?}");
    }
}

#[tokio::test]
async fn a_paused_postgres_is_silent_and_then_goes_on() {
    let postgres = Postgres::start(PostgresOptions::new()).await.unwrap();
    let client = postgres.connect("postgres").await.unwrap();
    postgres.pause().await.unwrap();
    let mut query = Box::pin(client.query_one("SELECT 1", &[]));
    assert!(timeout(SILENCE, &mut query).await.is_err(), "a paused backend answered");
    postgres.resume().unwrap();
    query.await.unwrap();
    // Dropped while paused: removed all the same.
    postgres.pause().await.unwrap();
    let (pid, dir) = (postgres.pid().unwrap(), postgres.dir().to_owned());
    drop(postgres);
    assert!(!runs(pid) && !dir.exists());
}

#[tokio::test]
async fn redis_comes_back_empty_or_with_its_data() {
    let redis = Redis::start(RedisOptions::new()).await.unwrap();
    redis.connect().await.unwrap().set::<_, _, ()>("k", 1).await.unwrap();
    let value = async || redis.connect().await.unwrap().get::<_, Option<i64>>("k").await.unwrap();

    redis.stop(RedisStop::Save).await.unwrap();
    redis.start_again(Restart::KeepData).await.unwrap();
    assert_eq!(value().await, Some(1));

    redis.connect().await.unwrap().set::<_, _, ()>("k", 2).await.unwrap();
    redis.kill().await.unwrap();
    redis.start_again(Restart::KeepData).await.unwrap();
    assert_eq!(value().await, Some(1), "the old dump");

    redis.stop(RedisStop::NoSave).await.unwrap();
    redis.start_again(Restart::Empty).await.unwrap();
    assert_eq!(value().await, None);
}

#[tokio::test]
async fn an_append_only_redis_survives_a_kill_and_pauses() {
    let redis = Redis::start(RedisOptions::new().append_only().setting("maxmemory", "64mb")).await.unwrap();
    let mut connection = redis.connect().await.unwrap();
    connection.set::<_, _, ()>("k", 1).await.unwrap();
    redis.pause().await.unwrap();
    assert!(timeout(SILENCE, connection.get::<_, i64>("k")).await.is_err(), "a paused Redis answered");
    redis.resume().unwrap();
    redis.kill().await.unwrap();
    redis.start_again(Restart::KeepData).await.unwrap();
    assert_eq!(redis.connect().await.unwrap().get::<_, i64>("k").await.unwrap(), 1);
}

#[tokio::test]
async fn stages_on_shared_servers_do_not_see_each_other() {
    let (one, two) = tokio::join!(Stage::shared("stage"), Stage::shared("stage"));
    assert_eq!(one.postgres.port(), two.postgres.port());
    one.execute("CREATE TABLE t (id int)").await;
    two.execute("CREATE TABLE t (id int)").await;
    one.l2().await.set::<_, _, ()>("k", 1).await.unwrap();
    assert!(!two.l2().await.exists::<_, bool>("k").await.unwrap());
    let config = one.config().to_toml();
    assert!(config.contains(&one.source_url()) && config.parse::<toml::Table>().is_ok(), "{config}");
}

#[tokio::test]
async fn the_proxy_breaks_connections_in_every_way() {
    let proxy = Proxy::start(echo_server().await).await;
    let connect = async || TcpStream::connect(("127.0.0.1", proxy.port())).await;

    let mut stream = connect().await.unwrap();
    assert_eq!(echo(&mut stream, b"a").await, b'a');

    proxy.stall();
    no_echo(&mut stream, b"b", "it is not silent").await;
    proxy.heal();
    assert_eq!(stream.read_u8().await.unwrap(), b'b', "what was held back arrives");

    proxy.black_hole();
    let mut new = connect().await.unwrap();
    no_echo(&mut stream, b"c", "it is not silent").await;
    no_echo(&mut new, b"c", "it is not silent").await;
    proxy.heal();
    no_echo(&mut stream, b"d", "a connection that lost data must not go on").await;
    assert_eq!(echo(&mut connect().await.unwrap(), b"e").await, b'e');

    proxy.cut();
    let reset = stream.read_u8().await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(echo(&mut connect().await.unwrap(), b"f").await, b'f');

    proxy.refuse();
    eventually("refuse connections", async || match connect().await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    proxy.heal();
    let mut stream = eventually("accept again", connect).await;

    proxy.delay(Duration::from_millis(50));
    let start = std::time::Instant::now();
    stream.write_all(b"g").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'g');
    assert!(start.elapsed() >= Duration::from_millis(100), "both ways are delayed: {:?}", start.elapsed());

    // The end of one side reaches the other in order.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_proxy_silences_one_direction() {
    for way in [Way::ToServer, Way::ToClient] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).await;
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        proxy.halve(way);
        client.write_all(b"c").await.unwrap();
        server.write_all(b"s").await.unwrap();
        let (heard, deaf) = if way == Way::ToServer { (&mut client, &mut server) } else { (&mut server, &mut client) };
        heard.read_u8().await.unwrap();
        assert!(timeout(SILENCE, deaf.read_u8()).await.is_err(), "{way:?} is not silent");
        proxy.heal();
        client.write_all(b"c").await.unwrap();
        server.write_all(b"s").await.unwrap();
        let (heard, deaf) = if way == Way::ToServer { (&mut client, &mut server) } else { (&mut server, &mut client) };
        heard.read_u8().await.unwrap();
        assert!(timeout(SILENCE, deaf.read_u8()).await.is_err(), "{way:?} lost data and goes on");
    }
}

#[tokio::test]
async fn the_proxy_tears_garbles_closes_and_leads_elsewhere() {
    let proxy = Proxy::start(echo_server().await).await;
    let connect = async || TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    for way in [Way::ToServer, Way::ToClient] {
        let mut stream = connect().await;
        assert_eq!(echo(&mut stream, b"a").await, b'a');
        proxy.tear(way);
        stream.write_all(b"12345678").await.unwrap();
        let mut got = Vec::new();
        let end = stream.read_to_end(&mut got).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{way:?}");
        // Towards the server, the echo of its half may be overtaken by the reset.
        assert!(b"1234".starts_with(&got) && (way == Way::ToServer || got.len() == 4), "{way:?}: {got:?}");

        let mut stream = connect().await;
        assert_eq!(echo(&mut stream, b"a").await, b'a');
        proxy.garble(way);
        let noise = echo(&mut stream, b"b").await;
        assert!(noise >= 0x80, "{noise}");
        assert_eq!(echo(&mut stream, b"c").await, b'c', "only one piece is garbled");
    }
    let mut stream = connect().await;
    assert_eq!(echo(&mut stream, b"a").await, b'a');
    proxy.close();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "an end in order");

    proxy.mute_after(1);
    let mut stream = connect().await;
    assert_eq!(echo(&mut stream, b"a").await, b'a');
    no_echo(&mut stream, b"b", "it is not silent").await;
    proxy.heal();
    no_echo(&mut stream, b"c", "a connection that lost data must not go on").await;
    assert_eq!(echo(&mut connect().await, b"d").await, b'd');

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    proxy.lead_to(listener.local_addr().unwrap().port());
    let (_client, (mut server, _)) = (connect().await, listener.accept().await.unwrap());
    server.write_all(b"x").await.unwrap();
}

#[tokio::test]
async fn dropped_servers_leave_nothing_behind() {
    let (postgres, redis) = servers().await;
    let children = children_of(postgres.pid().unwrap());
    assert!(children.len() >= 4, "Postgres has background processes: {children:?}");
    let pids = [&children[..], &[postgres.pid().unwrap(), redis.pid().unwrap()]].concat();
    let dirs = [postgres.dir().to_owned(), redis.dir().to_owned()];
    drop((postgres, redis));
    assert_gone(&pids, &dirs).await;
}

#[tokio::test]
async fn a_postgres_killed_for_good_leaves_no_shared_memory() {
    let postgres = Postgres::start(PostgresOptions::new()).await.unwrap();
    let pid_file = std::fs::read_to_string(postgres.data_dir().join("postmaster.pid")).unwrap();
    let segment = pid_file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let exists = || {
        let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        table.lines().any(|line| line.split_whitespace().nth(1) == Some(&segment))
    };
    if !cfg!(target_os = "linux") {
        return;
    }
    assert!(exists());
    postgres.kill().await.unwrap();
    drop(postgres);
    assert!(!exists(), "segment {segment}");
}

/// Kills a process that holds servers in use, and expects all of it to vanish.
#[tokio::test]
async fn servers_of_a_killed_process_leave_nothing_behind() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::owner_of_servers", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut pids, mut dirs) = (Vec::new(), Vec::new());
    for line in BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok) {
        match line.rsplit_once(' ') {
            Some((head, value)) if head.ends_with("pid") => pids.push(value.parse().unwrap()),
            Some((head, value)) if head.ends_with("dir") => dirs.push(PathBuf::from(value)),
            _ if line.ends_with("holding") => break,
            _ => {}
        }
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(pids.len() > 6 && dirs.len() == 2, "{pids:?} {dirs:?}");
    assert_gone(&pids, &dirs).await;
}

/// Not a test: the process that [`servers_of_a_killed_process_leave_nothing_behind`] kills.
#[tokio::test]
#[ignore = "started and killed by another test"]
async fn owner_of_servers() {
    let (postgres, redis) = servers().await;
    let client = postgres.connect("postgres").await.unwrap();
    // A backend that is busy, and so does not look whether its postmaster is alive.
    let busy = client.batch_execute("DO $$ BEGIN LOOP END LOOP; END $$");
    let report = async {
        eventually("have a busy backend", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO%'";
            let observer = postgres.connect("postgres").await.unwrap();
            let count: i64 = observer.query_one(sql, &[]).await.unwrap().get(0);
            if count == 1 { Ok(()) } else { Err("not yet") }
        })
        .await;
        println!("\npid {}\npid {}", postgres.pid().unwrap(), redis.pid().unwrap());
        for child in children_of(postgres.pid().unwrap()) {
            println!("pid {child}");
        }
        println!("dir {}\ndir {}\nholding", postgres.dir().display(), redis.dir().display());
    };
    let (busy, ()) = tokio::join!(busy, report);
    busy.unwrap();
}

async fn servers() -> (Postgres, Redis) {
    let servers = tokio::join!(Postgres::start(PostgresOptions::new()), Redis::start(RedisOptions::new()));
    (servers.0.unwrap(), servers.1.unwrap())
}

async fn assert_gone(pids: &[u32], dirs: &[PathBuf]) {
    eventually("remove every process and directory", async || {
        let processes: Vec<_> = pids.iter().filter(|pid| runs(**pid)).collect();
        let dirs: Vec<_> = dirs.iter().filter(|dir| dir.exists()).collect();
        if processes.is_empty() && dirs.is_empty() { Ok(()) } else { Err(format!("{processes:?} {dirs:?}")) }
    })
    .await;
}

/// Whether the process is there, and more than a zombie that waits for init.
fn runs(pid: u32) -> bool {
    let state = ps(&["-o", "state=", "-p", &pid.to_string()]);
    !(state.is_empty() || state.starts_with('Z'))
}

fn children_of(pid: u32) -> Vec<u32> {
    let table = ps(&["-A", "-o", "pid=,ppid="]);
    let rows = table.lines().map(|line| line.split_whitespace().map(|id| id.parse::<u32>().unwrap()));
    rows.filter_map(|mut ids| ids.next().zip(ids.next())).filter(|row| row.1 == pid).map(|row| row.0).collect()
}

fn ps(args: &[&str]) -> String {
    let output = Command::new("ps").args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    port
}

/// Sends a byte and returns what comes back.
async fn echo(stream: &mut TcpStream, byte: &[u8; 1]) -> u8 {
    stream.write_all(byte).await.unwrap();
    timeout(WAIT_LIMIT, stream.read_u8()).await.expect("an echo").unwrap()
}

/// Sends a byte; nothing comes back.
async fn no_echo(stream: &mut TcpStream, byte: &[u8; 1], why: &str) {
    stream.write_all(byte).await.unwrap();
    assert!(timeout(SILENCE, stream.read_u8()).await.is_err(), "{why}");
}

#[test]
fn directories_are_private() {
    use std::os::unix::fs::PermissionsExt;
    use walcache::sandbox::{LastSignal, Supervised};
    let supervised = Supervised::new("test", LastSignal::Kill, None).unwrap();
    let dir = supervised.dir();
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}
