//! The process that trains: CLIP, loss, optimiser, collective, trainer. The only crate that links libtorch.

pub mod agent;
pub mod checkpoint;
pub mod clip;
pub mod collective;
pub mod crash;
pub mod device;
pub mod engine;
pub mod eval;
pub mod gpu;
pub mod hub;
pub mod loss;
pub mod model;
pub mod optim;
pub mod parity;
pub mod peer;
pub mod preempt;
pub mod profile;
pub mod steplog_writer;
pub mod trainer;
pub mod weights;
