//! The memory of a unit's containers, by CRIU through podman.
//!
//! Owns: what podman is asked for, and where its archives lie. Leaves to others: what docker cannot.

use std::path::{Path, PathBuf};

use flocker_core::{Failure, FailureCode};

use super::Containers;
use crate::driver::Part;

impl Containers {
    pub(super) fn checkpoint_allowed(&self) -> Result<(), Failure> {
        Err(Failure::refused(
            FailureCode::Unsupported,
            format!("{} cannot write containers down yet", self.api.word()),
        ))
    }

    pub(super) fn write_pre_dump(&self, _folder: &Path) -> Result<(), Failure> {
        self.checkpoint_allowed()
    }

    pub(super) fn write_checkpoint(
        &self,
        _folder: &Path,
        _pre_dumped: bool,
    ) -> Result<Vec<Part>, Failure> {
        self.checkpoint_allowed().map(|()| Vec::new())
    }

    pub(super) fn go_on_from(
        &self,
        _folder: &Path,
        _volumes: &[PathBuf],
    ) -> Result<Vec<Part>, Failure> {
        self.checkpoint_allowed().map(|()| Vec::new())
    }
}
