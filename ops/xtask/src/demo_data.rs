//! `cargo xtask demo-data`: draws the demo's pictures again. Only for those who change the data set.

use crate::{Paths, cargo, setup};
use anyhow::{Context, Result};
use std::process::ExitCode;

pub(crate) const USAGE: &str = "[--out DIR] [--cache DIR]";

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    setup::lay(paths, false)?;
    let status = cargo::cargo(paths)
        .args(["run", "--quiet", "--package", "demo-data", "--"])
        .args(args)
        .status()
        .context("cargo could not be started")?;
    Ok(status
        .code()
        .map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
}
