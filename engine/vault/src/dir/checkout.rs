//! An object set, written out as a tree; from nothing, or from another set that is there.
//!
//! ```text
//! 1  detach   names that are gone: directories and files that live on elsewhere are moved aside
//!             (`stage/<object>`), everything else is unlinked
//! 2  attach   directories into their new places, parents first; files made or changed in place, named
//! 3  settle   what is left aside is removed, directories get their times, all is synced
//! ```
//! Paths are never kept across a step that moves directories: a directory is found through its parents, or
//! aside. So renames, swaps and moves of whole subtrees need no order among themselves.
//!
//! Owns: those steps, in a tree that nobody else sees. Leaves content to [`super::content`], and saying
//! durably which set a tree holds to [`super::live`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use flocker_store::StoreError;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::ROOT_OBJECT;
use super::content;
use super::inode::{FileKind, Inode, Link};
use super::scan::{c_string, os_name, stamp_of, xattrs};
use super::seen::{Seen, SeenBatch, links_sum};
use crate::blocks::ReadBlocks;
use crate::db::Db;
use crate::hash::Hash;
use crate::meta::DatasetId;
use crate::object::Object;
use crate::objset::SetRoot;
use crate::tree::{self, Root, Tree};

type Result<T> = std::result::Result<T, StoreError>;

/// Directories below directories, at most: a path may have 4096 bytes, so no real tree is deeper.
const MAX_DEPTH: usize = 2048;
/// Paths of directories remembered while attaching.
const PATHS_KEPT: usize = 20_000;

fn damaged(detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        path: "packs".into(),
        detail: format!("a directory's object set: {detail}"),
    }
}

/// Where a checkout goes.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The tree.
    pub(crate) tree: PathBuf,
    /// A directory on the same file system for what is moved aside; it need not exist.
    pub(crate) stage: PathBuf,
}

struct Checkout<'c, B> {
    blocks: &'c B,
    place: &'c Place,
    from: Tree<Hash>,
    to: Tree<Hash>,
    /// Objects that are aside.
    aside: HashSet<u64>,
    /// Paths of directories as they will be.
    paths: HashMap<u64, PathBuf>,
    /// Directories that get their attributes at the end, with their depth.
    directories: HashMap<u64, usize>,
    /// Directories whose entries were changed: their times have to be set again.
    touched: HashSet<u64>,
    seen: SeenBatch,
    is_root: bool,
}

/// Makes the tree at `place`, which holds `from` (or does not exist), hold `to`.
///
/// # Errors
/// [`StoreError::Cancelled`] once `stop` is set. After an error the tree holds neither.
pub(crate) fn checkout(
    db: &Db,
    blocks: &impl ReadBlocks,
    id: DatasetId,
    place: &Place,
    from: Option<SetRoot>,
    to: SetRoot,
    stop: &AtomicBool,
) -> Result<SeenBatch> {
    let before = from.map_or(Root(None), |from| from.objects);
    if from.is_none() {
        make_dir(&place.tree)?;
    }
    remove_tree(&place.stage)?;
    make_dir(&place.stage)?;
    let mut checkout = Checkout {
        blocks,
        place,
        from: Tree::open(before),
        to: Tree::open(to.objects),
        aside: HashSet::new(),
        paths: HashMap::new(),
        directories: HashMap::new(),
        touched: HashSet::new(),
        seen: SeenBatch::default(),
        is_root: rustix::process::geteuid().is_root(),
    };
    if from.is_some() {
        tree::diff(blocks, before, to.objects, &mut |number, from, to| {
            checkout.detach(number, from, to)
        })?;
    }
    tree::diff(blocks, before, to.objects, &mut |number, from, to| {
        if stop.load(Ordering::Relaxed) {
            return Err(StoreError::Cancelled);
        }
        checkout.attach(number, from, to)?;
        checkout.seen.relieve(db, id)
    })?;
    checkout.settle()?;
    Ok(checkout.seen)
}

fn io(path: &Path, e: impl Into<std::io::Error>) -> StoreError {
    StoreError::io(format!("checking out {}", path.display()), e.into())
}

fn make_dir(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io(path, e)),
    }
}

/// Removes a tree, even one whose directories forbid it.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(path, e)),
        Ok(meta) if !meta.is_dir() => return std::fs::remove_file(path).map_err(|e| io(path, e)),
        Ok(_) => {}
    }
    if std::fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    // Without root a directory may forbid even its owner: open them all, then once more.
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        let _ = std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700));
        for entry in std::fs::read_dir(&dir).map_err(|e| io(&dir, e))?.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
    std::fs::remove_dir_all(path).map_err(|e| io(path, e))
}

impl<B: ReadBlocks> Checkout<'_, B> {
    fn stage(&self, object: u64) -> PathBuf {
        self.place.stage.join(object.to_string())
    }

    fn load(&self, hash: Option<Hash>) -> Result<Option<(Object, Inode)>> {
        hash.map(|hash| Inode::load(self.blocks, &hash)).transpose()
    }

    /// The one name of a directory in a set.
    fn link_of(&self, set: &Tree<Hash>, object: u64) -> Result<Link> {
        let hash = set.get(self.blocks, object)?;
        self.load(hash)?
            .filter(|(_, inode)| inode.kind == FileKind::Directory)
            .and_then(|(_, inode)| inode.links.into_iter().next())
            .ok_or_else(|| damaged(format!("there is no directory {object} with a name")))
    }

    /// Where a directory of the old set is right now.
    fn now(&self, object: u64) -> Result<PathBuf> {
        let (mut at, mut names) = (object, Vec::new());
        let mut path = loop {
            if at == ROOT_OBJECT {
                break self.place.tree.clone();
            }
            if self.aside.contains(&at) {
                break self.stage(at);
            }
            let link = self.link_of(&self.from, at)?;
            names.push(link.name);
            at = link.parent;
            if names.len() > MAX_DEPTH {
                return Err(damaged("directories in a ring"));
            }
        };
        path.extend(names.iter().rev().map(|name| os_name(name)));
        Ok(path)
    }

    fn name_now(&self, link: &Link) -> Result<PathBuf> {
        Ok(self.now(link.parent)?.join(os_name(&link.name)))
    }

    /// Without root even an owner may not change what a directory forbids.
    fn unlock(&self, dir: &Path) {
        if !self.is_root {
            let _ = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700));
        }
    }

    /// Step 1 for one object.
    fn detach(&mut self, number: u64, from: Option<Hash>, to: Option<Hash>) -> Result<()> {
        let Some((_, from)) = self.load(from)? else {
            return Ok(());
        };
        let to = self.load(to)?.map(|(_, inode)| inode);
        let stays = to.as_ref().filter(|to| survives(&from, to));
        let kept = |link: &Link| stays.is_some_and(|to| to.links.contains(link));
        if number == ROOT_OBJECT {
            return Ok(());
        }
        let mut in_place = from.links.iter().any(kept);
        for link in from.links.iter().filter(|link| !kept(link)) {
            let path = self.name_now(link)?;
            if let Some(parent) = path.parent() {
                self.unlock(parent);
            }
            self.touched.insert(link.parent);
            let moved = from.kind == FileKind::Directory || (stays.is_some() && !in_place);
            if moved && !self.aside.contains(&number) {
                if from.kind == FileKind::Directory {
                    self.unlock(&path); // a directory that changes its parent is written itself
                }
                let aside = self.stage(number);
                std::fs::rename(&path, &aside).map_err(|e| io(&path, e))?;
                self.aside.insert(number);
                in_place = true;
            } else {
                std::fs::remove_file(&path).map_err(|e| io(&path, e))?;
            }
        }
        if stays.is_none() {
            self.seen.remove(number);
        }
        Ok(())
    }

    /// Makes sure that a directory of the new set is in its place; says where, and how deep.
    fn directory(&mut self, object: u64) -> Result<(PathBuf, usize)> {
        let (mut at, mut missing) = (object, Vec::new());
        let mut path = loop {
            if at == ROOT_OBJECT {
                break self.place.tree.clone();
            }
            if let Some(path) = self.paths.get(&at) {
                break path.clone();
            }
            let link = self.link_of(&self.to, at)?;
            missing.push((at, link.clone()));
            at = link.parent;
            if missing.len() > MAX_DEPTH {
                return Err(damaged("directories in a ring"));
            }
        };
        for (object, link) in missing.into_iter().rev() {
            let parent = path;
            path = parent.join(os_name(&link.name));
            if self.aside.remove(&object) {
                self.clear(&path)?;
                self.touch(link.parent, &parent);
                std::fs::rename(self.stage(object), &path).map_err(|e| io(&path, e))?;
                // Its `..` was written, which some file systems count as a change of it.
                self.touched.insert(object);
            } else {
                self.make_directory(link.parent, &parent, &path)?;
            }
            if self.paths.len() >= PATHS_KEPT {
                self.paths.clear();
            }
            self.paths.insert(object, path.clone());
        }
        let depth = path.components().count() - self.place.tree.components().count();
        Ok((path, depth))
    }

    fn touch(&mut self, object: u64, path: &Path) {
        if self.touched.insert(object) {
            self.unlock(path);
        }
    }

    /// Makes a directory unless it is there. It is only there as a directory: whoever sent the set could
    /// have given a symlink the same name, and what goes below would leave the tree.
    fn make_directory(&mut self, above: u64, parent: &Path, path: &Path) -> Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(meta) if super::scan::kind_of(&meta).is_some() => {
                Err(damaged(format!("two objects at {}", path.display())))
            }
            _ => {
                self.clear(path)?;
                self.touch(above, parent);
                std::fs::create_dir(path).map_err(|e| io(path, e))
            }
        }
    }

    /// Removes what no object set knows (a socket, a device) from where an object goes.
    fn clear(&self, path: &Path) -> Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if super::scan::kind_of(&meta).is_none() => {
                std::fs::remove_file(path).map_err(|e| io(path, e))
            }
            _ => Ok(()),
        }
    }

    /// Step 2 for one object.
    fn attach(&mut self, number: u64, from: Option<Hash>, to: Option<Hash>) -> Result<()> {
        let Some(to_hash) = to else {
            return Ok(());
        };
        let (object, inode) = Inode::load(self.blocks, &to_hash)?;
        if number == ROOT_OBJECT {
            self.directories.insert(number, 0);
            return Ok(());
        }
        if inode.kind == FileKind::Directory {
            let (_, depth) = self.directory(number)?;
            self.directories.insert(number, depth);
            return Ok(());
        }
        let before = self.load(from)?.filter(|(_, before)| survives(before, &inode));
        let path = self.names(number, before.as_ref().map(|(_, i)| i), &inode)?;
        if let Some(path) = path {
            if inode.kind == FileKind::File {
                self.content(&path, before.as_ref().map(|(o, _)| o), &object, &inode)?;
            }
            self.attributes(&path, &inode)?;
            self.remember(number, &path, to_hash, &inode)?;
        }
        Ok(())
    }

    /// Gives a file, symlink or fifo its names, making it if it is not there; says one of them.
    fn names(
        &mut self,
        number: u64,
        before: Option<&Inode>,
        inode: &Inode,
    ) -> Result<Option<PathBuf>> {
        let kept = |link: &&Link| before.is_some_and(|b| b.links.contains(link));
        let mut named = match inode.links.iter().find(kept) {
            Some(link) => Some(self.path_of(link)?),
            None => None,
        };
        for link in inode.links.iter().filter(|link| !kept(link)) {
            let (parent, _) = self.directory(link.parent)?;
            let path = parent.join(os_name(&link.name));
            self.touch(link.parent, &parent);
            self.clear(&path)?;
            match &named {
                Some(first) => std::fs::hard_link(first, &path).map_err(|e| io(&path, e))?,
                None if before.is_some() && self.aside.remove(&number) => {
                    std::fs::rename(self.stage(number), &path).map_err(|e| io(&path, e))?;
                }
                None => make(&path, inode)?,
            }
            named.get_or_insert(path);
        }
        Ok(named)
    }

    fn path_of(&mut self, link: &Link) -> Result<PathBuf> {
        let (parent, _) = self.directory(link.parent)?;
        Ok(parent.join(os_name(&link.name)))
    }

    fn content(
        &self,
        path: &Path,
        before: Option<&Object>,
        object: &Object,
        inode: &Inode,
    ) -> Result<()> {
        if before.is_some_and(|b| b.data == object.data && b.block_size == object.block_size)
            && std::fs::symlink_metadata(path).is_ok_and(|m| m.len() == inode.size)
        {
            return Ok(());
        }
        self.unlock_file(path);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io(path, e))?;
        content::write(self.blocks, &File::from(file), path, before, object, inode.size)
    }

    fn unlock_file(&self, path: &Path) {
        if !self.is_root {
            let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
        }
    }

    /// Owner, permissions, extended attributes, times; in this order, since each may undo the one before.
    fn attributes(&self, path: &Path, inode: &Inode) -> Result<()> {
        if self.is_root {
            let (uid, gid) =
                (rustix::fs::Uid::from_raw(inode.uid), rustix::fs::Gid::from_raw(inode.gid));
            rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| io(path, e))?;
        }
        if matches!(inode.kind, FileKind::File | FileKind::Directory) {
            self.set_xattrs(path, inode)?;
        }
        if inode.kind != FileKind::Symlink {
            let mode = std::fs::Permissions::from_mode(inode.mode);
            std::fs::set_permissions(path, mode).map_err(|e| io(path, e))?;
        }
        let time = Timespec { tv_sec: inode.mtime_s, tv_nsec: inode.mtime_ns.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| io(path, e))
    }

    fn set_xattrs(&self, path: &Path, inode: &Inode) -> Result<()> {
        let has = xattrs(path)?;
        if has == inode.xattrs {
            return Ok(());
        }
        self.unlock_xattrs(path, inode);
        for (name, _) in has.iter().filter(|(n, _)| !inode.xattrs.iter().any(|(m, _)| m == n)) {
            match rustix::fs::lremovexattr(path, c_string(name).as_c_str()) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(io(path, e)),
            }
        }
        for (name, value) in inode.xattrs.iter().filter(|x| !has.contains(x)) {
            match rustix::fs::lsetxattr(path, c_string(name).as_c_str(), value, XattrFlags::empty())
            {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    tracing::warn!(path = %path.display(), "this file system keeps no extended attributes");
                }
                Err(e) => return Err(io(path, e)),
            }
        }
        Ok(())
    }

    fn unlock_xattrs(&self, path: &Path, inode: &Inode) {
        match inode.kind {
            FileKind::Directory => self.unlock(path),
            _ => self.unlock_file(path),
        }
    }

    /// Nobody else can write here, so what was just written is known to be as it is.
    fn remember(&mut self, number: u64, path: &Path, hash: Hash, inode: &Inode) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(path).map_err(|e| io(path, e))?;
        let seen = Seen {
            object: number,
            stamp: stamp_of(&meta),
            hash,
            links: links_sum(&inode.links),
            trusted: true,
        };
        self.seen.set(meta.ino(), seen);
        Ok(())
    }

    /// Step 3.
    fn settle(&mut self) -> Result<()> {
        remove_tree(&self.place.stage)?;
        for object in std::mem::take(&mut self.touched) {
            // A directory that is gone was touched too.
            let hash = self.to.get(self.blocks, object)?;
            let is_dir = |inode: &Inode| inode.kind == FileKind::Directory;
            if self.load(hash)?.is_some_and(|(_, inode)| is_dir(&inode)) {
                let (_, depth) = self.directory(object)?;
                self.directories.insert(object, depth);
            }
        }
        let mut directories: Vec<(usize, u64)> = std::mem::take(&mut self.directories)
            .into_iter()
            .map(|(object, depth)| (depth, object))
            .collect();
        // The deepest first: a directory may forbid the way to those below it.
        directories.sort_unstable_by(|a, b| b.cmp(a));
        for (_, object) in directories {
            let Some(hash) = self.to.get(self.blocks, object)? else {
                continue;
            };
            let (path, _) = self.directory(object)?;
            let (_, inode) = Inode::load(self.blocks, &hash)?;
            self.attributes(&path, &inode)?;
            self.remember(object, &path, hash, &inode)?;
        }
        let tree = File::open(&self.place.tree);
        match tree.map(|tree| rustix::fs::syncfs(&tree)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(io(&self.place.tree, e)),
            Err(_) => {
                rustix::fs::sync(); // a root directory that even its owner may not read
                Ok(())
            }
        }
    }
}

/// Whether an inode becomes the other one without being made anew.
fn survives(from: &Inode, to: &Inode) -> bool {
    from.kind == to.kind
        && match from.kind {
            FileKind::Directory | FileKind::File | FileKind::Fifo => true,
            FileKind::Symlink => from.target == to.target,
        }
}

fn make(path: &Path, inode: &Inode) -> Result<()> {
    match inode.kind {
        FileKind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
                .map(drop)
                .map_err(|e| io(path, e))
        }
        FileKind::Symlink => {
            std::os::unix::fs::symlink(os_name(&inode.target), path).map_err(|e| io(path, e))
        }
        FileKind::Fifo => {
            rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(|e| io(path, e))
        }
        FileKind::Directory => make_dir(path),
    }
}

#[cfg(test)]
mod tests;
