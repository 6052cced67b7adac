//! Who else may be writing below a path: processes that have a file there open for writing, or
//! mapped shared and writable.
//!
//! As far as this user may look (another user's processes are closed to anyone but root), and as
//! of the moment of looking: good enough to call a snapshot fuzzy, not to call a volume fenced.

use std::fs;
use std::path::Path;

use flocker_store::Holder;

use super::proc::{self, Stat};

/// The access bits of a descriptor's flags (`O_ACCMODE`), octal in `/proc/PID/fdinfo/N`.
const ACCESS_MODE: u32 = 0o3;

/// Processes that can write below one of these paths now, whoever they are.
pub(crate) fn writers(paths: &[&Path]) -> Vec<(Stat, Holder)> {
    let paths: Vec<std::path::PathBuf> = paths
        .iter()
        .map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()))
        .collect();
    let below = |target: &Path| paths.iter().any(|path| target.starts_with(path));
    let own = std::process::id();
    proc::all()
        .into_iter()
        .filter(|p| p.pid != own && !p.kernel)
        .filter_map(|p| {
            let what = open_for_writing(p.pid, &below).or_else(|| mapped(p.pid, &below))?;
            let holder = Holder { pid: p.pid, command: p.command.clone(), what };
            Some((p, holder))
        })
        .collect()
}

fn open_for_writing(pid: u32, below: &dyn Fn(&Path) -> bool) -> Option<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if !below(&target) {
            continue;
        }
        let number = entry.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        let Ok(info) = fs::read_to_string(info) else {
            continue;
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
        if flags.is_none_or(|flags| flags & ACCESS_MODE != 0) {
            return Some(format!("{} open for writing", target.display()));
        }
    }
    None
}

fn mapped(pid: u32, below: &dyn Fn(&Path) -> bool) -> Option<String> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let permissions = fields.nth(1)?;
        if !(permissions.contains('w') && permissions.ends_with('s')) {
            continue;
        }
        if let Some(at) = line.find('/')
            && below(Path::new(&line[at..]))
        {
            return Some(format!("{} mapped for writing", &line[at..]));
        }
    }
    None
}
