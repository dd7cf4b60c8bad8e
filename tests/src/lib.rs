//! `cluster-tests`: Argosy's programs as a user runs them.
//!
//! The stories lie in `tests/stories`: real processes, real shards, killed and stopped from outside, judged by the audit. The
//! goldens that OpenCLIP made lie in `goldens/`, the scripts that made them in `peers/`, the bounds of every comparison in
//! `bounds.toml`.
