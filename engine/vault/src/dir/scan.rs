//! A live tree, seen as an object set.
//!
//! Owns: walking the tree, giving each inode its object (the one it had before, whatever its name is now),
//! and reading only what may have changed. Leaves content to [`super::content`] and what was seen before to
//! [`super::seen`].
//!
//! What is not read again next time has to be clean when it is read: then a later write through a memory map
//! has to touch the file's times again. So a changed file is synced before it is read, or, when there are
//! many, the whole file system once; a file so fresh that it is read again anyway is not. (tmpfs does not
//! touch times for memory maps: a workload that writes through them on tmpfs is not seen.)

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flocker_store::StoreError;
use rustix::fs::OFlags;

use super::ROOT_OBJECT;
use super::content;
use super::inode::{FileKind, Inode, Link};
use super::seen::{Seen, SeenBatch, SeenTable, Stamp, links_sum};
use crate::blocks::{ReadBlocks, Session};
use crate::db::Db;
use crate::hash::Hash;
use crate::meta::DatasetId;
use crate::object::Data;
use crate::objset::{Objset, SetRoot};
use crate::tree::{self, Tree};

type Result<T> = std::result::Result<T, StoreError>;

/// Changed files that are synced one by one before the whole file system is synced at once.
const SYNCED_ALONE: usize = 16;

/// What a scan found.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// The tree as an object set.
    pub(crate) root: SetRoot,
    /// What was seen, to be written once the set is kept.
    pub(crate) seen: SeenBatch,
}

/// Which objects were met.
#[derive(Debug, Default)]
struct Bitmap(HashMap<u64, u64>);

impl Bitmap {
    /// Adds a number, and says whether it is new.
    fn insert(&mut self, number: u64) -> bool {
        let bits = self.0.entry(number / 64).or_insert(0);
        let bit = 1 << (number % 64);
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }

    fn contains(&self, number: u64) -> bool {
        let bits = self.0.get(&(number / 64)).copied().unwrap_or(0);
        bits >> (number % 64) & 1 == 1
    }
}

/// An inode with several names, gathered until the walk is over.
struct Linked {
    object: u64,
    seen: Option<Seen>,
    path: PathBuf,
    meta: std::fs::Metadata,
    links: Vec<Link>,
}

struct Scanner<'s> {
    db: &'s Db,
    id: DatasetId,
    session: &'s Session,
    previous: Tree<Hash>,
    set: Objset,
    table: SeenTable<'s>,
    batch: SeenBatch,
    met: Bitmap,
    linked: BTreeMap<u64, Linked>,
    next_object: u64,
    device: u64,
    /// Files synced one by one so far, and when the whole file system was.
    synced_files: usize,
    synced_at: Option<SystemTime>,
    /// Without root, files cannot be given away, so what a peer said of owners is kept.
    is_root: bool,
}

/// Reads the tree at `path` into an object set that starts from `previous`.
///
/// # Errors
/// The tree cannot be read, the blocks cannot be stored.
pub(crate) fn scan(
    db: &Db,
    session: &Session,
    id: DatasetId,
    previous: SetRoot,
    path: &Path,
) -> Result<Scanned> {
    let meta = stat(path)?.ok_or_else(|| gone(path))?;
    let last = tree::last_key::<Hash>(session, previous.objects)?;
    let mut scanner = Scanner {
        db,
        id,
        session,
        previous: Tree::open(previous.objects),
        set: Objset::open(previous),
        table: SeenTable::open(db, id)?,
        batch: SeenBatch::default(),
        met: Bitmap::default(),
        linked: BTreeMap::new(),
        next_object: last.unwrap_or(ROOT_OBJECT).max(ROOT_OBJECT) + 1,
        device: meta.dev(),
        synced_files: 0,
        synced_at: None,
        is_root: rustix::process::geteuid().is_root(),
    };
    scanner.met.insert(ROOT_OBJECT);
    let seen = scanner.table.get(meta.ino())?;
    let seen = seen.filter(|s| s.object == ROOT_OBJECT);
    scanner.inode(ROOT_OBJECT, seen, Vec::new(), path, meta)?;
    scanner.walk(path)?;
    for linked in std::mem::take(&mut scanner.linked).into_values() {
        let mut links = linked.links;
        links.sort();
        scanner.inode(linked.object, linked.seen, links, &linked.path, linked.meta)?;
    }
    scanner.forget_gone(previous)?;
    Ok(Scanned { root: scanner.set.finish(session)?, seen: scanner.batch })
}

fn gone(path: &Path) -> StoreError {
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    StoreError::io(format!("reading {}", path.display()), missing)
}

/// The metadata of a path itself; `None` when it vanished, as it may under a running workload.
fn stat(path: &Path) -> Result<Option<std::fs::Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io(format!("reading {}", path.display()), e)),
    }
}

/// What a scan keeps of an inode of this type; `None` for what only lives while somebody has it open.
pub(crate) fn kind_of(meta: &std::fs::Metadata) -> Option<FileKind> {
    use rustix::fs::FileType;
    match FileType::from_raw_mode(meta.mode()) {
        FileType::Directory => Some(FileKind::Directory),
        FileType::RegularFile => Some(FileKind::File),
        FileType::Symlink => Some(FileKind::Symlink),
        FileType::Fifo => Some(FileKind::Fifo),
        _ => None,
    }
}

/// What `stat` said, as it is remembered.
pub(crate) fn stamp_of(meta: &std::fs::Metadata) -> Stamp {
    let nanos = |ns: i64| u32::try_from(ns).unwrap_or(0);
    Stamp {
        mode: meta.mode(),
        nlink: meta.nlink(),
        size: meta.size(),
        mtime: (meta.mtime(), nanos(meta.mtime_nsec())),
        ctime: (meta.ctime(), nanos(meta.ctime_nsec())),
    }
}

impl Scanner<'_> {
    fn walk(&mut self, root: &Path) -> Result<()> {
        let mut todo = vec![(ROOT_OBJECT, root.to_owned())];
        while let Some((parent, path)) = todo.pop() {
            let context = |e| StoreError::io(format!("reading {}", path.display()), e);
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(context(e)),
            };
            for entry in entries {
                let name = entry.map_err(context)?.file_name();
                self.entry(parent, &path, name, &mut todo)?;
            }
            self.batch.relieve(self.db, self.id)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: u64,
        dir: &Path,
        name: OsString,
        todo: &mut Vec<(u64, PathBuf)>,
    ) -> Result<()> {
        let path = dir.join(&name);
        let Some(meta) = stat(&path)? else {
            return Ok(());
        };
        let Some(kind) = kind_of(&meta) else {
            tracing::warn!(path = %path.display(), "left out: neither file, directory, symlink nor fifo");
            return Ok(());
        };
        if meta.dev() != self.device {
            tracing::warn!(path = %path.display(), "left out: another file system is mounted there");
            return Ok(());
        }
        let link = Link { parent, name: name.into_vec() };
        if let Some(linked) = self.linked.get_mut(&meta.ino()) {
            linked.links.push(link);
            return Ok(());
        }
        let (object, seen) = self.object_for(meta.ino())?;
        if kind == FileKind::Directory {
            todo.push((object, path.clone()));
        } else if meta.nlink() > 1 {
            let linked = Linked { object, seen, path, links: vec![link], meta };
            self.linked.insert(linked.meta.ino(), linked);
            return Ok(());
        }
        self.inode(object, seen, vec![link], &path, meta)
    }

    /// The object of an inode: the one it was before, unless another inode has that now.
    fn object_for(&mut self, inode: u64) -> Result<(u64, Option<Seen>)> {
        if let Some(seen) = self.table.get(inode)?
            && seen.object != ROOT_OBJECT
            && self.met.insert(seen.object)
        {
            self.next_object = self.next_object.max(seen.object + 1);
            return Ok((seen.object, Some(seen)));
        }
        while !self.met.insert(self.next_object) {
            self.next_object += 1;
        }
        let object = self.next_object;
        self.next_object += 1;
        Ok((object, None))
    }

    /// Puts one inode into the set, reading it if it may have changed.
    fn inode(
        &mut self,
        object: u64,
        seen: Option<Seen>,
        links: Vec<Link>,
        path: &Path,
        meta: std::fs::Metadata,
    ) -> Result<()> {
        let sum = links_sum(&links);
        let before = self.previous.get(self.session, object)?;
        let known = seen.is_some_and(|seen| {
            seen.trusted
                && seen.stamp == stamp_of(&meta)
                && seen.links == sum
                && Some(seen.hash) == before
        });
        if known {
            return Ok(());
        }
        let mut read_at = SystemTime::now();
        let (mut meta, mut file, mut clean) = (meta, None, true);
        if kind_of(&meta) == Some(FileKind::File) {
            let Some(opened) = open(path)? else {
                return Ok(()); // vanished: as if the scan had come a moment later
            };
            clean = self.is_clean(&opened, &stamp_of(&meta));
            read_at = SystemTime::now();
            meta = opened
                .metadata()
                .map_err(|e| StoreError::io(format!("reading {}", path.display()), e))?;
            file = Some(opened);
        }
        let (inode_number, stamp) = (meta.ino(), stamp_of(&meta));
        let inode = self.attributes(before.as_ref(), links, path, &meta)?;
        let hash = self.store(object, before.as_ref(), &inode, file.as_ref(), path)?;
        self.batch.set(
            inode_number,
            Seen { object, stamp, hash, links: sum, trusted: clean && stamp.is_settled(read_at) },
        );
        Ok(())
    }

    /// Makes sure that a file has no page that was written and not synced; `false` where that is not worth
    /// it, since the file will be read again.
    fn is_clean(&mut self, file: &File, stamp: &Stamp) -> bool {
        let now = SystemTime::now();
        if !stamp.is_settled(now) {
            return false;
        }
        if self.synced_at.is_some_and(|at| stamp.is_settled(at)) {
            return true;
        }
        self.synced_files += 1;
        if self.synced_files <= SYNCED_ALONE {
            return rustix::fs::fdatasync(file).is_ok();
        }
        let synced = rustix::fs::syncfs(file).is_ok();
        self.synced_at = synced.then_some(now);
        synced
    }

    fn attributes(
        &self,
        before: Option<&Hash>,
        links: Vec<Link>,
        path: &Path,
        meta: &std::fs::Metadata,
    ) -> Result<Inode> {
        let kind = kind_of(meta).unwrap_or(FileKind::File);
        let (mut uid, mut gid) = (meta.uid(), meta.gid());
        if !self.is_root
            && let Some(before) = before
        {
            let (_, before) = Inode::load(self.session, before)?;
            (uid, gid) = (before.uid, before.gid);
        }
        let target = match kind {
            FileKind::Symlink => std::fs::read_link(path)
                .map(|t| t.into_os_string().into_vec())
                .map_err(|e| StoreError::io(format!("reading {}", path.display()), e))?,
            FileKind::Directory | FileKind::File | FileKind::Fifo => Vec::new(),
        };
        let xattrs = match kind {
            FileKind::Directory | FileKind::File => xattrs(path)?,
            FileKind::Symlink | FileKind::Fifo => Vec::new(),
        };
        Ok(Inode {
            kind,
            mode: match kind {
                FileKind::Symlink => 0o777,
                _ => meta.mode() & 0o7777,
            },
            uid,
            gid,
            mtime_s: meta.mtime(),
            mtime_ns: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
            size: match kind {
                FileKind::File => meta.size(),
                _ => 0,
            },
            links,
            target,
            xattrs,
        })
    }

    fn store(
        &mut self,
        number: u64,
        before: Option<&Hash>,
        inode: &Inode,
        file: Option<&File>,
        path: &Path,
    ) -> Result<Hash> {
        let mut object = inode.to_object(self.session)?;
        if let (Some(before), Some(_)) = (before, file) {
            let before = crate::object::Object::load(self.session, before)?;
            if before.block_size == object.block_size {
                let spill = |o: &crate::object::Object| {
                    o.spill.map_or(0, |s| u64::from(s.block.payload_len))
                };
                object.payload_bytes += before.payload_bytes - spill(&before);
                object.data = before.data;
            }
        }
        if file.is_none() {
            object.data = Data::default();
        }
        let end = object.end;
        let open = self.set.put(self.session, number, object)?;
        if let Some(file) = file {
            content::read(self.session, open, file, path, inode.size)?;
            open.change().end = end;
        }
        let hash = self.set.hash(self.session, number)?;
        hash.ok_or_else(|| self.db.damaged("an object is gone right after it was stored"))
    }

    /// Takes objects out of the set whose inodes are gone.
    fn forget_gone(&mut self, previous: SetRoot) -> Result<()> {
        let mut gone = Vec::new();
        tree::walk::<Hash>(self.session, previous.objects, &mut |number, _| {
            if !self.met.contains(number) {
                gone.push(number);
            }
            Ok(())
        })?;
        for number in gone {
            self.set.free_objects(self.session, number, number)?;
            self.batch.remove(number);
            self.batch.relieve(self.db, self.id)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => Ok(None),
        Err(e) => Err(StoreError::io(format!("opening {}", path.display()), e.into())),
    }
}

/// The extended attributes in the user's name space; those of the system are the system's.
pub(crate) fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use rustix::io::Errno;
    let context = |e: Errno| StoreError::io(format!("attributes of {}", path.display()), e.into());
    // Most files have none: a small room first, then XATTR_LIST_MAX.
    let mut names = vec![0; 256];
    let mut listed = rustix::fs::llistxattr(path, &mut names[..]);
    if listed == Err(Errno::RANGE) {
        names.resize(64 << 10, 0);
        listed = rustix::fs::llistxattr(path, &mut names[..]);
    }
    let len = match listed {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(context(e)),
    };
    names.truncate(len);
    let names: BTreeSet<&[u8]> =
        names.split(|b| *b == 0).filter(|name| name.starts_with(b"user.")).collect();
    let mut found = Vec::new();
    if names.is_empty() {
        return Ok(found);
    }
    let mut value = vec![0; 64 << 10]; // XATTR_SIZE_MAX
    for name in names {
        let c_name: CString = c_string(name);
        match rustix::fs::lgetxattr(path, c_name.as_c_str(), &mut value) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(e) => return Err(context(e)),
        }
    }
    Ok(found)
}

/// Bytes without NUL as a C string.
pub(crate) fn c_string(bytes: &[u8]) -> CString {
    CStr::from_bytes_until_nul(bytes)
        .map_or_else(|_| CString::new(bytes).unwrap_or_default(), CStr::to_owned)
}

/// Bytes written to a live tree since a snapshot, as its files' stamps tell; 0 when none differs.
///
/// # Errors
/// The tree cannot be read.
pub(crate) fn changed_bytes(
    db: &Db,
    blocks: &impl ReadBlocks,
    id: DatasetId,
    snapshot: SetRoot,
    root: &Path,
) -> Result<u64> {
    let table = SeenTable::open(db, id)?;
    let objects = Tree::open(snapshot.objects);
    let mut met = Bitmap::default();
    let mut changed = 0;
    let mut todo = vec![root.to_owned()];
    let mut check = |path: &Path, meta: &std::fs::Metadata| -> Result<()> {
        let same = match table.get(meta.ino())? {
            Some(seen) => {
                met.insert(seen.object);
                seen.trusted
                    && seen.stamp == stamp_of(meta)
                    && objects.get(blocks, seen.object)? == Some(seen.hash)
            }
            None => false,
        };
        if !same {
            let size = if meta.is_file() { meta.size() } else { 0 };
            changed += size.max(512);
            tracing::trace!(path = %path.display(), "differs from the snapshot");
        }
        Ok(())
    };
    if let Some(meta) = stat(root)? {
        check(root, &meta)?;
    }
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue; // vanished; its parent differs then
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if let Some(meta) = stat(&path)?
                && kind_of(&meta).is_some()
            {
                check(&path, &meta)?;
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
    }
    tree::walk::<Hash>(blocks, snapshot.objects, &mut |number, _| {
        if !met.contains(number) {
            changed += 512;
        }
        Ok(())
    })?;
    Ok(changed)
}

/// A name as the system has it.
pub(crate) fn os_name(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
