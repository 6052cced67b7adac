//! A unit's images in a file, for a node that has no registry to pull them from.
//!
//! Owns: writing and loading the file. Leaves to others: where it lies and how it gets there (with the unit's
//! state volume).

use std::fs::File;
use std::path::Path;

use flocker_core::{Failure, FailureCode, Remedy};

use super::Containers;

impl Containers {
    /// Writes the images of the unit's containers into a file, as they are named.
    ///
    /// # Errors
    /// One is not here, or the file cannot be written.
    pub(crate) fn save_image(&self, file: &Path) -> Result<(), Failure> {
        let mut names = Vec::new();
        for name in &self.names {
            let inspected = self.inspect(name)?;
            let image = inspected.docker["Config"]["Image"].as_str().unwrap_or_default().to_owned();
            if !names.contains(&image) {
                names.push(image);
            }
        }
        let beside = file.with_extension("new");
        let failure = |error| failure(file, "written", &error);
        let mut out = File::create(&beside).map_err(failure)?;
        self.api.save_images(&names, &mut out)?;
        out.sync_all().map_err(failure)?;
        std::fs::rename(&beside, file).map_err(failure)
    }

    /// Loads the images of such a file.
    ///
    /// # Errors
    /// It cannot be read, or the runtime does not take it.
    pub(crate) fn load_image(&self, file: &Path) -> Result<(), Failure> {
        self.api.load_images(File::open(file).map_err(|error| failure(file, "read", &error))?)
    }
}

fn failure(file: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Remedy::Operator,
        FailureCode::Workload,
        format!("the file of images {} cannot be {what}: {error}", file.display()),
    )
}
