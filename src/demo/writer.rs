//! The application: it writes to Postgres with plain SQL and knows nothing of walcache.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::shop::{self, Table};
use crate::lsn::Lsn;

/// Between two transactions.
const PACE: Duration = Duration::from_millis(20);
/// One transaction in this many empties a table.
const TRUNCATE_EVERY: u64 = 150;
/// Lines that an order's items may have.
pub const LINES: [i32; 4] = [1, 2, 3, 10];

/// What everybody knows of the writes so far.
#[derive(Debug)]
pub struct Journal {
    /// Transactions committed.
    pub transactions: AtomicU64,
    /// The newest order's id.
    pub newest_order: AtomicI64,
    /// Keys that may have no row any more; noted before the row goes.
    pub gone: Mutex<HashSet<(Table, String)>>,
}

impl Default for Journal {
    fn default() -> Self {
        let gone = (1..=shop::PROMOTIONS).map(|n| (Table::Promotion, shop::promotion(n))).collect();
        let newest_order = AtomicI64::new(shop::ORDERS);
        Journal { transactions: AtomicU64::new(0), newest_order, gone: Mutex::new(gone) }
    }
}

impl Journal {
    /// Whether a row may have gone after it was written.
    pub fn may_be_gone(&self, table: Table, key: &str) -> bool {
        self.gone.lock().contains(&(table, key.to_owned()))
    }

    fn note_gone(&self, table: Table, key: String) {
        self.gone.lock().insert((table, key));
    }
}

/// A row as it was written.
#[derive(Debug)]
pub struct Written {
    /// Its table.
    pub table: Table,
    /// Its key.
    pub key: String,
    /// Its version; `None` if it was deleted.
    pub version: Option<i64>,
    /// At or above the commit.
    pub lsn: Lsn,
}

/// The row of a transaction that is looked for afterwards, with its version; `None` if it was deleted.
type Row = (Table, String, Option<i64>);

/// Writes until stopped, and hands one row of each transaction to whoever checks that it can be read.
///
/// # Errors
/// If Postgres refuses a statement.
pub async fn write(
    mut client: Client,
    journal: Arc<Journal>,
    written: mpsc::Sender<Written>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut rng = StdRng::from_os_rng();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 1.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = pace.tick() => {}
        }
        let row = if n % TRUNCATE_EVERY == 0 {
            replace_promotions(&mut client, &mut rng).await?
        } else {
            transaction(&mut client, &mut rng, &journal).await?
        };
        let Some((table, key, version)) = row else { continue };
        journal.transactions.fetch_add(1, Ordering::Relaxed);
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        // Postgres prints LSNs that parse. A full queue loses one check of many.
        if let Ok(lsn) = row.get::<_, &str>(0).parse() {
            let _ = written.try_send(Written { table, key, version, lsn });
        }
    }
    Ok(())
}

/// One transaction of the shop's day; nothing where the row it wanted does not exist any more.
async fn transaction(client: &mut Client, rng: &mut StdRng, journal: &Journal) -> Result<Option<Row>, Error> {
    let newest = journal.newest_order.load(Ordering::Relaxed);
    let (product, order) = (shop::product(rng), shop::order(rng, newest));
    let customer = shop::skewed(rng, shop::CUSTOMERS);
    let updated = |table: Table, key: i64, row: Option<tokio_postgres::Row>| {
        row.map(|row| (table, key.to_string(), Some(row.get(0))))
    };
    Ok(match rng.random_range(0..100) {
        0..35 => {
            let cents: i32 = rng.random_range(100..10_000);
            let sql = "UPDATE products SET price = $2::int / 100.0 WHERE id = $1 RETURNING version";
            updated(Table::Product, product, client.query_opt(sql, &[&product, &cents]).await?)
        }
        35..55 => {
            let delivered: i32 = rng.random_range(1..50);
            let sql = "UPDATE products SET stock = stock + $2 WHERE id = $1 RETURNING version";
            updated(Table::Product, product, client.query_opt(sql, &[&product, &delivered]).await?)
        }
        55..72 => place_order(client, rng, customer, journal).await?,
        72..87 => {
            let status = ["paid", "packed", "shipped", "delivered"][rng.random_range(0..4)];
            let sql = "UPDATE orders SET status = $2 WHERE id = $1 RETURNING version";
            updated(Table::Order, order, client.query_opt(sql, &[&order, &status]).await?)
        }
        87..91 => {
            let tier = ["standard", "silver", "gold"][rng.random_range(0..3)];
            let sql = "UPDATE customers SET tier = $2::text::customer_tier WHERE id = $1 RETURNING version";
            updated(Table::Customer, customer, client.query_opt(sql, &[&customer, &tier]).await?)
        }
        91..94 => {
            // The key changes: the row is another entry from now on, and the old one must go.
            journal.note_gone(Table::OrderItem, format!("{order},1"));
            let sql = "UPDATE order_items SET line = 10 WHERE order_id = $1 AND line = 1 RETURNING version";
            let row = client.query_opt(sql, &[&order]).await?;
            row.map(|row| (Table::OrderItem, format!("{order},10"), Some(row.get(0))))
        }
        _ => delete_order(client, order, journal).await?,
    })
}

async fn place_order(
    client: &mut Client,
    rng: &mut StdRng,
    customer: i64,
    journal: &Journal,
) -> Result<Option<Row>, Error> {
    let products: Vec<i64> = (0..rng.random_range(1..4)).map(|_| shop::product(rng)).collect();
    let transaction = client.transaction().await?;
    let sql = "INSERT INTO orders (customer_id) VALUES ($1) RETURNING id";
    let order: i64 = transaction.query_one(sql, &[&customer]).await?.get(0);
    let sql = "INSERT INTO order_items (order_id, line, product_id, quantity, price) \
               SELECT $1, row_number() OVER (ORDER BY id), id, 1, price FROM products WHERE id = ANY($2)";
    transaction.execute(sql, &[&order, &products]).await?;
    transaction.execute("UPDATE products SET stock = stock - 1 WHERE id = ANY($1)", &[&products]).await?;
    let sql = "UPDATE orders SET total = (SELECT sum(quantity * price) FROM order_items WHERE order_id = $1) \
               WHERE id = $1 RETURNING version";
    let version = transaction.query_one(sql, &[&order]).await?.get(0);
    transaction.commit().await?;
    journal.newest_order.fetch_max(order, Ordering::Relaxed);
    Ok(Some((Table::Order, order.to_string(), Some(version))))
}

async fn delete_order(client: &mut Client, order: i64, journal: &Journal) -> Result<Option<Row>, Error> {
    journal.note_gone(Table::Order, order.to_string());
    LINES.iter().for_each(|line| journal.note_gone(Table::OrderItem, format!("{order},{line}")));
    // Its items go with it.
    let deleted = client.execute("DELETE FROM orders WHERE id = $1", &[&order]).await?;
    Ok((deleted > 0).then(|| (Table::Order, order.to_string(), None)))
}

/// Empties the promotions and puts others in their place; every reader sees all of the old ones or all of the new.
async fn replace_promotions(client: &mut Client, rng: &mut StdRng) -> Result<Option<Row>, Error> {
    let numbers: Vec<i64> = (1..=shop::PROMOTIONS).filter(|_| rng.random_bool(0.7)).collect();
    let transaction = client.transaction().await?;
    transaction.batch_execute("TRUNCATE promotions").await?;
    let sql = "INSERT INTO promotions (code, percent) SELECT 'SAVE-' || n, n % 90 + 1 FROM unnest($1::bigint[]) AS n \
               RETURNING code, version";
    let rows = transaction.query(sql, &[&numbers]).await?;
    transaction.commit().await?;
    Ok(rows.first().map(|row| (Table::Promotion, row.get(0), Some(row.get(1)))))
}
