//! The calls: each takes checked strings, lists and borrowed descriptors, and returns the error number and what
//! the library has put where it puts results.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::device::Device;
use super::nvlist::{NvList, NvPtr};
use super::signals::NoSignals;
use super::symbols::{CoreSymbols, Function, NvSymbols, load_core, load_nvpair};
use crate::error::{Errno, LzcError, OpenError};
use crate::receive::BEGIN_LEN;

/// `ZFS_MAX_DATASET_NAME_LEN`, with the NUL.
const NAME_BUFFER: usize = 256;
/// Both for "no descriptor".
const NO_FD: c_int = -1;
/// `B_FALSE` and `B_TRUE`.
const FALSE: u32 = 0;
const TRUE: u32 = 1;

/// What a call has answered.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// 0, or an error number.
    pub(crate) rc: c_int,
    /// What else it has put out, which may be there in both cases.
    pub(crate) out: T,
}

impl<T> Outcome<T> {
    /// Why it failed, if it did.
    pub(crate) fn error(&self) -> Option<Errno> {
        (self.rc != 0).then_some(Errno(self.rc))
    }
}

type Listed = Result<Outcome<Option<NvList>>, LzcError>;
type Plain = Result<Outcome<()>, LzcError>;

/// Both libraries with `/dev/zfs` open; closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    core: &'static CoreSymbols,
    nv: &'static NvSymbols,
    device: Device,
}

/// Where a send comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) snapshot: &'a CStr,
    pub(crate) from: Option<&'a CStr>,
    pub(crate) flags: c_int,
}

/// What a receive takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming<'a> {
    pub(crate) snapshot: &'a CStr,
    pub(crate) origin: Option<&'a CStr>,
    pub(crate) received: Option<&'a NvList>,
    pub(crate) local: Option<&'a NvList>,
    pub(crate) resumable: bool,
    pub(crate) input: BorrowedFd<'a>,
    pub(crate) begin: &'a [u8; BEGIN_LEN],
}

/// What a receive puts out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) read_bytes: u64,
    pub(crate) error_flags: u64,
    pub(crate) errors: Option<NvList>,
}

/// `BEGIN` as the library reads it: with the alignment of `dmu_replay_record_t`.
#[repr(C, align(8))]
struct Begin([u8; BEGIN_LEN]);

fn or_null(list: Option<&NvList>) -> NvPtr {
    list.map_or(ptr::null_mut(), NvList::as_ptr)
}

fn text_or_null(text: Option<&CStr>) -> *const c_char {
    text.map_or(ptr::null(), CStr::as_ptr)
}

/// The function pointer, or the error that says it is missing.
macro_rules! function {
    ($session:expr, $field:ident) => {
        $session.core.$field.ok_or(LzcError::NotAvailable { function: stringify!($field) })?
    };
}

impl Session {
    pub(crate) fn open() -> Result<Self, OpenError> {
        let (nv, core) = (load_nvpair()?, load_core()?);
        // SAFETY: no arguments; it opens /dev/zfs once and counts, under a lock of its own.
        let rc = unsafe { (core.libzfs_core_init)() };
        let errno = match Errno(rc) {
            Errno(0) => match Device::open() {
                Ok(device) => return Ok(Self { core, nv, device }),
                Err(error) => {
                    // SAFETY: once for the init that has just succeeded.
                    unsafe { (core.libzfs_core_fini)() };
                    Errno(error.raw_os_error().unwrap_or_default())
                }
            },
            errno => errno,
        };
        match errno {
            errno @ (Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => {
                Err(OpenError::NoDevice(errno))
            }
            errno @ (Errno::EACCES | Errno::EPERM) => Err(OpenError::Permission(errno)),
            errno => Err(OpenError::Device(errno)),
        }
    }

    /// `/dev/zfs`, for what is only read.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn has(&self, function: Function) -> bool {
        self.core.has(function)
    }

    /// A call that may put out a list. `call` has to set what it is given to null or to a list that is the
    /// caller's, or leave it; all in libzfs_core do.
    fn listed(&self, call: impl FnOnce(*mut NvPtr) -> c_int) -> Outcome<Option<NvList>> {
        let mut raw: NvPtr = ptr::null_mut();
        let rc = {
            let _quiet = NoSignals::here();
            call(&raw mut raw)
        };
        // SAFETY: it was null before, and what libzfs_core puts out is the caller's to free.
        Outcome { rc, out: unsafe { NvList::take(self.nv, raw) } }
    }

    fn plain(call: impl FnOnce() -> c_int) -> Outcome<()> {
        let _quiet = NoSignals::here();
        Outcome { rc: call(), out: () }
    }

    pub(crate) fn snapshot(&self, names: &NvList, properties: Option<&NvList>) -> Listed {
        let call = function!(self, lzc_snapshot);
        // SAFETY: both lists live during the call, which reads them.
        Ok(self.listed(|out| unsafe { call(names.as_ptr(), or_null(properties), out) }))
    }

    pub(crate) fn destroy_snaps(&self, names: &NvList, defer: bool) -> Listed {
        let call = function!(self, lzc_destroy_snaps);
        // SAFETY: the list lives during the call, which reads it.
        Ok(self.listed(|out| unsafe { call(names.as_ptr(), u32::from(defer), out) }))
    }

    pub(crate) fn bookmark(&self, bookmarks: &NvList) -> Listed {
        let call = function!(self, lzc_bookmark);
        // SAFETY: the list lives during the call, which reads it.
        Ok(self.listed(|out| unsafe { call(bookmarks.as_ptr(), out) }))
    }

    pub(crate) fn get_bookmarks(&self, dataset: &CStr, properties: &NvList) -> Listed {
        let call = function!(self, lzc_get_bookmarks);
        // SAFETY: name and list live during the call, which reads them.
        Ok(self.listed(|out| unsafe { call(dataset.as_ptr(), properties.as_ptr(), out) }))
    }

    pub(crate) fn destroy_bookmarks(&self, names: &NvList) -> Listed {
        let call = function!(self, lzc_destroy_bookmarks);
        // SAFETY: the list lives during the call, which reads it.
        Ok(self.listed(|out| unsafe { call(names.as_ptr(), out) }))
    }

    pub(crate) fn hold(&self, holds: &NvList) -> Listed {
        let call = function!(self, lzc_hold);
        // SAFETY: the list lives during the call, which reads it; no clean-up descriptor.
        Ok(self.listed(|out| unsafe { call(holds.as_ptr(), NO_FD, out) }))
    }

    pub(crate) fn release(&self, holds: &NvList) -> Listed {
        let call = function!(self, lzc_release);
        // SAFETY: the list lives during the call, which reads it.
        Ok(self.listed(|out| unsafe { call(holds.as_ptr(), out) }))
    }

    pub(crate) fn get_holds(&self, snapshot: &CStr) -> Listed {
        let call = function!(self, lzc_get_holds);
        // SAFETY: the name lives during the call.
        Ok(self.listed(|out| unsafe { call(snapshot.as_ptr(), out) }))
    }

    pub(crate) fn exists(&self, name: &CStr) -> Result<bool, LzcError> {
        let call = function!(self, lzc_exists);
        let _quiet = NoSignals::here();
        // SAFETY: the name lives during the call.
        Ok(unsafe { call(name.as_ptr()) } != 0)
    }

    pub(crate) fn create(&self, name: &CStr, kind: c_int, properties: &NvList) -> Plain {
        let call = function!(self, lzc_create);
        // SAFETY: name and list live during the call, which reads them; no wrapping key.
        Ok(Self::plain(|| unsafe {
            call(name.as_ptr(), kind, properties.as_ptr(), ptr::null_mut(), 0)
        }))
    }

    pub(crate) fn clone_dataset(&self, name: &CStr, origin: &CStr, properties: &NvList) -> Plain {
        let call = function!(self, lzc_clone);
        // SAFETY: names and list live during the call, which reads them.
        Ok(Self::plain(|| unsafe { call(name.as_ptr(), origin.as_ptr(), properties.as_ptr()) }))
    }

    /// The name of a snapshot in conflict, where that is why it failed.
    pub(crate) fn promote(&self, name: &CStr) -> Result<Outcome<Option<String>>, LzcError> {
        let call = function!(self, lzc_promote);
        let mut buffer = [0_u8; NAME_BUFFER];
        let outcome = {
            let pointer = buffer.as_mut_ptr().cast::<c_char>();
            // SAFETY: the name lives during the call; the buffer is as long as is said, and is filled with a
            // string and its NUL, or left alone.
            Self::plain(|| unsafe { call(name.as_ptr(), pointer, NAME_BUFFER as c_int) })
        };
        let found = CStr::from_bytes_until_nul(&buffer).ok();
        let found = found.map(|name| name.to_string_lossy().into_owned());
        Ok(Outcome { rc: outcome.rc, out: found.filter(|name| !name.is_empty()) })
    }

    pub(crate) fn rename(&self, from: &CStr, to: &CStr) -> Plain {
        let call = function!(self, lzc_rename);
        // SAFETY: both names live during the call.
        Ok(Self::plain(|| unsafe { call(from.as_ptr(), to.as_ptr()) }))
    }

    pub(crate) fn destroy(&self, name: &CStr) -> Plain {
        let call = function!(self, lzc_destroy);
        // SAFETY: the name lives during the call.
        Ok(Self::plain(|| unsafe { call(name.as_ptr()) }))
    }

    pub(crate) fn rollback_to(&self, dataset: &CStr, snapshot: &CStr) -> Plain {
        let call = function!(self, lzc_rollback_to);
        // SAFETY: both names live during the call.
        Ok(Self::plain(|| unsafe { call(dataset.as_ptr(), snapshot.as_ptr()) }))
    }

    pub(crate) fn sync(&self, pool: &CStr, arguments: &NvList) -> Listed {
        let call = function!(self, lzc_sync);
        // SAFETY: name and list live during the call, which reads them.
        Ok(self.listed(|out| unsafe { call(pool.as_ptr(), arguments.as_ptr(), out) }))
    }

    pub(crate) fn send(&self, stream: Stream<'_>, to: BorrowedFd<'_>) -> Plain {
        let call = function!(self, lzc_send);
        let (snapshot, from) = (stream.snapshot.as_ptr(), text_or_null(stream.from));
        // SAFETY: the names live during the call, and the descriptor is open during it.
        Ok(Self::plain(|| unsafe { call(snapshot, from, to.as_raw_fd(), stream.flags) }))
    }

    pub(crate) fn send_resume(
        &self,
        stream: Stream<'_>,
        to: BorrowedFd<'_>,
        (object, offset): (u64, u64),
    ) -> Plain {
        let call = function!(self, lzc_send_resume);
        let (snapshot, from) = (stream.snapshot.as_ptr(), text_or_null(stream.from));
        // SAFETY: the names live during the call, and the descriptor is open during it.
        Ok(Self::plain(|| unsafe {
            call(snapshot, from, to.as_raw_fd(), stream.flags, object, offset)
        }))
    }

    pub(crate) fn send_space(&self, stream: Stream<'_>) -> Result<Outcome<u64>, LzcError> {
        let call = function!(self, lzc_send_space);
        let (snapshot, from) = (stream.snapshot.as_ptr(), text_or_null(stream.from));
        let mut bytes = 0;
        let out = &raw mut bytes;
        // SAFETY: the names live during the call; the number is ours and is set on success.
        let outcome = Self::plain(|| unsafe { call(snapshot, from, stream.flags, out) });
        Ok(Outcome { rc: outcome.rc, out: bytes })
    }

    pub(crate) fn send_space_resume(
        &self,
        stream: Stream<'_>,
        (object, offset, arrived): (u64, u64, u64),
    ) -> Result<Outcome<u64>, LzcError> {
        let call = function!(self, lzc_send_space_resume_redacted);
        let (snapshot, from) = (stream.snapshot.as_ptr(), text_or_null(stream.from));
        let (mut bytes, flags) = (0, stream.flags);
        let out = &raw mut bytes;
        // SAFETY: the names live during the call; no redaction bookmark, no descriptor; the number is ours and
        // is set on success.
        let outcome = Self::plain(|| unsafe {
            call(snapshot, from, flags, object, offset, arrived, ptr::null(), NO_FD, out)
        });
        Ok(Outcome { rc: outcome.rc, out: bytes })
    }

    pub(crate) fn receive(&self, incoming: Incoming<'_>) -> Result<Outcome<Taken>, LzcError> {
        let call = function!(self, lzc_receive_with_cmdprops);
        let begin = Begin(*incoming.begin);
        let (mut read_bytes, mut error_flags, mut handle) = (0, 0, 0);
        let (read, flags) = (&raw mut read_bytes, &raw mut error_flags);
        let outcome = self.listed(|errors| {
            // SAFETY: names, lists and record live during the call, which reads them; the descriptor is open
            // during it; the numbers are ours. Arguments in the header's order: no wrapping key; never force;
            // "raw", which the library uses for nothing but to choose the newer ioctl (`recv_impl`): the older
            // one ends the process when its answer cannot be unpacked; no clean-up descriptor.
            unsafe {
                call(
                    incoming.snapshot.as_ptr(),
                    or_null(incoming.received),
                    or_null(incoming.local),
                    ptr::null_mut(),
                    0,
                    text_or_null(incoming.origin),
                    FALSE,
                    u32::from(incoming.resumable),
                    TRUE,
                    incoming.input.as_raw_fd(),
                    (&raw const begin).cast(),
                    NO_FD,
                    read,
                    flags,
                    &raw mut handle,
                    errors,
                )
            }
        });
        let taken = Taken { read_bytes, error_flags, errors: outcome.out };
        Ok(Outcome { rc: outcome.rc, out: taken })
    }

    /// Runs a channel program in a transaction group of its own.
    pub(crate) fn program(
        &self,
        pool: &CStr,
        program: &CString,
        (instructions, memory): (u64, u64),
        arguments: &NvList,
    ) -> Listed {
        let call = function!(self, lzc_channel_program);
        let (pool, program) = (pool.as_ptr(), program.as_ptr());
        // SAFETY: name, program and list live during the call, which reads them.
        Ok(self.listed(|out| unsafe {
            call(pool, program, instructions, memory, arguments.as_ptr(), out)
        }))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: once for the init of this session. Calls borrow the session, so none is under way.
        unsafe { (self.core.libzfs_core_fini)() };
    }
}
