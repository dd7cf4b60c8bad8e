//! Bytes to batches: tar shards, their index, lanes and windows, decoding, resizing and tokens.
//!
//! Knows no actors and no libtorch. What stands in a batch is a pure function of (shape, index, bytes): the plan only
//! says which lanes this process reads, and prefetching is a cache that never enters the cursor (rules L1, L7).
//!
//! The way of one sample: [`index`] says where its bytes lie, [`store`] reads them, [`tar`] slices them without a copy,
//! [`sample`] groups the slices, [`decode`] and [`transform`] make pixels, [`tokenize`] makes tokens, [`loader`] puts
//! them into a [`LaneBatch`].
//!
//! Pictures are JPEG, PNG or WebP, told by their bytes. GIF and BMP, which OpenCLIP would read, are masked `format`.

pub mod batch;
pub mod cache;
pub mod check;
pub mod decode;
pub mod error;
pub mod eval;
pub mod expand;
#[doc(hidden)]
pub mod fuzzing;
pub mod index;
pub mod loader;
pub mod manifest;
pub mod objects;
pub mod resize;
pub mod sample;
pub mod store;
pub mod tar;
pub mod tokenize;
pub mod transform;

mod clean;
mod html;
mod thumbnail;

pub use batch::LaneBatch;
pub use cache::{CacheStats, DiskCache};
pub use clean::Clean;
pub use error::{BlockCause, DataError, LoaderError};
pub use eval::{EvalConfig, EvalReader, EvalSample};
pub use index::{BuildConfig, BuildReport, Filter, Index, Progress};
pub use loader::{Loader, LoaderConfig, LoaderStats, StageReport};
pub use store::{RetryPolicy, Store};
pub use thumbnail::thumbnail;
pub use tokenize::Tokenizer;
