//! Compiles `cpp/shim.cpp` against the headers of the libtorch that torch-sys links.
#![allow(clippy::print_stdout)] // how a build script talks to Cargo

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp/shim.cpp");
    println!("cargo:rerun-if-changed=cpp/pool.cpp");
    println!("cargo:rerun-if-changed=cpp/shim.h");
    println!("cargo:rerun-if-changed=cpp/sums.cpp");
    println!("cargo:rerun-if-changed=cpp/record.cpp");
    println!("cargo:rerun-if-changed=cpp/record.h");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // torch-sys tells its direct dependents where it found the libraries; the headers lie beside them.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo::error=torch-sys did not say where libtorch is: run `cargo xtask setup`, then build again");
        return;
    };
    let root = lib.parent().map_or_else(|| lib.clone(), PathBuf::from);
    let include = root.join("include");
    if !include.join("ATen/ops/_fused_adamw.h").exists() {
        println!(
            "cargo::error={} holds no libtorch headers: run `cargo xtask setup`",
            include.display()
        );
        return;
    }
    let build = |opt_level: u32| {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(opt_level)
            // libtorch is built with it, and some of its classes (RecordFunction) have other members without it.
            .define("NDEBUG", None)
            .warnings(false) // libtorch's headers warn; ours is 300 lines
            .include(&include)
            .include(include.join("torch/csrc/api/include"));
        build
    };
    build(1)
        .file("cpp/shim.cpp")
        .file("cpp/pool.cpp")
        .file("cpp/record.cpp")
        .compile("argosy_torch_shim");
    // The one file with a loop over every gradient.
    build(3).file("cpp/sums.cpp").compile("argosy_torch_sums");
    println!("cargo:rustc-link-search=native={}", lib.display());
    // For this crate's own tests; `worker` does the same for its binaries.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
