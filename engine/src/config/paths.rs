//! Where configuration and state are when nobody says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::ConfigError;

const SYSTEM_CONFIG: &str = "/etc/flocker-repl/config.toml";
const SYSTEM_STATE: &str = "/var/lib/flocker-repl";

fn env_dir(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value: &OsString| Path::new(value).is_absolute())
        .map(PathBuf::from)
}

fn user_config() -> Result<PathBuf, ConfigError> {
    env_dir("XDG_CONFIG_HOME")
        .or_else(|| env_dir("HOME").map(|home| home.join(".config")))
        .map(|dir| dir.join("flocker-repl/config.toml"))
        .ok_or(ConfigError::NoHome)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The configuration used without `--config`: `/etc/flocker-repl/config.toml` if it exists,
/// else `flocker-repl/config.toml` below `$XDG_CONFIG_HOME` or `~/.config`.
///
/// # Errors
/// [`ConfigError::NoHome`].
pub fn default_config_path() -> Result<PathBuf, ConfigError> {
    if Path::new(SYSTEM_CONFIG).exists() {
        return Ok(SYSTEM_CONFIG.into());
    }
    user_config()
}

/// The configuration that `init` writes without `--config`: the system's for root, else the user's.
///
/// # Errors
/// [`ConfigError::NoHome`].
pub fn default_config_path_for_init() -> Result<PathBuf, ConfigError> {
    if is_root() {
        return Ok(SYSTEM_CONFIG.into());
    }
    user_config()
}

/// The state directory that `init` uses without `--state`: `/var/lib/flocker-repl` for root, else
/// `flocker-repl` below `$XDG_STATE_HOME` or `~/.local/state`.
///
/// # Errors
/// [`ConfigError::NoHome`].
pub fn default_state_dir() -> Result<PathBuf, ConfigError> {
    if is_root() {
        return Ok(SYSTEM_STATE.into());
    }
    env_dir("XDG_STATE_HOME")
        .or_else(|| env_dir("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("flocker-repl"))
        .ok_or(ConfigError::NoHome)
}
