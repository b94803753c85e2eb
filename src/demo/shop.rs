//! The shop: its tables as entities, the configuration for them, and which keys are asked for.

use std::collections::HashMap;

use rand::Rng;
use tokio_postgres::Client;

/// Tables and data.
pub const SCHEMA: &str = include_str!("../../sql/demo_schema.sql");

/// The product that the demo never writes: it is left to whoever watches.
pub const YOURS: i64 = 42;

/// Rows at the beginning, with ids from 1.
pub const PRODUCTS: i64 = 1000;
/// As [`PRODUCTS`].
pub const CUSTOMERS: i64 = 500;
/// As [`PRODUCTS`]. New orders follow.
pub const ORDERS: i64 = 2000;
/// Promotions there may be, named as [`promotion`] says.
pub const PROMOTIONS: i64 = 20;

/// The code of a promotion.
pub fn promotion(n: i64) -> String {
    format!("SAVE-{n}")
}

/// A table of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Key: id. Never deleted.
    Product,
    /// Key: id. Its entity invalidates.
    Customer,
    /// Key: id.
    Order,
    /// Key: order and line.
    OrderItem,
    /// Key: a text. Emptied and filled again now and then.
    Promotion,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 5] = [Table::Product, Table::Customer, Table::Order, Table::OrderItem, Table::Promotion];

    /// The entity's name.
    pub fn entity(self) -> &'static str {
        match self {
            Table::Product => "product",
            Table::Customer => "customer",
            Table::Order => "order",
            Table::OrderItem => "order_item",
            Table::Promotion => "promotion",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Table::Product => "products",
            Table::Customer => "customers",
            Table::Order => "orders",
            Table::OrderItem => "order_items",
            Table::Promotion => "promotions",
        }
    }

    /// The key's text, in SQL.
    fn key_sql(self) -> &'static str {
        match self {
            Table::OrderItem => "order_id || ',' || line",
            Table::Promotion => "code",
            Table::Product | Table::Customer | Table::Order => "id::text",
        }
    }

    /// Every row by its key, as Postgres itself renders it.
    ///
    /// # Errors
    /// If Postgres refuses.
    pub async fn rows(self, client: &Client) -> Result<HashMap<String, String>, tokio_postgres::Error> {
        let sql = format!("SELECT {}, row_to_json(t.*)::text FROM {} AS t", self.key_sql(), self.name());
        Ok(client.query(&sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// The configuration that a user would write for this shop.
pub fn configuration(source: &str, redis: &str) -> String {
    let mut text = format!(
        "[source]\nurl = \"{source}\"\nstatus_interval = \"200ms\"\n\n[l2]\nurl = \"{redis}\"\n\n\
         [http]\nlisten = \"127.0.0.1:0\"\ngrace = \"2s\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n"
    );
    for table in Table::ALL {
        text.push_str(&format!("\n[[entity]]\nname = \"{}\"\ntable = \"public.{}\"\n", table.entity(), table.name()));
        if table == Table::Customer {
            text.push_str("on_change = \"invalidate\"\n");
        }
    }
    text
}

/// One of `1..=n`, the first ones far more often than the last: a number's chance falls with its size (Zipf's law).
pub fn skewed(rng: &mut impl Rng, n: i64) -> i64 {
    ((n as f64).powf(rng.random::<f64>()) as i64).clamp(1, n)
}

/// A product that may be written, popular ones more often.
pub fn product(rng: &mut impl Rng) -> i64 {
    let id = skewed(rng, PRODUCTS);
    if id == YOURS { YOURS + 1 } else { id }
}

/// An order, new ones more often; it may have been deleted.
pub fn order(rng: &mut impl Rng, newest: i64) -> i64 {
    newest + 1 - skewed(rng, newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walcache.toml");
        std::fs::write(&path, configuration("postgres://u:p@127.0.0.1:1/shop", "redis://127.0.0.1:2/0")).unwrap();
        let config = Config::load_with(&path, []).unwrap();
        assert_eq!(config.entities.len(), Table::ALL.len());
    }

    #[test]
    fn picks_stay_in_their_ranges_and_leave_one_product_alone() {
        let mut rng = rand::rng();
        for _ in 0..10_000 {
            assert!((1..=20).contains(&skewed(&mut rng, 20)));
            assert!((1..=7).contains(&order(&mut rng, 7)));
            let product = product(&mut rng);
            assert!((1..=PRODUCTS).contains(&product) && product != YOURS);
        }
    }
}
