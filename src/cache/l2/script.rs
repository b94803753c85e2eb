//! Scripts, which Redis runs in one piece.

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

/// A script, sent by its hash and loaded where the server does not know it.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    /// A script from its text.
    pub fn new(text: &'static str) -> Self {
        Script { text, sha: redis::Script::new(text).get_hash().to_owned() }
    }

    /// The command that runs it with this many keys; keys, then arguments, are to be appended.
    pub fn command(&self, keys: usize) -> redis::Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha).arg(keys);
        cmd
    }

    /// Runs a command made by [`Script::command`]; loads the script first if the server lost it.
    ///
    /// # Errors
    /// What Redis or the connection says.
    pub async fn run(&self, conn: &mut MultiplexedConnection, cmd: &redis::Cmd) -> Result<Value, RedisError> {
        match conn.send_packed_command(cmd).await.and_then(Value::extract_error) {
            Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
                self.load(conn).await?;
                conn.send_packed_command(cmd).await?.extract_error()
            }
            other => other,
        }
    }

    /// Loads the script into the server.
    ///
    /// # Errors
    /// What Redis or the connection says.
    pub async fn load(&self, conn: &mut MultiplexedConnection) -> Result<(), RedisError> {
        redis::cmd("SCRIPT").arg("LOAD").arg(self.text).exec_async(conn).await
    }
}
