//! Takes away what an attempt leaves: its processes, and its folder.
//!
//! Neither is well-meaning: processes start others while they are ended, and a folder may be
//! deeper than any path and closed to its owner. Must not follow a link.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chmod, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid,
};

/// How long it may take until one more process is gone. What is not gone then hangs in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Likewise for what has lost its launcher.
const STRANGERS_GONE_WITHIN: Duration = Duration::from_secs(2);
/// Most passes over a folder. Each takes all files away, and brings what is below one level up.
const PASSES: usize = 100_000;

/// The processes whose parent a process is. One that has ended has none; an error: they cannot be
/// seen.
pub(super) fn children(parent: Pid) -> io::Result<Vec<Pid>> {
    let number = parent.as_raw_nonzero().get();
    let mut found = Vec::new();
    let Some(tasks) = unless_gone(fs::read_dir(format!("/proc/{number}/task")))? else {
        return Ok(found);
    };
    let (mut tried, mut known) = (false, false);
    for task in tasks {
        let Some(task) = unless_gone(task)? else {
            continue;
        };
        tried = true;
        let Some(text) = unless_gone(fs::read_to_string(task.path().join("children")))? else {
            continue;
        };
        known = true;
        let pids = text
            .split_ascii_whitespace()
            .filter_map(|it| it.parse().ok());
        found.extend(pids.filter_map(Pid::from_raw));
    }
    if tried && !known && stat(parent, 1).is_some() {
        // A kernel without that list.
        for process in all()? {
            let (pid, of) = process?;
            if of == number {
                found.push(pid);
            }
        }
    }
    Ok(found)
}

/// None: the process or thread that was asked about has ended.
pub(super) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All processes, each with its parent.
fn all() -> io::Result<impl Iterator<Item = io::Result<(Pid, i32)>>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| {
        let name = match entry {
            Ok(entry) => entry.file_name(),
            Err(error) => return Some(Err(error)),
        };
        let pid = Pid::from_raw(name.to_str()?.parse().ok()?)?;
        Some(Ok((pid, stat(pid, 1)?)))
    }))
}

/// A number of a process's: its parent (1), its session (3; 0 if that is another namespace's).
pub(super) fn stat(pid: Pid, field: usize) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(field)?.parse().ok()
}

/// A process's descendants; not many more than `most`.
pub(super) fn descendants(of: Pid, most: usize) -> io::Result<Vec<Pid>> {
    let mut found = children(of)?;
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        if found.len() > most {
            break;
        }
        found.extend(children(pid)?);
        next += 1;
    }
    Ok(found)
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
    static ADOPTS: OnceLock<Result<(), String>> = OnceLock::new();
    let adopts = ADOPTS.get_or_init(|| {
        let own = children(getpid()).map_err(|error| error.to_string())?;
        OWN.get_or_init(|| own);
        set_child_subreaper(Some(getpid())).map_err(|error| error.to_string())
    });
    let adopts = adopts.as_ref().copied();
    adopts.map_err(|error| format!("cannot become a subreaper: {error}"))
}

/// Ends what has come to this process from launchers that are no more: whatever is in a fence has a
/// session of its own, and what this process starts has not. One by one, as this process may signal
/// others too; so it may take long with what starts others as fast as it can.
pub(super) fn end_strangers() {
    let Some(own) = stat(getpid(), 3) else { return };
    let strangers = || {
        let mut all = children(getpid())?;
        all.retain(|pid| {
            let is_own = OWN.get().is_some_and(|own| own.contains(pid));
            // One that is being taken away has none.
            let is_other = |session: i32| session >= 0 && session != own;
            !is_own && stat(*pid, 3).is_some_and(is_other)
        });
        io::Result::Ok(all)
    };
    let all = || {
        let mut all = strangers()?;
        for pid in all.clone() {
            all.extend(descendants(pid, usize::MAX)?);
        }
        Ok(all)
    };
    let reap = || {
        let each = strangers().unwrap_or_default().into_iter();
        let mut ended = each.filter_map(|pid| waitpid(Some(pid), WaitOptions::NOHANG).transpose());
        ended.next().transpose()
    };
    // What came of the attempt waits for it.
    end(all, reap, STRANGERS_GONE_WITHIN);
}

/// Ends all processes that are found. False: something is left, or cannot be found.
///
/// They are stopped first, all of them: what is killed while others run makes room for what those
/// start, and a fork bomb would never come to its end. What is stopped starts nothing.
fn end(
    find: impl Fn() -> io::Result<Vec<Pid>>,
    reap: impl Fn() -> rustix::io::Result<Option<(Pid, WaitStatus)>>,
    within: Duration,
) -> bool {
    let mut moved = Instant::now();
    let mut stopped = BTreeSet::new();
    while moved.elapsed() < within / 2 {
        let is_new = |it: &Pid| stopped.insert(it.as_raw_nonzero());
        // What cannot be seen now may be seen once others have ended.
        let found = find().unwrap_or_default();
        let fresh: Vec<Pid> = found.into_iter().filter(is_new).collect();
        for pid in &fresh {
            let _ = kill_process(*pid, Signal::STOP);
        }
        if fresh.is_empty() {
            break;
        }
    }
    loop {
        let left = find();
        if left.as_ref().is_ok_and(Vec::is_empty) {
            return true;
        }
        for pid in left.unwrap_or_default() {
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

/// Opens a directory of another's that its owner may have closed, and has opened it first. Its name
/// may become a link meanwhile: so the directory is pinned, and changed as what was pinned. `is`: its
/// device and inode, if these are known.
pub(super) fn open_directory(
    at: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    is: Option<(u64, u64)>,
) -> rustix::io::Result<OwnedFd> {
    let oflags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = openat(at, name, oflags, Mode::empty())?;
    if let Some(is) = is {
        let stat = fstat(&pinned)?;
        if (stat.st_dev, stat.st_ino) != is {
            // What had that name is there no more.
            return Err(Errno::NOENT);
        }
    }
    reopen(&pinned)
}

/// Opens a directory that is pinned, to be read; its mode is changed where it does not allow that.
/// Reading leaves no trace in its times, which would say to a node what was counted just now.
pub(super) fn reopen(pinned: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let oflags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let again = || match openat(pinned, c".", oflags | OFlags::NOATIME, Mode::empty()) {
        // For the owner only.
        Err(Errno::PERM) => openat(pinned, c".", oflags, Mode::empty()),
        opened => opened,
    };
    match again() {
        Err(Errno::ACCESS) => {
            chmod(format!("/proc/self/fd/{}", pinned.as_raw_fd()), Mode::RWXU)?;
            again()
        }
        opened => opened,
    }
}

/// Removes a directory with all that is in it, as far as that is possible.
pub(in crate::executor) fn remove(folder: &Path) {
    let Ok(root) = open_directory(CWD, folder, None).and_then(writable) else {
        return;
    };
    let mut fresh = 0_u64;
    for _ in 0..PASSES {
        let mut left = false;
        for_each(&root, |name| {
            if unlinkat(&root, name, AtFlags::empty()).is_ok()
                || unlinkat(&root, name, AtFlags::REMOVEDIR).is_ok()
            {
                return;
            }
            left = true;
            if let Ok(below) = open_directory(&root, name, None).and_then(writable) {
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

/// A directory that is open, and now lets its entries be taken away.
fn writable(folder: OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::fs::fchmod(&folder, Mode::RWXU)?;
    Ok(folder)
}

/// Takes the files of a directory away, and brings its directories up to `root`: so nothing is too
/// deep.
fn empty(folder: &OwnedFd, root: &OwnedFd, fresh: &mut u64) {
    for_each(folder, |name| {
        if unlinkat(folder, name, AtFlags::empty()).is_ok() {
            return;
        }
        // A directory that is closed cannot be moved.
        let _ = open_directory(folder, name, None).and_then(writable);
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

    use rustix::fs::open;

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
