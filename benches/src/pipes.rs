//! Pipes to and from other programs, as the product makes them for `zfs send` and `zfs receive`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Bytes of a pipe, where the system grants them: as in `flocker-zfs`.
const PIPE_BYTES: usize = 1 << 20;

/// Standard input as it is, without a buffer, widened where it is a pipe.
///
/// # Errors
/// There is none.
pub fn input() -> io::Result<File> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(widened(fd))
}

/// Standard output, likewise.
///
/// # Errors
/// There is none.
pub fn output() -> io::Result<File> {
    let fd = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(widened(fd))
}

fn widened(fd: OwnedFd) -> File {
    // What is no pipe, or may not be wider, is good as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
    File::from(fd)
}

/// `cat FILE`, and what it says.
///
/// # Errors
/// It cannot be started.
pub fn reading(file: &Path) -> io::Result<(Child, File)> {
    let mut child = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((child, widened(out.into())))
}

/// `cat >/dev/null`, and where it reads.
///
/// # Errors
/// It cannot be started.
pub fn discarding() -> io::Result<(Child, File)> {
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((child, widened(stdin.into())))
}
