//! Evaluation by a process that has nothing but files: a checkpoint, shards, names of classes.

mod confusion;
mod measure;
mod predictions;
mod sheet;
mod source;
mod zero_shot;

pub use confusion::{ClassReport, Mistake};
pub use measure::{Speed, measure};
pub use sheet::{Asked, Sheet, SheetArgs, contact_sheet};
pub use source::{Loaded, ModelArgs, Which, load_engine, load_weights};
pub use zero_shot::{EvalArgs, Report, SubcategoryReport, run};

use argosy_common::exit::Exit;

/// The exit code and a sentence that names what is wrong.
type Failure = (Exit, String);
