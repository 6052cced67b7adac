//! The node put together.

use std::path::PathBuf;

use crate::config::Config;

/// How a node is run.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// The program whose `supervise` command starts workloads; `None`: the running program itself.
    pub supervisor: Option<PathBuf>,
}

/// Why a node does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Not written yet.
    #[error("serve is not written yet")]
    Unwritten,
}

/// Runs the node until SIGTERM, SIGINT or a `shutdown` request.
///
/// # Errors
/// [`ServeError`].
pub fn serve(config: Config, options: ServeOptions) -> Result<(), ServeError> {
    let _ = (config, options);
    Err(ServeError::Unwritten)
}
