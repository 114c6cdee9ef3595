//! Takes away what an attempt leaves: its processes, and its folder.
//!
//! Neither is well-meaning: processes start others while they are ended, and a folder may be
//! deeper than any path and closed to its owner. Must not follow a link.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, chmodat, open, openat, renameat, unlinkat};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid,
};

/// How long it may take until one more process is gone. What is not gone then hangs in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Likewise for what has lost its launcher.
const STRANGERS_GONE_WITHIN: Duration = Duration::from_secs(2);
/// Most passes over a folder. Each takes all files away, and brings what is below one level up.
const PASSES: usize = 100_000;

/// The processes whose parent a process is.
pub(super) fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let mut found = Vec::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return found;
    };
    let mut known = false;
    for task in tasks.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("children")) else {
            continue;
        };
        known = true;
        let pids = text
            .split_ascii_whitespace()
            .filter_map(|it| it.parse().ok());
        found.extend(pids.filter_map(Pid::from_raw));
    }
    if !known {
        // A kernel without that list.
        found.extend(all().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
    }
    found
}

/// All processes, each with its parent.
fn all() -> impl Iterator<Item = (Pid, i32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((pid, stat(pid, 1)?))
    })
}

/// A number of a process's: its parent (1), its session (3; 0 if that is another namespace's).
fn stat(pid: Pid, field: usize) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(field)?.parse().ok()
}

/// A process's descendants; not many more than `most`.
pub(super) fn descendants(of: Pid, most: usize) -> Vec<Pid> {
    let mut found = children(of);
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        if found.len() > most {
            break;
        }
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// Ends all descendants of this process. False: something is left.
pub(super) fn end_all() -> bool {
    let all = || descendants(getpid(), usize::MAX);
    end(all, || wait(WaitOptions::NOHANG), GONE_WITHIN)
}

/// The children that this process had before it started any launcher, such as the guard.
static OWN: OnceLock<Vec<Pid>> = OnceLock::new();

/// From now on, what a launcher has started comes to this process when the launcher is no more.
/// Before the first launcher is started.
pub(super) fn adopt() -> Result<(), String> {
    static ADOPTS: OnceLock<rustix::io::Result<()>> = OnceLock::new();
    let adopts = ADOPTS.get_or_init(|| {
        OWN.get_or_init(|| children(getpid()));
        set_child_subreaper(Some(getpid()))
    });
    adopts.map_err(|error| format!("cannot become a subreaper: {error}"))
}

/// Ends what has come to this process from launchers that are no more: whatever is in a fence has a
/// session of its own, and what this process starts has not. One by one, as this process may signal
/// others too; so it may take long with what starts others as fast as it can.
pub(super) fn end_strangers() {
    let Some(own) = stat(getpid(), 3) else { return };
    let strangers = || {
        let mut all = children(getpid());
        all.retain(|pid| {
            let is_own = OWN.get().is_some_and(|own| own.contains(pid));
            // One that is being taken away has none.
            let is_other = |session: i32| session >= 0 && session != own;
            !is_own && stat(*pid, 3).is_some_and(is_other)
        });
        all
    };
    let all = || {
        let mut all = strangers();
        let below = all.iter().flat_map(|pid| descendants(*pid, usize::MAX));
        let below: Vec<Pid> = below.collect();
        all.extend(below);
        all
    };
    let reap = || {
        let each = strangers().into_iter();
        let mut ended = each.filter_map(|pid| waitpid(Some(pid), WaitOptions::NOHANG).transpose());
        ended.next().transpose()
    };
    // What came of the attempt waits for it.
    end(all, reap, STRANGERS_GONE_WITHIN);
}

/// Ends all processes that are found. False: something is left.
///
/// They are stopped first, all of them: what is killed while others run makes room for what those
/// start, and a fork bomb would never come to its end. What is stopped starts nothing.
fn end(
    find: impl Fn() -> Vec<Pid>,
    reap: impl Fn() -> rustix::io::Result<Option<(Pid, WaitStatus)>>,
    within: Duration,
) -> bool {
    let mut moved = Instant::now();
    let mut stopped = BTreeSet::new();
    while moved.elapsed() < within / 2 {
        let is_new = |it: &Pid| stopped.insert(it.as_raw_nonzero());
        let fresh: Vec<Pid> = find().into_iter().filter(is_new).collect();
        for pid in &fresh {
            let _ = kill_process(*pid, Signal::STOP);
        }
        if fresh.is_empty() {
            break;
        }
    }
    loop {
        let left = find();
        if left.is_empty() {
            return true;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        loop {
            match reap() {
                Ok(Some(_)) => moved = Instant::now(),
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if moved.elapsed() > within {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Removes a folder with all that is in it, as far as that is possible.
pub(in crate::executor) fn remove(folder: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _ = rustix::fs::chmod(folder, Mode::RWXU);
    let Ok(root) = open(folder, flags, Mode::empty()) else {
        return;
    };
    let mut fresh = 0_u64;
    for _ in 0..PASSES {
        let mut left = false;
        for_each(&root, |name| {
            if unlinkat(&root, name, AtFlags::empty()).is_ok() {
                return;
            }
            let _ = chmodat(&root, name, Mode::RWXU, AtFlags::empty());
            if unlinkat(&root, name, AtFlags::REMOVEDIR).is_ok() {
                return;
            }
            left = true;
            if let Ok(below) = openat(&root, name, flags, Mode::empty()) {
                empty(&below, &root, &mut fresh);
            }
            let _ = unlinkat(&root, name, AtFlags::REMOVEDIR);
        });
        if !left {
            break;
        }
    }
    drop(root);
    let _ = fs::remove_dir(folder);
}

/// Takes the files of a folder away, and brings its folders up to `root`: so nothing is too deep.
fn empty(folder: &OwnedFd, root: &OwnedFd, fresh: &mut u64) {
    for_each(folder, |name| {
        if unlinkat(folder, name, AtFlags::empty()).is_ok() {
            return;
        }
        let _ = chmodat(folder, name, Mode::RWXU, AtFlags::empty());
        // A name may be taken already.
        for _ in 0..100 {
            *fresh += 1;
            let up = format!(".left-{fresh}");
            if renameat(folder, name, root, up.as_str()).is_ok() {
                return;
            }
        }
    });
}

fn for_each(folder: impl AsFd, mut act: impl FnMut(&CStr)) {
    let Ok(entries) = Dir::read_from(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name != c"." && name != c".." {
            act(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_goes_however_it_was_left() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("f");
        let kept = outer.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("x"), "x").unwrap();
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::write(folder.join("a/b/c/.left-1"), "x").unwrap();
        symlink(&kept, folder.join("a/link")).unwrap();
        symlink(kept.join("x"), folder.join("file")).unwrap();
        fs::create_dir(folder.join(".left-2")).unwrap();
        fs::write(folder.join(".left-2/x"), "x").unwrap();
        // Deeper than a path can be long.
        let mut below = open(&folder, OFlags::RDONLY, Mode::empty()).unwrap();
        let name = "n".repeat(100);
        for _ in 0..60 {
            rustix::fs::mkdirat(&below, &*name, Mode::RWXU).unwrap();
            below = openat(&below, &*name, OFlags::RDONLY, Mode::empty()).unwrap();
        }
        drop(below);
        fs::set_permissions(folder.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(&folder);
        assert!(!folder.exists());
        assert!(kept.join("x").exists(), "links are not followed");
    }
}
