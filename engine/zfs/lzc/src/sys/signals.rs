//! No signals for the calling thread, for as long as a call into the kernel lasts.
//!
//! Why: `kernel_read` and `kernel_write` on a pipe end early when a signal is pending, and ZFS looks for one itself
//! (`issig`). A send or a receive then fails with `EINTR` although nothing is wrong: as tried on OpenZFS 2.3.9 with
//! a handler of tokio's, which has `SA_RESTART`, it does so at once (`signals_do_not_break_a_stream`).

use std::ffi::c_int;
use std::marker::PhantomData;

/// At least as large as any libc's `sigset_t` (128 bytes in glibc and musl).
#[repr(C, align(16))]
struct SigSet([u64; 32]);

#[cfg(not(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "powerpc64"
    )
)))]
compile_error!("the numbers below are those of Linux on x86_64, aarch64, riscv64 and powerpc64");

const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;
/// SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: faults of this very thread are never held back.
const FAULTS: [c_int; 6] = [4, 5, 6, 7, 8, 11];

unsafe extern "C" {
    fn sigfillset(set: *mut SigSet) -> c_int;
    fn sigdelset(set: *mut SigSet, signal: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
}

/// Holds back all signals of this thread until it is dropped.
pub(crate) struct NoSignals {
    before: SigSet,
    /// A mask belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

impl NoSignals {
    pub(crate) fn here() -> Self {
        let (mut all, mut before) = (SigSet([0; 32]), SigSet([0; 32]));
        // SAFETY: `all` is at least as large as a `sigset_t` and ours alone.
        unsafe { sigfillset(&raw mut all) };
        for signal in FAULTS {
            // SAFETY: as above, and it has been filled.
            unsafe { sigdelset(&raw mut all, signal) };
        }
        // SAFETY: both sets are large enough, initialised and ours. It fails for a wrong `how` only.
        unsafe { pthread_sigmask(SIG_BLOCK, &raw const all, &raw mut before) };
        Self { before, _not_send: PhantomData }
    }
}

impl Drop for NoSignals {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask wrote on this thread: the type is not Send.
        unsafe { pthread_sigmask(SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("SigBlk:")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    #[test]
    fn signals_are_held_back_and_given_back() {
        let before = blocked();
        {
            let _guard = NoSignals::here();
            let mask = u64::from_str_radix(&blocked(), 16).unwrap();
            for signal in [1, 2, 10, 13, 14, 15, 17] {
                assert_ne!(mask & (1 << (signal - 1)), 0, "signal {signal}: {mask:016x}");
            }
            for signal in FAULTS {
                assert_eq!(mask & (1 << (signal - 1)), 0, "signal {signal}: {mask:016x}");
            }
        }
        assert_eq!(blocked(), before);
    }
}
