//! Cargo as a child process, with the environment a plain `cargo` call in this clone would have.

use std::path::Path;
use std::process::Command;

use crate::paths::Paths;

/// Variables of `.cargo/config.toml` and what each points to below `target/toolchain`.
const CONFIGURED: [(&str, &str); 3] = [
    ("LIBTORCH", "libtorch"),
    ("CMAKE", "cmake/bin/cmake"),
    ("PROTOC", "protoc/bin/protoc"),
];

/// `cargo` in the clone's root.
pub(crate) fn cargo(paths: &Paths) -> Command {
    let mut command = plain_cargo(&paths.root);
    // `cargo run` has put the configured values into our environment. Handed on, they would look like the user's own
    // and a later plain `cargo build` would rebuild whatever watches them: minutes, for torch-sys.
    for (name, part) in CONFIGURED {
        if std::env::var_os(name).is_some_and(|value| Path::new(&value) == paths.linked(part)) {
            command.env_remove(name);
        }
    }
    command
}

/// `cargo` in any folder, without what the outer `cargo run` told us about ourselves.
pub(crate) fn plain_cargo(dir: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Is there a `cargo NAME`? Asked by running it, since cargo also finds subcommands off `PATH`.
pub(crate) fn has_subcommand(paths: &Paths, name: &str) -> bool {
    cargo(paths)
        .args([name, "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_variables_are_those_of_the_cargo_configuration() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cargo/config.toml");
        let text = std::fs::read_to_string(file).unwrap();
        let found: Vec<String> = text
            .lines()
            .filter(|line| line.contains("relative = true"))
            .map(str::to_owned)
            .collect();
        assert_eq!(found.len(), CONFIGURED.len(), "{found:?}");
        for (name, part) in CONFIGURED {
            let line = format!("{name} = {{ value = \"target/toolchain/{part}\", relative = true }}");
            assert!(found.contains(&line), "{line}");
        }
    }
}
