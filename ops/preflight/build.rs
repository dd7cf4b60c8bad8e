//! Stops the build with one sentence when what crates.io does not carry is not there.
#![allow(clippy::print_stdout)] // how a build script talks to Cargo

use std::path::Path;

fn main() {
    // A header, not a library: set-up gives all it lays the same old date, so laying it again rebuilds nothing, while
    // a file that has gone makes Cargo ask us again.
    let header = in_folder("LIBTORCH", "include/torch/headeronly/version.h");
    if let Some(missing) = find_missing(header.as_deref()) {
        println!("cargo::error=run `cargo xtask setup`, then build again: {missing}");
        return;
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-env-changed=CMAKE");
    println!("cargo::rerun-if-changed={}", header.unwrap_or_default());
}

fn find_missing(header: Option<&str>) -> Option<String> {
    match header {
        None => return Some("LIBTORCH is not set".to_owned()),
        Some(header) if !Path::new(&header).is_file() => return Some(format!("there is no libtorch 2.11 ({header})")),
        Some(_) => {}
    }
    match std::env::var("CMAKE") {
        Ok(cmake) if Path::new(&cmake).is_file() || is_on_path(&cmake) => {}
        _ => return Some("there is no cmake".to_owned()),
    }
    // Without it libjpeg-turbo still builds, at a third of its speed and without a word.
    (!is_on_path("nasm")).then(|| "there is no nasm".to_owned())
}

fn in_folder(variable: &str, file: &str) -> Option<String> {
    Some(format!("{}/{file}", std::env::var(variable).ok()?))
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
