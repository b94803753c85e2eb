//! The configuration: one TOML file, overrides from the environment, secrets from files.
//!
//! `walcache.example.toml` shows every field with its default; a test keeps it true. An override is named
//! `WALCACHE__SECTION__KEY`, for example `WALCACHE__SOURCE__URL`.

mod depends_on;
mod entity;
mod error;
mod overrides;
mod publications;
mod secret;
mod sections;
mod source;
mod table_name;
#[cfg(test)]
mod tests;
mod tiers;
pub(crate) mod units;
mod validate;
mod violations;
mod warm;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use depends_on::{DependsOn, Pairs};
pub use entity::EntityConfig;
pub(crate) use error::nearest;
pub use error::{ConfigError, Violation};
pub use publications::Publications;
pub use secret::{Secret, redact};
pub use sections::{AdminConfig, ApplyConfig, AuditConfig, FreshnessConfig, HttpConfig, LogConfig, LogFormat};
pub use source::{Plugin, SourceConfig};
pub use table_name::{ParseTableNameError, TableName};
pub use tiers::{L1Config, L2Config};
pub use warm::{MAX_RATE, WarmConfig, WarmOn, WarmOrder};

/// Everything that an operator decides.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The Postgres that is followed, and read on misses.
    pub source: SourceConfig,
    /// How changes are batched on their way into Redis.
    pub apply: ApplyConfig,
    /// The cache in this process's memory.
    pub l1: L1Config,
    /// The cache in Redis; `None`: L1 and Postgres only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2Config>,
    /// What readers are promised, and for how long they wait for it.
    pub freshness: FreshnessConfig,
    /// The listener that serves reads.
    pub http: HttpConfig,
    /// The listener for operators: health, metrics, status.
    pub admin: AdminConfig,
    /// Comparing what is cached with Postgres.
    pub audit: AuditConfig,
    /// Logging.
    pub log: LogConfig,
    /// The kinds of cached things.
    #[serde(rename = "entity")]
    pub entities: Vec<EntityConfig>,
}

impl Config {
    /// Reads `path`, applies the environment's overrides, reads secrets from their files and validates the whole.
    ///
    /// # Errors
    /// [`ConfigError`] names the place (file, line and column, or variable) and what is allowed there.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        // A variable that is not UTF-8 cannot be one of ours with a value that TOML could hold.
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Config::load_with(path, variables)
    }

    /// As [`Config::load`], with these environment variables.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn load_with(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            field: None,
            source,
        })?;
        let config = Config::parse(&text, path)?;
        let mut config = overrides::apply(config, &text, path, variables)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        config.read_secrets(&folder)?;
        let violations = config.validate();
        if violations.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { path: path.to_owned(), violations }) }
    }

    /// Reads TOML; `path` is for messages only. Nothing is validated beyond each field's own form.
    fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, path))
    }

    fn read_secrets(&mut self, folder: &Path) -> Result<(), ConfigError> {
        read_secret("source", &mut self.source.url, self.source.url_file.as_deref(), folder)?;
        match &mut self.l2 {
            Some(l2) => read_secret("l2", &mut l2.url, l2.url_file.as_deref(), folder),
            None => Ok(()),
        }
    }
}

/// Fills `url` from its file, relative to the configuration's folder.
fn read_secret(section: &str, url: &mut Secret, file: Option<&Path>, folder: &Path) -> Result<(), ConfigError> {
    let Some(file) = file else { return Ok(()) };
    let field = format!("{section}.url_file");
    if !url.is_empty() {
        return Err(ConfigError::Conflict { section: section.to_owned() });
    }
    let path: PathBuf = folder.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            *url = Secret::from(text.trim());
            Ok(())
        }
        Err(source) => Err(ConfigError::Read { path, field: Some(field), source }),
    }
}
