//! The actors: each translates messages into events, or commands into effects.

pub(crate) mod artefacts;
pub(crate) mod conductor;
pub(crate) mod journal;
pub(crate) mod root;
pub(crate) mod store;
