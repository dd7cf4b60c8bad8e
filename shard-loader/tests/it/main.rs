//! Tests of the loader as a whole: bit-equality with the peers' goldens, bad input, lanes that move.
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on fails by panicking; clippy knows only functions marked #[test]"
)]

mod bad_input;
mod cache;
mod captions;
mod clouds;
mod fuzz;
mod goldens;
mod hostile;
mod lanes;
mod memory;
mod photographs;
mod stores;
mod support;
mod tokenizers;
mod transit;
mod unread;
mod unreadable;
