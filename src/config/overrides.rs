//! Overrides from the environment: `WALCACHE__SECTION__KEY`.

use std::path::Path;

use toml::{Table, Value};

use super::error::{ConfigError, explain, suggestion};
use super::{Config, L2Config, redact};

const PREFIX: &str = "WALCACHE__";

/// `config`, read from `text`, with the overrides among `variables`.
pub(super) fn apply(
    config: Config,
    text: &str,
    path: &Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut overrides: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    if overrides.is_empty() {
        return Ok(config);
    }
    overrides.sort();
    let known = known_fields();
    let mut file: Table = toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, path))?;
    let mut config = config;
    for (variable, value) in overrides {
        let fail = |message| ConfigError::Override { variable: variable.clone(), message };
        let (section, key, example) = field(&variable, &known).map_err(fail)?;
        let value = typed(&value, example).map_err(fail)?;
        if let Some(Value::Table(fields)) = file.get_mut(section) {
            // An override of one of these replaces whichever of the two the file has.
            match key {
                "url" => drop(fields.remove("url_file")),
                "url_file" => drop(fields.remove("url")),
                _ => {}
            }
            fields.insert(key.to_owned(), value);
        } else {
            file.insert(section.to_owned(), Value::Table(Table::from_iter([(key.to_owned(), value)])));
        }
        // One by one, so that an error is this variable's.
        config = Value::Table(file.clone()).try_into().map_err(|e: toml::de::Error| fail(explain(e.message())))?;
    }
    Ok(config)
}

/// Every field that can be overridden, by section, with its default for the sake of its type.
fn known_fields() -> Table {
    // The default holds nothing but strings, numbers, booleans and tables of them, which TOML can say.
    let whole = Config { l2: Some(L2Config::default()), ..Config::default() };
    let mut known = Table::try_from(whole).unwrap_or_default();
    known.remove("entity");
    for section in ["source", "l2"] {
        if let Some(Value::Table(fields)) = known.get_mut(section) {
            fields.insert("url_file".to_owned(), Value::String(String::new()));
        }
    }
    known
}

/// The section and key that a variable names, as the known fields spell them.
fn field<'a>(variable: &str, known: &'a Table) -> Result<(&'a str, &'a str, &'a Value), String> {
    let name = variable.strip_prefix(PREFIX).unwrap_or(variable).to_lowercase();
    let (section, key) = name.split_once("__").ok_or("an override is named WALCACHE__SECTION__KEY")?;
    let names = |table: &'a Table| table.keys().map(String::as_str).collect::<Vec<_>>();
    let Some((section, Value::Table(fields))) = known.get_key_value(section) else {
        return Err(format!("unknown section `{section}`{}", suggestion(section, &names(known))));
    };
    let Some((key, example)) = fields.get_key_value(key) else {
        return Err(format!("unknown key `{key}` in [{section}]{}", suggestion(key, &names(fields))));
    };
    Ok((section, key, example))
}

/// The text as a value of the example's type.
fn typed(text: &str, example: &Value) -> Result<Value, String> {
    let wrong = |wanted: &str| format!("{:?} is not {wanted}", redact(text));
    match example {
        Value::Integer(_) => text.trim().parse().map(Value::Integer).map_err(|_| wrong("a whole number")),
        Value::Boolean(_) => text.trim().parse().map(Value::Boolean).map_err(|_| wrong("true or false")),
        _ => Ok(Value::String(text.to_owned())),
    }
}
