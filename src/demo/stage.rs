//! What the demo stands on: private servers with the shop in them, and the daemon's configuration for it.

use std::path::PathBuf;

use tokio_postgres::Client;

use super::error::DemoError;
use super::shop;
use crate::catalog::Finding;
use crate::config::{Config, Secret};
use crate::sandbox::{Postgres, PostgresOptions, Redis, RedisOptions};
use crate::setup;
use crate::source;

/// The database of the shop.
const DATABASE: &str = "shop";

/// Servers and configuration. Dropping it removes them.
pub struct Stage {
    /// The source.
    pub postgres: Postgres,
    /// L2.
    pub redis: Redis,
    /// The configuration, as loaded from its file.
    pub config: Config,
    /// That file.
    pub config_path: PathBuf,
}

impl Stage {
    /// Starts both servers.
    ///
    /// # Errors
    /// If one of them is not installed, or does not start.
    pub async fn start() -> Result<Stage, DemoError> {
        let (postgres, redis) =
            tokio::join!(Postgres::start(PostgresOptions::new()), Redis::start(RedisOptions::new()));
        let (postgres, redis) = (postgres?, redis?);
        // `setup` makes this role: the daemon has no more rights than it needs, here as elsewhere.
        let role = format!("postgres://walcache:{}@127.0.0.1:{}/{DATABASE}", postgres.password(), postgres.port());
        let config_path = redis.dir().join("walcache.toml");
        std::fs::write(&config_path, shop::configuration(&role, &redis.url()))
            .map_err(|source| DemoError::Io { action: "write the configuration", source })?;
        // Overrides in the environment are meant for another daemon.
        let config = Config::load_with(&config_path, [])?;
        Ok(Stage { postgres, redis, config, config_path })
    }

    /// Makes the shop.
    ///
    /// # Errors
    /// If Postgres refuses.
    pub async fn make_shop(&self) -> Result<(), DemoError> {
        self.postgres.create_database(DATABASE).await?;
        Ok(self.postgres.execute(DATABASE, shop::SCHEMA).await?)
    }

    /// What `walcache setup --apply --url ...` does, as superuser.
    ///
    /// # Errors
    /// If Postgres refuses.
    pub async fn set_up(&self, done: impl FnMut(&Finding)) -> Result<(), DemoError> {
        let mut admin = self.config.source.clone();
        admin.url = Secret::from(self.url().as_str());
        let mut client = source::connect(&admin, None).await?;
        setup::apply(&mut client, &self.config, done).await?;
        Ok(())
    }

    /// A connection to the shop, as the application has it.
    ///
    /// # Errors
    /// If Postgres refuses.
    pub async fn connect(&self) -> Result<Client, DemoError> {
        Ok(self.postgres.connect(DATABASE).await?)
    }

    /// The shop's URL for its owner.
    pub fn url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// How to call `psql`; `None` where it is not installed.
    pub fn psql(&self) -> Option<String> {
        let on_path = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("psql").is_file()));
        let beside = self.postgres.bindir().join("psql");
        match on_path {
            true => Some("psql".to_owned()),
            false => beside.is_file().then(|| beside.display().to_string()),
        }
    }
}
