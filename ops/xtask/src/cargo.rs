//! Cargo as a child process, with the environment a plain `cargo` call in this clone would have.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

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

/// Builds `package` with `args` (`["--bin", NAME]`, `["--example", NAME]`) and tells where the executable lies.
pub(crate) fn build(paths: &Paths, package: &str, args: [&str; 2]) -> Result<PathBuf> {
    let status = cargo(paths)
        .args(["build", "--quiet", "-p", package])
        .args(args)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "building {package} {} failed", args.join(" "));
    let folder = std::env::current_exe().context("cannot tell where xtask lies")?;
    let name = match args {
        ["--example", name] => format!("examples/{name}"),
        [_, name] => name.to_owned(),
    };
    let path = folder.with_file_name(name);
    ensure!(path.is_file(), "{} is missing after a build", path.display());
    Ok(path)
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
