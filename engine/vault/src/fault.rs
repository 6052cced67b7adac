//! Named points at which a test may cut the power.
//!
//! Owns: the list of moments at which what is on the disk changes its meaning, so that a crash test can
//! stop at each of them. Outside of tests a point costs one load and does nothing.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use flocker_store::StoreError;

type Hook = Box<dyn FnMut(&str, &Path) -> bool + Send>;

static ARMED: AtomicBool = AtomicBool::new(false);
static HOOKS: Mutex<Vec<(PathBuf, Hook)>> = Mutex::new(Vec::new());

/// Calls `hook` at every point that the vault at `vault` passes, with the point's name and the vault's path;
/// `true` makes the operation fail there as an I/O error would. For tests only.
#[doc(hidden)]
pub fn arm(vault: &Path, hook: impl FnMut(&str, &Path) -> bool + Send + 'static) {
    let mut hooks = HOOKS.lock().unwrap_or_else(|e| e.into_inner());
    hooks.retain(|(path, _)| path != vault);
    hooks.push((vault.to_owned(), Box::new(hook)));
    ARMED.store(true, Ordering::SeqCst);
}

/// Forgets the hook of a vault. For tests only.
#[doc(hidden)]
pub fn disarm(vault: &Path) {
    let mut hooks = HOOKS.lock().unwrap_or_else(|e| e.into_inner());
    hooks.retain(|(path, _)| path != vault);
    ARMED.store(!hooks.is_empty(), Ordering::SeqCst);
}

/// Passes a point.
pub(crate) fn point(name: &str, vault: &Path) -> Result<(), StoreError> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut hooks = HOOKS.lock().unwrap_or_else(|e| e.into_inner());
    let fails =
        hooks.iter_mut().filter(|(path, _)| path == vault).any(|(path, hook)| hook(name, path));
    if fails {
        return Err(StoreError::io(
            format!("fault injected at {name}"),
            std::io::Error::other("fault"),
        ));
    }
    Ok(())
}
