//! The integration tests: the real daemon against a real Postgres and a real Redis, started privately. One file per
//! scenario; what they share is in `harness`.
//!
//! Much of it is faults. What may go wrong, and where it is tried; the doc comment of each such test begins with the
//! number:
//!
//! | | what goes wrong | tests |
//! |---|---|---|
//! | 1 | the daemon is killed anywhere | `crash`, `huge::killed_in_the_middle` |
//! | 2 | Postgres crashes under load, and takes commits back | `postgres_faults` |
//! | 3 | Postgres is away, for moments or for longer than `max_staleness` | `postgres_faults`, `away` |
//! | 4 | the slot is dropped, moved, invalidated, or another kind of slot | `postgres_faults`, `slot_faults` |
//! | 5 | publications altered, left and joined, filtered, dropped and made anew | `publications`, `filters`, `ddl`, `starts` |
//! | 7, 11, 28 | DDL, partitions, configuration and rights | `cli`, `ddl`, `dml` |
//! | 10 | replica identities, row-level security | `identities`, `row_security`, `cli` |
//! | 6 | TRUNCATE of several tables, CASCADE, racing fills | `truncate`, `dml`, `overtaken` |
//! | 8, 9 | keys that change or swap, unchanged TOAST | `dml`, `toast`, `identities` |
//! | 12 | a transaction of very many rows, or of large values; very many transactions; large messages | `huge`, `transactions`, `commands`, `dml` |
//! | 13 | savepoints, prepared transactions, one that is open for long | `transactions`, `dml`, `commands`, `starts` |
//! | 14 | failover to a promoted standby, another cluster, an old primary that runs on | `failover` |
//! | 15 | idle tables in a busy cluster | `idle` |
//! | 16 | Redis is away, silent, or slow to answer | `redis_faults`, `redis_network`, `outage` |
//! | 17 | Redis is emptied, comes back old, or fails over to a replica that missed writes | `redis_faults`, `outage` |
//! | 18 | Redis is full, evicts, or refuses writes | `redis_faults` |
//! | 19 | black holes, half-open connections, resets, garbage | `network`, `redis_network` |
//! | 20 | applying outlasts `wal_sender_timeout` | `keepalive`, `gate` |
//! | 21 | clocks that are wrong, or jump | `clocks`, `lifetimes` |
//! | 22 | a thousand readers miss one key | `herd` |
//! | 23 | a fill is overtaken by an event | `overtaken`, `gate`, `renewals` |
//! | 24 | two daemons on one slot | `idle`, `claim` |
//! | 26 | slow, silent and hostile HTTP clients | `abuse`, `http` |
//! | 27 | keys of all kinds | `keys` |
//! | 29 | secrets | `secrets` |
//! | 30 | SIGTERM under load, and while servers hang | `shutdown` |
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod abuse;
mod audit;
mod away;
mod claim;
mod cli;
mod clocks;
mod commands;
mod compression;
mod crash;
mod ddl;
mod dml;
mod dry_run;
mod explain;
mod failover;
mod fill_cap;
mod filters;
mod freshness;
mod gate;
mod harness;
mod herd;
mod history;
mod http;
mod huge;
mod identities;
mod idle;
mod keepalive;
mod keys;
mod lifetimes;
mod lookups;
mod network;
mod outage;
mod overtaken;
mod parts;
mod postgres_faults;
mod projection;
mod publications;
mod queries;
mod redis_faults;
mod redis_network;
mod renewals;
mod resync;
mod row_security;
mod sandbox;
mod secrets;
mod shutdown;
mod slot_faults;
mod starts;
mod tap;
mod toast;
mod transactions;
mod truncate;
mod types;
mod voids;
mod wal2json;
mod warming;
mod words;
