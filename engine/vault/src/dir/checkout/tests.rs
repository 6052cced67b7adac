//! Sets that no honest sender makes.

use super::*;
use crate::objset::Objset;
use crate::tree::tests::Memory;

fn inode(kind: FileKind, parent: u64, name: &str, target: &Path) -> Inode {
    use std::os::unix::ffi::OsStrExt;
    let links = match parent {
        0 => Vec::new(),
        parent => vec![Link { parent, name: name.into() }],
    };
    Inode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        size: 0,
        links,
        target: target.as_os_str().as_bytes().to_vec(),
        xattrs: Vec::new(),
    }
}

/// Checks a set out that some peer made up.
fn check_out(inodes: &[(u64, Inode)]) -> (tempfile::TempDir, Result<()>) {
    let dir = tempfile::tempdir().expect("dir");
    let lock = File::create(dir.path().join("lock")).expect("lock");
    let db = Db::open(&dir.path().join("db"), lock).expect("db");
    let blocks = Memory::default();
    let mut set = Objset::open(SetRoot::default());
    for (number, inode) in inodes {
        let object = inode.to_object(&blocks).expect("object");
        set.put(&blocks, *number, object).expect("put");
    }
    let root = set.finish(&blocks).expect("set");
    let place = Place { tree: dir.path().join("tree"), stage: dir.path().join("stage") };
    let go_on = AtomicBool::new(false);
    let outcome = checkout(&db, &blocks, DatasetId(1), &place, None, root, &go_on);
    (dir, outcome.map(drop))
}

#[test]
fn a_symlink_under_the_name_of_a_directory_leads_nothing_out_of_the_tree() {
    use FileKind::{Directory, File, Symlink};
    let outside = tempfile::tempdir().expect("outside");
    let none = Path::new("");
    for (link, directory) in [(5, 6), (6, 5)] {
        let (_dir, outcome) = check_out(&[
            (1, inode(Directory, 0, "", none)),
            (link, inode(Symlink, 1, "a", outside.path())),
            (directory, inode(Directory, 1, "a", none)),
            (7, inode(File, directory, "x", none)),
        ]);
        assert!(outcome.is_err());
        assert_eq!(std::fs::read_dir(outside.path()).expect("outside").count(), 0);
    }
}

#[test]
fn directories_in_a_ring_and_files_below_files_are_damage() {
    use FileKind::{Directory, File};
    let none = Path::new("");
    let root = (1, inode(Directory, 0, "", none));
    let ring =
        [root.clone(), (2, inode(Directory, 3, "a", none)), (3, inode(Directory, 2, "b", none))];
    let below_file = [root, (2, inode(File, 1, "a", none)), (3, inode(File, 2, "b", none))];
    for inodes in [&ring[..], &below_file[..]] {
        let (_dir, outcome) = check_out(inodes);
        assert!(matches!(outcome, Err(StoreError::Corrupt { .. })), "{outcome:?}");
    }
}
