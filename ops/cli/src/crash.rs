//! A panic is a bug: it leaves a report and exits 101.

use crate::out;

pub(crate) use argosy_coordinator::crash::{happened, remember, set_folder};

/// From now on every panic of any thread writes a report and says where it lies.
pub(crate) fn install() {
    argosy_coordinator::crash::install("argosy", out::say);
}
