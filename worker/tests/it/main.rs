//! Integration tests of the worker: one binary, since each links libtorch.

mod commands;
mod fleet;
mod parity;
mod poison;
mod trainer;
