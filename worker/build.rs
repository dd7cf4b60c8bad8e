//! Lets the worker's binaries and tests find libtorch without `LD_LIBRARY_PATH`.
#![allow(clippy::print_stdout)] // how a build script talks to Cargo

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(root) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return; // torch-sys already stopped the build, or found a system-wide libtorch
    };
    let lib = root.join("lib");
    let lib = lib.canonicalize().unwrap_or(lib);
    // First where a tarball has it (`cargo xtask dist`), then where it was built.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
}
