//! What is found wrong, as it is reported.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Tier;
use crate::cache::etag;
use crate::lsn::Lsn;

/// What a cached image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Everything committed up to here is in it: `lo` in L2; in L1 `as_of`, the watermark before it was fetched.
    pub lo: Lsn,
    /// Nothing committed after here is in it.
    pub hi: Lsn,
    /// The generation it belongs to.
    pub generation: u64,
    /// Hash of the value, as in the header `ETag`.
    #[serde(with = "hex")]
    pub etag: u64,
    /// Whether it says that the row is absent.
    pub absent: bool,
}

/// What the row's image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowLabels {
    /// Nothing committed after here is in it.
    pub hi: Lsn,
    /// Hash of the value.
    #[serde(with = "hex")]
    pub etag: u64,
    /// Whether there is no row.
    pub absent: bool,
}

/// Hashes of values, as the header `ETag` has them.
pub(super) mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::audit) fn serialize<S: Serializer>(etag: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{etag:016x}"))
    }

    pub(in crate::audit) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

/// An entry that differs from Postgres, without a change on its way that would explain it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The entity's name.
    pub entity: String,
    /// The key within the entity, as it stands in Redis.
    pub key: String,
    /// Where it stood.
    pub tier: Tier,
    /// The cached image.
    pub cached: Labels,
    /// The row.
    pub row: RowLabels,
    /// Whether it was made unservable; `None` if that was not wanted.
    pub repaired: Option<bool>,
}

impl RowLabels {
    pub(super) fn new(hi: Lsn, value: Option<&Bytes>) -> Self {
        RowLabels { hi, etag: etag(value.map(|v| &**v)), absent: value.is_none() }
    }
}
