//! The process that plans: a shell round [`argosy_common::conductor`].
//!
//! ```text
//!   root (supervisor) ─┬─ conductor   owns the brain and the timer, carries out its commands
//!                      ├─ store       durable records, one at a time, in order
//!                      ├─ artefacts   manifests and garbage in the run's object store
//!                      └─ journal     events.jsonl and whoever watches
//!   server ── one task per worker's stream ──▶ conductor
//! ```
//!
//! An actor translates a message into an event, steps the brain and executes its commands; there is no policy in actors.
//! If any of them fails or panics, the outcome of what it did is unknown: the run ends with an error that names it, every
//! stream is closed, workers end themselves, and the next `argosy run` goes on from what the store has. Nothing is restarted
//! inside the process.

mod actors;
mod admission;
pub mod crash;
mod error;
mod handle;
mod options;
pub mod package;
mod run;
pub mod store;

pub use actors::artefacts::{CHECKPOINTS_DIR, attempt_prefix};
pub use error::CoordinatorError;
pub use handle::{CoordinatorHandle, Orders, handle};
pub use options::{CoordinatorOptions, Spawner};
pub use run::{EVENTS_FILE, META_FILE, lead, run};

pub use argosy_common::events::Outcome;
