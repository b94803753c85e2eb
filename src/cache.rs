//! The read path: L1 -> L2 -> Postgres, and the protocol that keeps every answer honest.

pub mod answer;
