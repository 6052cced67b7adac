//! `/dev/zfs` itself: the three calls that read, which `zfs list` and `zfs get` are made of and libzfs_core lacks.
//!
//! Their numbers and the layout of `zfs_cmd_t` are those of `include/sys/fs/zfs.h` and `include/sys/zfs_ioctl.h`, the
//! same in OpenZFS 2.1 to 2.4 on all 64-bit Linux: the library and the command have to work with a module of another
//! version, so they cannot change (2.4 asserts the size when it is built).

use std::ffi::{CStr, c_void};
use std::fs::{File, OpenOptions};
use std::io;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use super::nvlist::NvList;
use super::signals::NoSignals;
use crate::error::Errno;
use crate::nv::NvError;

/// What is asked.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Question {
    /// `ZFS_IOC_OBJSET_STATS`: one dataset or snapshot.
    Stats = 0x5a12,
    /// `ZFS_IOC_SNAPSHOT_LIST_NEXT`: a dataset's next snapshot, in no order; `ESRCH` behind the last.
    NextSnapshot = 0x5a15,
    /// `ZFS_IOC_SPACE_WRITTEN`: what was written between two moments.
    Written = 0x5a39,
}

/// Offsets in `zfs_cmd_t`.
mod at {
    pub(super) const NAME: usize = 0;
    pub(super) const ANSWER: usize = 4112;
    pub(super) const ANSWER_LEN: usize = 4120;
    pub(super) const ANSWER_FILLED: usize = 4128;
    pub(super) const VALUE: usize = 4144;
    pub(super) const COOKIE: usize = 12616;
    pub(super) const STATS: usize = 12704;
}

/// `sizeof (zfs_cmd_t)`, and as much again: what the module writes back is its own idea of the size.
const COMMAND_WORDS: usize = 2 * 13744 / 8;

/// Bytes of the names in it, with the NUL.
const NAME_BYTES: usize = 4096;

/// Bytes of an answer at first; the module says when it needs more.
const ANSWER_BYTES: usize = 16 << 10;

/// The largest answer: nobody has so many properties.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// A `zfs_cmd_t` with room for its answer.
#[derive(Debug)]
pub(crate) struct Command {
    words: Box<[u64; COMMAND_WORDS]>,
    answer: Vec<u64>,
}

/// `dmu_objset_stats_t`, without its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FastStats {
    pub(crate) clones: u64,
    pub(crate) createtxg: u64,
    pub(crate) guid: u64,
    /// `dmu_objset_type_t`.
    pub(crate) objset_type: u8,
    pub(crate) inconsistent: bool,
}

impl Command {
    pub(crate) fn new(name: &CStr) -> Self {
        let mut command =
            Self { words: Box::new([0; COMMAND_WORDS]), answer: vec![0; ANSWER_BYTES / 8] };
        command.set_name(name);
        command
    }

    fn bytes(&self) -> &[u8] {
        as_bytes(self.words.as_slice())
    }

    fn number(&self, at: usize) -> u64 {
        self.words[at / 8]
    }

    fn put(&mut self, at: usize, text: &CStr) {
        let bytes = text.to_bytes_with_nul();
        // Names were checked before: at most 255 bytes.
        let bytes = &bytes[..bytes.len().min(NAME_BYTES)];
        let field = &mut as_bytes_mut(self.words.as_mut_slice())[at..at + NAME_BYTES];
        field.fill(0);
        field[..bytes.len()].copy_from_slice(bytes);
        field[NAME_BYTES - 1] = 0;
    }

    /// `zc_name`.
    pub(crate) fn set_name(&mut self, name: &CStr) {
        self.put(at::NAME, name);
    }

    /// `zc_value`.
    pub(crate) fn set_value(&mut self, value: &CStr) {
        self.put(at::VALUE, value);
    }

    /// `zc_name`, which is the snapshot found.
    pub(crate) fn name(&self) -> String {
        let field = &self.bytes()[at::NAME..at::NAME + NAME_BYTES];
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    }

    /// `zc_cookie`: the place in a listing, or the bytes written.
    pub(crate) fn cookie(&self) -> u64 {
        self.number(at::COOKIE)
    }

    /// `zc_objset_stats`.
    pub(crate) fn stats(&self) -> FastStats {
        FastStats {
            clones: self.number(at::STATS),
            createtxg: self.number(at::STATS + 8),
            guid: self.number(at::STATS + 16),
            // An enum of four bytes, of which only the first is ever used.
            objset_type: self.bytes()[at::STATS + 24],
            inconsistent: self.bytes()[at::STATS + 29] != 0,
        }
    }

    /// The properties that came, as a list of lists.
    pub(crate) fn properties(&self) -> Result<Option<NvList>, NvError> {
        if self.words[at::ANSWER_FILLED / 8] & 0xffff_ffff == 0 {
            return Ok(None);
        }
        let len = usize::try_from(self.number(at::ANSWER_LEN)).unwrap_or(usize::MAX);
        let bytes = as_bytes(&self.answer);
        NvList::unpack(&bytes[..len.min(bytes.len())]).map(Some)
    }
}

/// Words as bytes; any bytes are words, and words are aligned for bytes.
fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: the memory is that of the words, all of it initialised; a byte has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

fn as_bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: as above, borrowed for writing; whatever is written is a word.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// `/dev/zfs`, open.
#[derive(Debug)]
pub(crate) struct Device(File);

/// One call.
struct Call<'a> {
    question: Question,
    command: &'a mut Command,
}

// SAFETY: the numbers are those of requests that take a `zfs_cmd_t` and write it back. It is longer than any version's,
// and the address and length in it are those of `answer`, which lives as long as it.
unsafe impl Ioctl for Call<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.question as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.command.words.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

impl Device {
    pub(crate) fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open("/dev/zfs").map(Self)
    }

    /// Asks once; with more room where the answer needs it. On failure everything but the place in a listing is as the
    /// module has left it.
    pub(crate) fn ask(&self, question: Question, command: &mut Command) -> Result<(), Errno> {
        let _quiet = NoSignals::here();
        let before = command.cookie();
        loop {
            command.words[at::ANSWER / 8] = command.answer.as_mut_ptr().expose_provenance() as u64;
            command.words[at::ANSWER_LEN / 8] = size_of_val(command.answer.as_slice()) as u64;
            command.words[at::ANSWER_FILLED / 8] = 0;
            let call = Call { question, command: &mut *command };
            // SAFETY: as said where `Ioctl` is implemented.
            let outcome = unsafe { ioctl(&self.0, call) };
            let Err(error) = outcome else { return Ok(()) };
            let errno = Errno(error.raw_os_error());
            let wanted = usize::try_from(command.number(at::ANSWER_LEN)).unwrap_or(usize::MAX);
            let more = wanted > size_of_val(command.answer.as_slice());
            if errno != Errno::ENOMEM || !more || wanted > ANSWER_MAX_BYTES {
                command.words[at::COOKIE / 8] = before;
                return Err(errno);
            }
            // What is there may grow meanwhile.
            command.answer.resize(wanted.div_ceil(8) * 2, 0);
            command.words[at::COOKIE / 8] = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_module_looks_for_them() {
        let mut command = Command::new(c"tank/a");
        command.set_value(c"tank/a@1");
        let bytes = command.bytes();
        assert_eq!(&bytes[..8], b"tank/a\0\0");
        assert_eq!(&bytes[4144..4153], b"tank/a@1\0");
        assert!(bytes.len() > 13744);
        assert_eq!(command.name(), "tank/a");
        command.set_name(c"x");
        assert_eq!(command.name(), "x", "nothing is left of a longer one");
    }

    #[test]
    fn what_the_module_writes_is_read() {
        let mut command = Command::new(c"tank/a@1");
        for (at, value) in [(12616, 7), (12704, 2), (12712, 99), (12720, u64::MAX)] {
            command.words[at / 8] = value;
        }
        // dds_type, dds_is_snapshot, dds_inconsistent.
        command.words[12728 / 8] = u64::from_le_bytes([2, 0, 0, 0, 1, 1, 0, 0]);
        let stats = FastStats {
            clones: 2,
            createtxg: 99,
            guid: u64::MAX,
            objset_type: 2,
            inconsistent: true,
        };
        assert_eq!((command.cookie(), command.stats()), (7, stats));
        assert!(matches!(command.properties(), Ok(None)));
    }
}
