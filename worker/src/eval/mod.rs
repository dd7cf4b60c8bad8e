//! Evaluation by a process that has nothing but files: a checkpoint, shards, names of classes.

mod source;
mod zero_shot;

pub use source::{Loaded, Which, load_engine, load_weights};
pub use zero_shot::{EvalArgs, Report, SubcategoryReport, run};
