//! Nothing at run time. The build script checks that `cargo xtask setup` has run, so that a newcomer's first
//! `cargo build` ends in one sentence and not in a C++ compiler's page about a missing header.
