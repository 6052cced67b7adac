//! The functions of both libraries, found when they are loaded.
//!
//! Signatures from OpenZFS's `include/libzfs_core.h` and `include/sys/nvpair.h`, the same in 2.1, 2.2, 2.3 and
//! 2.4: `boolean_t` and the enums are C `int`s, `uint_t` is `unsigned int`, all strings end in NUL.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use libloading::Library;

use crate::error::OpenError;

/// Soname of libnvpair in OpenZFS 2.0 to 2.4.
pub(crate) const LIBNVPAIR: &str = "libnvpair.so.3";
/// Soname of libzfs_core in OpenZFS 2.0 to 2.4.
pub(crate) const LIBZFS_CORE: &str = "libzfs_core.so.3";

/// An `nvlist_t`, never looked into.
pub(crate) type RawList = c_void;
/// An `nvpair_t`, never looked into.
pub(crate) type RawPair = c_void;
/// C's `boolean_t`.
pub(crate) type Boolean = c_uint;

/// Loads a library for the life of the process.
fn load(name: &'static str) -> Result<ManuallyDrop<Library>, OpenError> {
    // SAFETY: the library's constructors run. Those of libnvpair and libzfs_core (with libspl in them) read
    // the page size and set up a lock; nothing of ours depends on what they do.
    let library = unsafe { Library::new(name) };
    let library = library.map_err(|source| OpenError::Library { library: name, source })?;
    // Never unloaded: function pointers into it are copied about, and a library that goes away while a
    // destructor of its own is still to run is a crash for the sake of 300 kB.
    Ok(ManuallyDrop::new(library))
}

/// Finds one function. `F` is the type of the function pointer.
///
/// # Safety
/// `F` has to be the function's own type, as an `extern "C"` function pointer.
unsafe fn find<F: Copy>(library: &Library, symbol: &str) -> Result<F, libloading::Error> {
    // SAFETY: the caller's promise; the pointer stays valid because the library is never unloaded.
    unsafe { library.get::<F>(symbol) }.map(|found| *found)
}

macro_rules! nvpair_symbols {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// libnvpair, whole.
        #[derive(Debug)]
        pub(crate) struct NvSymbols {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl NvSymbols {
            fn load() -> Result<Self, OpenError> {
                let library = load(LIBNVPAIR)?;
                Ok(Self {
                    $($name: {
                        // SAFETY: the signature is that of sys/nvpair.h.
                        let found = unsafe { find(&library, stringify!($name)) };
                        found.map_err(|source| OpenError::Symbol {
                            library: LIBNVPAIR,
                            symbol: stringify!($name),
                            source,
                        })?
                    },)*
                })
            }
        }
    };
}

nvpair_symbols! {
    nvlist_alloc(*mut *mut RawList, c_uint, c_int) -> c_int;
    nvlist_free(*mut RawList);
    nvlist_add_boolean(*mut RawList, *const c_char) -> c_int;
    nvlist_add_boolean_value(*mut RawList, *const c_char, Boolean) -> c_int;
    nvlist_add_int64(*mut RawList, *const c_char, i64) -> c_int;
    nvlist_add_uint64(*mut RawList, *const c_char, u64) -> c_int;
    nvlist_add_string(*mut RawList, *const c_char, *const c_char) -> c_int;
    nvlist_add_string_array(*mut RawList, *const c_char, *const *const c_char, c_uint) -> c_int;
    nvlist_add_nvlist(*mut RawList, *const c_char, *const RawList) -> c_int;
    nvlist_unpack(*mut c_char, usize, *mut *mut RawList, c_int) -> c_int;
    nvlist_next_nvpair(*mut RawList, *const RawPair) -> *mut RawPair;
    nvpair_name(*const RawPair) -> *const c_char;
    nvpair_type(*const RawPair) -> c_int;
    nvpair_value_boolean_value(*const RawPair, *mut Boolean) -> c_int;
    nvpair_value_byte(*const RawPair, *mut u8) -> c_int;
    nvpair_value_int8(*const RawPair, *mut i8) -> c_int;
    nvpair_value_uint8(*const RawPair, *mut u8) -> c_int;
    nvpair_value_int16(*const RawPair, *mut i16) -> c_int;
    nvpair_value_uint16(*const RawPair, *mut u16) -> c_int;
    nvpair_value_int32(*const RawPair, *mut i32) -> c_int;
    nvpair_value_uint32(*const RawPair, *mut u32) -> c_int;
    nvpair_value_int64(*const RawPair, *mut i64) -> c_int;
    nvpair_value_uint64(*const RawPair, *mut u64) -> c_int;
    nvpair_value_string(*const RawPair, *mut *const c_char) -> c_int;
    nvpair_value_nvlist(*mut RawPair, *mut *mut RawList) -> c_int;
    nvpair_value_string_array(*mut RawPair, *mut *mut *const c_char, *mut c_uint) -> c_int;
    nvpair_value_uint64_array(*mut RawPair, *mut *mut u64, *mut c_uint) -> c_int;
}

macro_rules! core_symbols {
    ($($name:ident = $function:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// A function of libzfs_core that is looked for, and may be missing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is its C name")]
        pub enum Function {
            $($function,)*
        }

        impl Function {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$function,)*];

            /// Its name in C.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$function => stringify!($name),)*
                }
            }
        }

        /// libzfs_core: what this crate calls.
        #[derive(Debug)]
        pub(crate) struct CoreSymbols {
            pub(crate) libzfs_core_init: unsafe extern "C" fn() -> c_int,
            pub(crate) libzfs_core_fini: unsafe extern "C" fn(),
            $(pub(crate) $name: Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>,)*
        }

        impl CoreSymbols {
            fn load() -> Result<Self, OpenError> {
                let library = load(LIBZFS_CORE)?;
                let missing = |symbol| {
                    move |source| OpenError::Symbol { library: LIBZFS_CORE, symbol, source }
                };
                // SAFETY: the signature is that of libzfs_core.h.
                let init = unsafe { find(&library, "libzfs_core_init") };
                // SAFETY: the signature is that of libzfs_core.h.
                let fini = unsafe { find(&library, "libzfs_core_fini") };
                Ok(Self {
                    libzfs_core_init: init.map_err(missing("libzfs_core_init"))?,
                    libzfs_core_fini: fini.map_err(missing("libzfs_core_fini"))?,
                    $($name: {
                        // SAFETY: the signature is that of libzfs_core.h.
                        unsafe { find(&library, stringify!($name)) }.ok()
                    },)*
                })
            }

            pub(crate) fn has(&self, function: Function) -> bool {
                match function {
                    $(Function::$function => self.$name.is_some(),)*
                }
            }
        }
    };
}

core_symbols! {
    lzc_snapshot = Snapshot(*mut RawList, *mut RawList, *mut *mut RawList) -> c_int;
    lzc_destroy_snaps = DestroySnaps(*mut RawList, Boolean, *mut *mut RawList) -> c_int;
    lzc_bookmark = Bookmark(*mut RawList, *mut *mut RawList) -> c_int;
    lzc_get_bookmarks = GetBookmarks(*const c_char, *mut RawList, *mut *mut RawList) -> c_int;
    lzc_destroy_bookmarks = DestroyBookmarks(*mut RawList, *mut *mut RawList) -> c_int;
    lzc_hold = Hold(*mut RawList, c_int, *mut *mut RawList) -> c_int;
    lzc_release = Release(*mut RawList, *mut *mut RawList) -> c_int;
    lzc_get_holds = GetHolds(*const c_char, *mut *mut RawList) -> c_int;
    lzc_exists = Exists(*const c_char) -> Boolean;
    lzc_create = Create(*const c_char, c_int, *mut RawList, *mut u8, c_uint) -> c_int;
    lzc_clone = Clone(*const c_char, *const c_char, *mut RawList) -> c_int;
    lzc_promote = Promote(*const c_char, *mut c_char, c_int) -> c_int;
    lzc_rename = Rename(*const c_char, *const c_char) -> c_int;
    lzc_destroy = Destroy(*const c_char) -> c_int;
    lzc_rollback_to = RollbackTo(*const c_char, *const c_char) -> c_int;
    lzc_sync = Sync(*const c_char, *mut RawList, *mut *mut RawList) -> c_int;
    lzc_send = Send(*const c_char, *const c_char, c_int, c_int) -> c_int;
    lzc_send_resume = SendResume(*const c_char, *const c_char, c_int, c_int, u64, u64) -> c_int;
    lzc_send_space = SendSpace(*const c_char, *const c_char, c_int, *mut u64) -> c_int;
    lzc_send_space_resume_redacted = SendSpaceResumeRedacted(
        *const c_char, *const c_char, c_int, u64, u64, u64, *const c_char, c_int, *mut u64
    ) -> c_int;
    lzc_receive_with_cmdprops = ReceiveWithCmdprops(
        *const c_char, *mut RawList, *mut RawList, *mut u8, c_uint, *const c_char, Boolean, Boolean,
        Boolean, c_int, *const c_void, c_int, *mut u64, *mut u64, *mut u64, *mut *mut RawList
    ) -> c_int;
    lzc_channel_program = ChannelProgram(
        *const c_char, *const c_char, u64, u64, *mut RawList, *mut *mut RawList
    ) -> c_int;
}

/// Loads libnvpair once; a failure is tried again by the next call.
pub(crate) fn load_nvpair() -> Result<&'static NvSymbols, OpenError> {
    static LOADED: OnceLock<NvSymbols> = OnceLock::new();
    match LOADED.get() {
        Some(symbols) => Ok(symbols),
        None => NvSymbols::load().map(|symbols| LOADED.get_or_init(|| symbols)),
    }
}

/// Loads libzfs_core once; a failure is tried again by the next call.
pub(crate) fn load_core() -> Result<&'static CoreSymbols, OpenError> {
    static LOADED: OnceLock<CoreSymbols> = OnceLock::new();
    match LOADED.get() {
        Some(symbols) => Ok(symbols),
        None => CoreSymbols::load().map(|symbols| LOADED.get_or_init(|| symbols)),
    }
}
