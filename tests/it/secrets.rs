//! Passwords are in nothing that walcache says: no log at any level, metric, status or error.

use std::fs;

use tokio::process::Command;

use crate::harness::{Daemon, Entity, Stage, cli, eventually};

/// With characters that mean something in a URL; the first part is what is looked for.
const SOURCE: (&str, &str) = ("sOurcePw9f3k", "sOurcePw9f3k@:/?#%");
const L2: (&str, &str) = ("rEdisPw7c1x", "rEdisPw7c1x@:/?#%");

/// Panics if a text has a password, as it is or as bytes in a debug print.
#[track_caller]
fn clean(what: &str, text: &str) {
    for (secret, _) in [SOURCE, L2] {
        let list = secret.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
        let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
        for form in [secret, &list, &hex, &hex.to_uppercase()] {
            if let Some(at) = text.find(form) {
                let line = text[..at].lines().count();
                panic!(
                    "{what} has a password in line {line}: {}",
                    text.lines().nth(line.max(1) - 1).unwrap_or_default()
                );
            }
        }
    }
}

fn encoded(password: &str) -> String {
    percent_encoding::utf8_percent_encode(password, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn no_password_is_ever_told() {
    let stage = Stage::shared("secrets").await;
    let name = &stage.name;
    stage.execute("CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 0)").await;
    let mut l2 = stage.l2().await;
    let acl = ["SETUSER", name, "on", &format!(">{}", L2.1), "~*", "&*", "+@all"].map(str::to_owned);
    redis::cmd("ACL").arg(&acl).exec_async(&mut l2).await.unwrap();
    let source_url = |password: &str, port| format!("postgres://{name}:{}@127.0.0.1:{port}/{name}", encoded(password));
    let l2_url = |password: &str| {
        format!("redis://{name}:{}@127.0.0.1:{}/{}", encoded(password), stage.redis.port(), stage.redis_database)
    };
    let port = stage.postgres.port();
    let config = stage
        .config()
        .set("source", "url", source_url(SOURCE.1, port))
        .set("l2", "url", l2_url(L2.1))
        .set("log", "level", "trace")
        .entity(Entity::new("item", "public.items"));

    // The role is made with its password, in a statement that a server may log.
    let setup = cli(&config, &["setup"], &[]).await;
    clean("setup", &format!("{setup:?}"));
    let setup = cli(&config, &["setup", "--apply", "--url", &stage.source_url()], &[]).await;
    assert!(setup.status.success(), "{setup:?}");
    clean("setup --apply", &format!("{}{}", setup.stdout, setup.stderr));

    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let (http, admin) = (daemon.http(), daemon.admin());
    http.get("/v1/item/1").await.expect(200);
    let at = stage.execute("UPDATE items SET n = 1").await;
    daemon.wait_applied(at).await;
    http.get_with("/v1/item/1", &[("cache-control", "no-cache")]).await.expect(200);
    // Everything is connected anew, and says so.
    redis::cmd("CLIENT").arg(&["KILL", "USER", name]).exec_async(&mut l2).await.unwrap();
    stage.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")).await;
    let at = stage.execute("UPDATE items SET n = 2").await;
    daemon.wait_applied(at).await;
    // Right after its connections have broken, reads of Postgres are refused at once for a moment.
    let read = eventually("be answered", || async {
        let read = http.get("/v1/item/1").await;
        if read.status == 503 { Err(format!("{read:?}")) } else { Ok(read) }
    })
    .await;
    assert_eq!(read.expect(200).json()["n"], 2);
    for path in ["/metrics", "/v1/status", "/readyz"] {
        clean(path, &admin.get(path).await.text());
    }
    // Refused from now on, while it runs.
    redis::cmd("ACL").arg(&["SETUSER", name, "resetpass", ">other"]).exec_async(&mut l2).await.unwrap();
    stage.execute(&format!("ALTER ROLE {name} PASSWORD 'other'")).await;
    redis::cmd("CLIENT").arg(&["KILL", "USER", name]).exec_async(&mut l2).await.unwrap();
    stage.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")).await;
    let problem = eventually("tell the problem", || async {
        let status = daemon.status().await;
        if status["problem"].is_string() { Ok(status.to_string()) } else { Err(status.to_string()) }
    })
    .await;
    clean("/v1/status", &problem);
    for path in ["/metrics", "/readyz"] {
        clean(path, &admin.get(path).await.text());
    }
    clean("a read", &format!("{:?}", http.get_with("/v1/item/1", &[("cache-control", "no-cache")]).await));
    eventually("log the refusal", || async {
        if daemon.log().contains("password authentication failed") { Ok(()) } else { Err("it is not there yet") }
    })
    .await;
    daemon.terminate().await;
    let log = daemon.log();
    assert!(log.contains("\"TRACE\""), "the log shows all of this");
    clean("the log", &log);

    for verb in ["check", "run", "setup"] {
        let refused = cli(&config, &[verb], &[]).await;
        assert_eq!(refused.status.code(), Some(77), "{refused:?}");
        clean(verb, &format!("{}{}", refused.stdout, refused.stderr));
    }
    let nobody = config.clone().set("source", "url", source_url(SOURCE.1, walcache::sandbox::free_port()));
    clean("nobody there", &format!("{:?}", cli(&nobody, &["check"], &[]).await));
}

#[tokio::test]
async fn a_configuration_that_is_wrong_around_a_password_does_not_tell_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("walcache.toml");
    let source = |url: &str| format!("[source]\nurl = {url}\n[l2]\nurl = \"redis://127.0.0.1\"\n");
    let l2 = |url: &str| format!("[source]\nurl = \"postgres://u:p@h/d\"\n[l2]\nurl = {url}\n");
    let (pg, redis) = (SOURCE.0, L2.0);
    let texts = [
        source(&format!("\"postgres://u:{pg}@h:port/d\"")),
        source(&format!("\"postgres://u:{pg}@h/d?sslmode=never\"")),
        source(&format!("\"postgres://u:{pg}@h/d?nonsense=1\"")),
        source(&format!("\"postgres://u:{pg}@\"")),
        source(&format!("\"mysql://u:{pg}@h/d\"")),
        source(&format!("\"u:{pg}@h/d\"")),
        source(&format!("\"host=h password={pg}\"")),
        source(&format!("\"postgres://u:{pg}%zz@h/d\"")),
        source(&format!("\"postgres://u:{pg}@h/d")),
        source(&format!("postgres://u:{pg}@h/d")),
        source(&format!("[\"postgres://u:{pg}@h/d\"]")),
        l2(&format!("\"redis://u:{redis}@h:port/0\"")),
        l2(&format!("\"http://u:{redis}@h/0\"")),
        l2(&format!("\"redis://u:{redis}@h/zero\"")),
        l2(&format!("\"redis://:{redis}@\"")),
        l2(&format!("\"{redis}\"")),
        l2(&format!("\"redis://u:{redis}@h/0")),
    ];
    for text in texts {
        fs::write(&file, &text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcache"));
        let output = command.args(["check", "--config"]).arg(&file).kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}\n{said}");
        clean(&text.lines().nth(1).unwrap().replace(pg, "...").replace(redis, "..."), &said);
    }
    let env = [
        ("WALCACHE__SOURCE__URL", format!("mysql://u:{pg}@h/d")),
        ("WALCACHE__L2__URL", format!("http://u:{redis}@h")),
    ];
    for (variable, value) in env {
        fs::write(&file, "[[entity]]\nname = \"a\"\ntable = \"b\"\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcache"));
        let output = command.args(["check", "--config"]).arg(&file).env(variable, value).output().await.unwrap();
        assert_eq!(output.status.code(), Some(78));
        clean(variable, &format!("{output:?}"));
    }
}
