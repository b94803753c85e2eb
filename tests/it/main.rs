//! The integration tests: the real daemon against a real Postgres and a real Redis, started privately. One file per
//! scenario; what they share is in `harness`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod claim;
mod cli;
mod crash;
mod ddl;
mod dml;
mod gate;
mod harness;
mod http;
mod huge;
mod idle;
mod keys;
mod network;
mod overtaken;
mod postgres_faults;
mod redis_faults;
mod sandbox;
mod secrets;
mod shutdown;
mod types;
