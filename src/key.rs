//! Keys of entries: the canonical, injective text form of a row's key columns.
//!
//! In Redis a key is `{prefix}{entity}:{key}`; `key` is the key columns' Postgres text joined by `,`, with `%`, `,`
//! and ASCII control characters of a part percent-encoded. In a URL each part is percent-encoded once and the commas
//! between parts are literal. A request that spells a value otherwise than Postgres does (`042`, an upper-case uuid)
//! is brought to the canonical form or refused: it never makes a second entry.

#[cfg(test)]
mod tests;
mod types;

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

pub use self::types::KeyType;

/// The longest key in its encoded form, in bytes: rows with longer keys are not cached, and requests for them refused.
pub const MAX_KEY_BYTES: usize = 16 * 1024;

/// A request's key that can be no key of its entity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The number of parts differs from the number of key columns.
    #[error("the key has {found} part(s), the entity's key has {wanted} column(s): {columns}")]
    Parts {
        /// Parts in the request.
        found: usize,
        /// Columns of the key.
        wanted: usize,
        /// The columns' names, joined by commas.
        columns: String,
    },
    /// A part is not a value of its column's type.
    #[error("key column {column} is {expected}, not {found:?}")]
    Value {
        /// The column's name.
        column: String,
        /// What it takes.
        expected: String,
        /// What was sent, shortened.
        found: String,
    },
    /// Percent-encoding that does not decode to UTF-8, or a NUL character, which no Postgres text can hold.
    #[error("the key does not decode to text: it must be UTF-8, percent-encoded once, without NUL")]
    Encoding,
    /// Longer than [`MAX_KEY_BYTES`].
    #[error("the key is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
}

impl KeyError {
    fn parts(found: usize, columns: &[KeyColumn]) -> Self {
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        KeyError::Parts { found, wanted: columns.len(), columns: names.join(",") }
    }
}

/// A key column as its entity resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// Its type, as far as keys are concerned.
    pub key_type: KeyType,
    /// The type's schema-qualified, quoted name without modifier, for casts in SQL: a cast to `varchar(n)` would cut
    /// values off.
    pub cast: String,
}

/// An entry's canonical key within its entity, encoded as it stands in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Reads a key as it stands in a URL's last path segment (or in a batch request).
    ///
    /// # Errors
    /// [`KeyError`] names the part that cannot be a key of an entity with these key columns.
    pub fn from_request(segment: &str, columns: &[KeyColumn]) -> Result<Key, KeyError> {
        if segment.len() > 3 * MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        let found = segment.split(',').count();
        if found != columns.len() {
            return Err(KeyError::parts(found, columns));
        }
        Key::canonical(segment.split(',').map(decode), columns)
    }

    /// Makes a key of the values of its columns, one by one: as they are, not encoded.
    ///
    /// # Errors
    /// As [`Key::from_request`].
    pub fn from_values(values: &[Cow<'_, str>], columns: &[KeyColumn]) -> Result<Key, KeyError> {
        if values.len() != columns.len() {
            return Err(KeyError::parts(values.len(), columns));
        }
        let checked = |value: &Cow<'_, str>| if value.contains('\0') { Err(KeyError::Encoding) } else { Ok(()) };
        Key::canonical(values.iter().map(|value| checked(value).map(|()| Cow::Borrowed(value.as_ref()))), columns)
    }

    /// Brings as many values as there are columns to their canonical form.
    fn canonical<'a>(
        values: impl Iterator<Item = Result<Cow<'a, str>, KeyError>>,
        columns: &[KeyColumn],
    ) -> Result<Key, KeyError> {
        let mut key = Vec::new();
        for (i, (value, column)) in values.zip(columns).enumerate() {
            let text = value?;
            let canonical = column.key_type.canonical(&text).ok_or_else(|| KeyError::Value {
                column: column.name.clone(),
                expected: column.key_type.to_string(),
                found: text.chars().take(60).collect(),
            })?;
            if i > 0 {
                key.push(b',');
            }
            push_part(&mut key, canonical.as_bytes());
            if key.len() > MAX_KEY_BYTES {
                return Err(KeyError::TooLong);
            }
        }
        // Only ASCII was replaced, by ASCII: what was UTF-8 still is.
        String::from_utf8(key).map(|key| Key(key.into_boxed_str())).map_err(|_| KeyError::Encoding)
    }

    /// Reads back a key as it stands in Redis; `None` if no request's key is brought to this form.
    pub fn from_stored(encoded: &str, columns: &[KeyColumn]) -> Option<Key> {
        if encoded.len() > MAX_KEY_BYTES || encoded.split(',').count() != columns.len() {
            return None;
        }
        let mut again = Vec::with_capacity(encoded.len());
        for (i, (part, column)) in encoded.split(',').zip(columns).enumerate() {
            let text = decode(part).ok()?;
            let canonical = column.key_type.canonical(&text)?;
            if i > 0 {
                again.push(b',');
            }
            push_part(&mut again, canonical.as_bytes());
        }
        (again == encoded.as_bytes()).then(|| Key(encoded.into()))
    }

    /// The encoded key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key columns' values of an encoded key, in Postgres' text form.
pub fn parts(encoded: &str) -> impl Iterator<Item = Cow<'_, str>> {
    // What was encoded from UTF-8 decodes to UTF-8.
    encoded.split(',').map(|part| percent_decode_str(part).decode_utf8_lossy())
}

/// Appends the encoded form of one part, given in Postgres' text form. Bytes of 0x80 and above stay as they are.
pub fn push_part(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in text {
        if b < 0x20 || matches!(b, 0x7F | b'%' | b',') {
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        } else {
            out.push(b);
        }
    }
}

fn decode(part: &str) -> Result<Cow<'_, str>, KeyError> {
    let bytes = part.as_bytes();
    for (i, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'%') {
        let hex = bytes.get(i + 1..i + 3).ok_or(KeyError::Encoding)?;
        if !hex.iter().all(u8::is_ascii_hexdigit) {
            return Err(KeyError::Encoding);
        }
    }
    let text = percent_decode_str(part).decode_utf8().map_err(|_| KeyError::Encoding)?;
    if text.contains('\0') { Err(KeyError::Encoding) } else { Ok(text) }
}

/// The hash of a full key: it chooses the cell of the L1 fence and the shard of L1, on every instance alike.
pub fn hash(redis_key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(redis_key)
}
