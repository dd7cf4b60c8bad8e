//! Object stores that fail on purpose, for the tests of all crates. Never part of what ships.
//!
//! [`Faults`] says what goes wrong when, and keeps a log of every request. Two stores obey it: [`FaultyStore`] round any
//! `ObjectStore` inside the process, whose waiting follows tokio's clock (paused in tests), and [`StoreDouble`], a server of
//! S3, of Google's storage or of Azure's on loopback. [`Moto`] starts somebody else's server of S3. Faults are planned by request, not by time, so that a test says which request fails and how often.
//!
//! ```
//! use argosy_test_stores::{Fault, Faults, Op, Rule};
//! let faults = Faults::default();
//! faults.add(Rule::new(Op::Get, Fault::Status(503)).key("0.tar").times(2)); // the first two reads of 0.tar
//! ```

mod azure;
mod body;
mod faults;
mod listing;
mod moto;
mod objects;
mod s3;
mod server;
#[cfg(test)]
mod tests;
mod wrapper;

pub use faults::{Call, Fault, Faults, Op, Rule, Storm};
pub use moto::Moto;
pub use server::{Kind, S3Double, StoreDouble};
pub use wrapper::FaultyStore;
