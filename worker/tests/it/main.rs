//! Integration tests of the worker: one binary, since each links libtorch.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail their test by panicking"
)]

mod agent;
mod catalogue;
mod commands;
mod determinism;
mod fleet;
mod parity;
mod poison;
mod published;
mod saved;
mod trainer;
mod unreadable;
mod weights;
mod zero_shot;
