//! Histories of reads and writes, judged: by hand, with a rule of the protocol left out, and under random faults.

mod blow;
mod judged;
mod left_out;
mod soak;
