//! The one integration-test binary: one link, many modules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    clippy::match_same_arms,
    reason = "in tests a panic is the report"
)]

mod allocations;
mod api;
mod bad_input;
mod catalogue;
mod cluster;
mod crd;
mod example;
#[path = "../faults/mod.rs"]
mod faults;
mod fence;
mod fuzz;
mod hostile;
mod inherited;
#[path = "../bench/instant.rs"]
mod instant;
mod journal;
mod laws;
mod layers;
mod lease;
mod node;
mod nodes;
mod operator_command;
mod package;
mod program;
mod python;
mod readme;
mod runner;
mod scenarios;
mod server;
mod stops;
mod terminal;
mod vectors;
