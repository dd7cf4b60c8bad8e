//! Words and decisions of Argosy.
//!
//! This crate decides and never acts: it has no tokio, no clock, no source of randomness, no sockets and no libtorch, and
//! its `Cargo.toml` is what keeps it so. Time arrives as a parameter; random choices are functions of their keys.
//!
//! What is trained is a pure function of (config, seed, data); membership only decides who computes it. The first half of
//! that sentence lives in [`sampling`], [`shape`] and [`schedule`]; the second in [`conductor`] (the coordinator's brain),
//! [`follower`] (a worker's brain) and [`assignment`].

pub mod assignment;
pub mod audit;
pub mod backoff;
pub mod blame;
pub mod conductor;
pub mod config;
pub mod divergence;
pub mod events;
pub mod exit;
pub mod follower;
pub mod hash;
pub mod ids;
pub mod invariants;
pub mod ledger;
pub mod node;
pub mod numeric;
pub mod package;
pub mod plan;
pub mod quarantine;
pub mod queue;
pub mod rng;
pub mod rules;
pub mod sampling;
pub mod schedule;
pub mod secret;
pub mod shape;
pub mod steplog;
