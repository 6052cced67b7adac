//! An nvlist that is ours: built here or given to us, freed when dropped.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::fmt;
use std::ptr::{self, NonNull};

use super::symbols::{Boolean, NvSymbols, RawList, RawPair, load_nvpair};
use crate::error::{Errno, OpenError};
use crate::nv::{MAX_DEPTH, NvError, Value};

/// `NV_UNIQUE_NAME`: a second value of a name replaces the first.
const NV_UNIQUE_NAME: c_uint = 1;

/// `data_type_t`.
mod data_type {
    use std::ffi::c_int;
    pub(super) const BOOLEAN: c_int = 1;
    pub(super) const BYTE: c_int = 2;
    pub(super) const INT16: c_int = 3;
    pub(super) const UINT16: c_int = 4;
    pub(super) const INT32: c_int = 5;
    pub(super) const UINT32: c_int = 6;
    pub(super) const INT64: c_int = 7;
    pub(super) const UINT64: c_int = 8;
    pub(super) const STRING: c_int = 9;
    pub(super) const UINT64_ARRAY: c_int = 16;
    pub(super) const STRING_ARRAY: c_int = 17;
    pub(super) const NVLIST: c_int = 19;
    pub(super) const BOOLEAN_VALUE: c_int = 21;
    pub(super) const INT8: c_int = 22;
    pub(super) const UINT8: c_int = 23;
}

/// What a call may do with a list: read it.
pub(crate) type NvPtr = *mut RawList;

/// An nvlist of names to values, each name once. Freed when it is dropped.
pub(crate) struct NvList {
    lib: &'static NvSymbols,
    raw: NonNull<RawList>,
}

// SAFETY: the list is plain heap memory that only this value points to; libnvpair has no thread-local state.
// It is not Sync: walking a list moves a cursor inside it.
unsafe impl Send for NvList {}

impl fmt::Debug for NvList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvList").finish_non_exhaustive()
    }
}

impl Drop for NvList {
    fn drop(&mut self) {
        // SAFETY: the list was allocated by libnvpair, is ours alone, and this is its only end.
        unsafe { (self.lib.nvlist_free)(self.raw.as_ptr()) };
    }
}

/// A C string, or the error that says whose it was to be.
fn c_string(name: &str, text: &str) -> Result<CString, NvError> {
    CString::new(text).map_err(|_| NvError::Nul { name: name.to_owned() })
}

/// The result of an `nvlist_add_*`.
fn added(name: &str, rc: c_int) -> Result<(), NvError> {
    if rc == 0 { Ok(()) } else { Err(NvError::Refused { name: name.to_owned(), errno: Errno(rc) }) }
}

impl NvList {
    /// An empty list.
    pub(crate) fn new() -> Result<Self, OpenError> {
        let lib = load_nvpair()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` takes the new list; no flag but unique names, no special allocator.
        let rc = unsafe { (lib.nvlist_alloc)(&raw mut raw, NV_UNIQUE_NAME, 0) };
        // It fails for want of memory only, like any allocation here.
        let raw = NonNull::new(raw).filter(|_| rc == 0).expect("nvlist_alloc allocates");
        Ok(Self { lib, raw })
    }

    /// Reads a list that the kernel has packed (`NV_ENCODE_NATIVE`; the first bytes say which way).
    pub(super) fn unpack(packed: &[u8]) -> Result<Self, NvError> {
        let lib = load_nvpair().map_err(|error| NvError::Library(error.to_string()))?;
        let mut raw = ptr::null_mut();
        let from = packed.as_ptr().cast_mut().cast();
        // SAFETY: it reads as many bytes as is said, writes none of them, and puts out a list of its own.
        let rc = unsafe { (lib.nvlist_unpack)(from, packed.len(), &raw mut raw, 0) };
        match NonNull::new(raw).filter(|_| rc == 0) {
            Some(raw) => Ok(Self { lib, raw }),
            None => Err(NvError::Refused { name: "what was packed".to_owned(), errno: Errno(rc) }),
        }
    }

    /// Takes over a list that a call has returned; null is none.
    ///
    /// # Safety
    /// `raw` is null or a list of libnvpair's that nobody else frees.
    pub(super) unsafe fn take(lib: &'static NvSymbols, raw: NvPtr) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { lib, raw })
    }

    /// For a call that reads it.
    pub(super) fn as_ptr(&self) -> NvPtr {
        self.raw.as_ptr()
    }

    /// Adds one value by its name, in the type that belongs to it (see [`Value`]).
    pub(crate) fn add(&mut self, name: &str, value: &Value) -> Result<(), NvError> {
        let (raw, key) = (self.raw.as_ptr(), c_string(name, name)?);
        let lib = self.lib;
        let rc = match value {
            // SAFETY: the list is ours, the name ends in NUL and is copied.
            Value::Flag => unsafe { (lib.nvlist_add_boolean)(raw, key.as_ptr()) },
            // SAFETY: as above.
            Value::Bool(yes) => unsafe {
                (lib.nvlist_add_boolean_value)(raw, key.as_ptr(), Boolean::from(*yes))
            },
            // SAFETY: as above.
            Value::Int(n) => unsafe { (lib.nvlist_add_int64)(raw, key.as_ptr(), *n) },
            // SAFETY: as above.
            Value::Uint(n) => unsafe { (lib.nvlist_add_uint64)(raw, key.as_ptr(), *n) },
            Value::Text(text) => {
                let text = c_string(name, text)?;
                // SAFETY: as above; the text ends in NUL and is copied.
                unsafe { (lib.nvlist_add_string)(raw, key.as_ptr(), text.as_ptr()) }
            }
            Value::Texts(texts) => return self.add_texts(name, &key, texts),
            Value::List(entries) => {
                let inner = Self::build(entries)?;
                // SAFETY: as above; the inner list is copied, and freed here.
                unsafe { (lib.nvlist_add_nvlist)(raw, key.as_ptr(), inner.as_ptr()) }
            }
            Value::Uints(_) | Value::Other(_) => {
                return Err(NvError::Unsupported { name: name.to_owned() });
            }
        };
        added(name, rc)
    }

    fn add_texts(&mut self, name: &str, key: &CStr, texts: &[String]) -> Result<(), NvError> {
        let texts: Vec<CString> =
            texts.iter().map(|text| c_string(name, text)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let count = c_uint::try_from(pointers.len())
            .map_err(|_| NvError::Unsupported { name: name.to_owned() })?;
        // SAFETY: the list is ours; `pointers` holds `count` strings that end in NUL and live until
        // after the call, which copies them.
        let rc = unsafe {
            (self.lib.nvlist_add_string_array)(
                self.raw.as_ptr(),
                key.as_ptr(),
                pointers.as_ptr(),
                count,
            )
        };
        added(name, rc)
    }

    /// A list of these entries.
    pub(crate) fn build(entries: &BTreeMap<String, Value>) -> Result<Self, NvError> {
        let mut list = Self::new().map_err(|error| NvError::Library(error.to_string()))?;
        for (name, value) in entries {
            list.add(name, value)?;
        }
        Ok(list)
    }

    /// Everything in it.
    pub(crate) fn read(&self) -> Result<BTreeMap<String, Value>, NvError> {
        read(self.lib, self.raw.as_ptr(), 0)
    }
}

/// Copies a list out. `raw` is a list that lives, and that no other thread uses.
fn read(
    lib: &'static NvSymbols,
    raw: NvPtr,
    depth: usize,
) -> Result<BTreeMap<String, Value>, NvError> {
    if depth > MAX_DEPTH {
        return Err(NvError::TooDeep);
    }
    let mut entries = BTreeMap::new();
    let mut pair: *mut RawPair = ptr::null_mut();
    loop {
        // SAFETY: the list lives; `pair` is null for the first, otherwise the one before, of this list.
        pair = unsafe { (lib.nvlist_next_nvpair)(raw, pair) };
        if pair.is_null() {
            return Ok(entries);
        }
        // SAFETY: the pair is one of this list.
        let name = unsafe { (lib.nvpair_name)(pair) };
        // SAFETY: a pair's name ends in NUL and lives as long as its list.
        let name = unsafe { text(name) };
        let value = value(lib, &name, pair, depth)?;
        entries.insert(name, value);
    }
}

/// A C string of a list, copied. What is not UTF-8 (no name in ZFS) is replaced.
///
/// # Safety
/// `raw` is null or points to a string that ends in NUL.
unsafe fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

macro_rules! number {
    ($lib:expr, $getter:ident, $pair:expr, $name:expr) => {{
        let mut number = Default::default();
        // SAFETY: the pair lives, and its type, which was asked for, is the getter's.
        let rc = unsafe { ($lib.$getter)($pair, &raw mut number) };
        added($name, rc)?;
        number
    }};
}

fn value(
    lib: &'static NvSymbols,
    name: &str,
    pair: *mut RawPair,
    depth: usize,
) -> Result<Value, NvError> {
    // SAFETY: the pair is one of a list that lives.
    let kind = unsafe { (lib.nvpair_type)(pair) };
    Ok(match kind {
        data_type::BOOLEAN => Value::Flag,
        data_type::BOOLEAN_VALUE => {
            Value::Bool(number!(lib, nvpair_value_boolean_value, pair, name) != 0)
        }
        data_type::BYTE => Value::Uint(number!(lib, nvpair_value_byte, pair, name).into()),
        data_type::INT8 => Value::Int(number!(lib, nvpair_value_int8, pair, name).into()),
        data_type::UINT8 => Value::Uint(number!(lib, nvpair_value_uint8, pair, name).into()),
        data_type::INT16 => Value::Int(number!(lib, nvpair_value_int16, pair, name).into()),
        data_type::UINT16 => Value::Uint(number!(lib, nvpair_value_uint16, pair, name).into()),
        data_type::INT32 => Value::Int(number!(lib, nvpair_value_int32, pair, name).into()),
        data_type::UINT32 => Value::Uint(number!(lib, nvpair_value_uint32, pair, name).into()),
        data_type::INT64 => Value::Int(number!(lib, nvpair_value_int64, pair, name)),
        data_type::UINT64 => Value::Uint(number!(lib, nvpair_value_uint64, pair, name)),
        data_type::STRING => {
            let mut raw = ptr::null();
            // SAFETY: the pair lives and is a string; `raw` is set to what lives as long as it.
            added(name, unsafe { (lib.nvpair_value_string)(pair, &raw mut raw) })?;
            // SAFETY: a string of a list ends in NUL.
            Value::Text(unsafe { text(raw) })
        }
        data_type::NVLIST => {
            let mut inner = ptr::null_mut();
            // SAFETY: the pair lives and is a list; `inner` is set to what lives as long as it.
            added(name, unsafe { (lib.nvpair_value_nvlist)(pair, &raw mut inner) })?;
            Value::List(read(lib, inner, depth + 1)?)
        }
        data_type::STRING_ARRAY => {
            let (mut first, mut count) = (ptr::null_mut(), 0);
            // SAFETY: the pair lives and is an array of strings.
            let rc =
                unsafe { (lib.nvpair_value_string_array)(pair, &raw mut first, &raw mut count) };
            added(name, rc)?;
            // SAFETY: `first` is null for none, otherwise the first of `count` pointers.
            let pointers = unsafe { array(first.cast_const(), count) };
            // SAFETY: each is a string that ends in NUL.
            Value::Texts(pointers.iter().map(|raw| unsafe { text(*raw) }).collect())
        }
        data_type::UINT64_ARRAY => {
            let (mut first, mut count) = (ptr::null_mut(), 0);
            // SAFETY: the pair lives and is an array of numbers.
            let rc =
                unsafe { (lib.nvpair_value_uint64_array)(pair, &raw mut first, &raw mut count) };
            added(name, rc)?;
            // SAFETY: `first` is null for none, otherwise the first of `count` numbers.
            Value::Uints(unsafe { array(first.cast_const(), count) }.to_vec())
        }
        other => Value::Other(other),
    })
}

/// A C array as a slice.
///
/// # Safety
/// `first` is null, or the first of `count` values that live for `'a` and are aligned.
unsafe fn array<'a, T>(first: *const T, count: c_uint) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(first, count as usize) }
}
