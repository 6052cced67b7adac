//! Versions of OpenZFS that are known to damage what we depend on, by name.
//!
//! Owns: the list, each entry with the issue and the versions that OpenZFS's repository has the repair in (looked
//! up by its tags). Leaves to others: what is installed ([`crate::examine`]).

/// A version, and what the distribution has made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    numbers: [u32; 3],
    package: String,
}

impl Version {
    /// Reads `2.1.11-1+deb12u1`, with or without `zfs-` or `zfs-kmod-` before it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text =
            text.strip_prefix("zfs-kmod-").or_else(|| text.strip_prefix("zfs-")).unwrap_or(text);
        let (number, package) = text.split_once('-').unwrap_or((text, ""));
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let numbers = [parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)];
        Some(Self { numbers, package: package.to_owned() })
    }

    fn is_before(&self, repaired: [u32; 3]) -> bool {
        self.numbers < repaired
    }

    fn is_of(&self, major: u32, minor: u32) -> bool {
        self.numbers[..2] == [major, minor]
    }
}

/// A bug that a version has.
#[derive(Debug)]
pub(crate) struct Problem {
    /// The number of the issue.
    pub(crate) issue: u32,
    /// What it does.
    pub(crate) what: &'static str,
    /// What to do.
    pub(crate) todo: &'static str,
    has: fn(&Version) -> bool,
}

/// All that are known.
const PROBLEMS: &[Problem] = &[
    Problem {
        issue: 15526,
        what: "files that are copied while they are written may get zeros in place of data",
        todo: "upgrade to 2.1.14, 2.2.2 or later (Debian 12: 2.1.11-1+deb12u1); until then \
               `echo 0 > /sys/module/zfs/parameters/zfs_dmu_offset_next_sync` makes it rare",
        has: |v| {
            let patched = v.numbers == [2, 1, 11] && v.package.contains("+deb12u");
            !patched && (v.is_before([2, 1, 14]) || v.is_of(2, 2) && v.is_before([2, 2, 2]))
        },
    },
    Problem {
        issue: 12014,
        what: "sending from an encrypted dataset without -w may report errors that are not there, and panic when the \
               pool is exported",
        todo: "we send encrypted volumes raw only; keep other tools from sending them plain, or upgrade to 2.2.8, \
               2.3.3, 2.4.0 or later",
        has: |v| {
            v.is_before([2, 2, 8]) && !v.is_before([2, 0, 0])
                || v.is_of(2, 3) && v.is_before([2, 3, 3])
        },
    },
    Problem {
        issue: 12594,
        what: "a raw send of a dataset whose accounting was upgraded may fail with an error of authentication",
        todo: "upgrade to 2.1.3 or later",
        has: |v| v.is_before([2, 1, 3]),
    },
    Problem {
        issue: 10383,
        what: "a step with -L after one without it leaves zeros in place of data",
        todo: "upgrade to 2.0 or later; we never change the flag, other tools may",
        has: |v| v.is_before([2, 0, 0]),
    },
];

/// What this version is known for.
pub(crate) fn problems(version: &Version) -> impl Iterator<Item = &'static Problem> {
    PROBLEMS.iter().filter(move |problem| (problem.has)(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issues(version: &str) -> Vec<u32> {
        problems(&Version::parse(version).unwrap()).map(|p| p.issue).collect()
    }

    #[test]
    fn a_version_is_known_by_its_numbers_and_by_what_a_distribution_has_repaired() {
        assert_eq!(issues("zfs-2.1.11-1"), [15526, 12014]);
        assert_eq!(issues("zfs-kmod-2.1.11-1+deb12u1"), [12014]);
        assert_eq!(issues("zfs-2.1.14"), [12014]);
        assert_eq!(issues("zfs-2.2.1-1ubuntu1"), [15526, 12014]);
        assert_eq!(issues("2.2.8"), []);
        assert_eq!(issues("2.3.2"), [12014]);
        assert_eq!(issues("zfs-2.3.9-0+deb13u1"), []);
        assert_eq!(issues("2.4.0"), []);
        assert_eq!(issues("0.8.6"), [15526, 12594, 10383]);
        assert_eq!(issues("2.0.7"), [15526, 12014, 12594]);
    }

    #[test]
    fn what_is_no_version_is_none() {
        assert_eq!(Version::parse("zfs-fuse"), None);
        assert_eq!(Version::parse(""), None);
        assert!(Version::parse("zfs-2.4.0-rc1").is_some());
        assert!(Version::parse("zfs-2.4").is_some());
    }
}
