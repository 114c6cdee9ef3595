//! What the processes of an attempt use together, which no limit of the kernel's bounds without a
//! control group of their own.
//!
//! Looked at from time to time, so it can be passed for a moment. What cannot be looked at is over the
//! limit: a node must not gain by keeping the launcher from looking. Must not end anything.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, statat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use rustix::time::{ClockId, clock_gettime};

use super::sweep::unless_gone;
use super::{Limits, sweep};

/// Most files and folders of an attempt, and how deep they may be.
const ENTRIES: u64 = 20_000;
const DEPTH: usize = 100;
/// How often it is tried to list a process's files: the thread that was asked may just have ended.
const TRIES: usize = 3;
/// How often a directory is counted in which files come and go.
const PASSES: usize = 3;
/// Seconds since its last change for which a directory is one of those.
const RECENT: i64 = 2;
/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// What cannot be counted is more than may be.
const HIDDEN: &str =
    "more than can be counted in files, as a program of it hides or cannot be read";

/// What was seen at the look before.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// A process whose files could not be counted.
    hidden: bool,
    /// More memory than there may be.
    much: bool,
}

impl Usage {
    /// In words, what of `limits` the descendants of `parent` are over; none: they are within.
    pub(super) fn over(
        &mut self,
        parent: Pid,
        folder: &OwnedFd,
        limits: &Limits,
    ) -> Option<String> {
        self.look(parent, folder, limits)
            .unwrap_or_else(|error| Some(format!("more than can be counted ({error})")))
    }

    fn look(
        &mut self,
        parent: Pid,
        folder: &OwnedFd,
        limits: &Limits,
    ) -> io::Result<Option<String>> {
        let most = usize::try_from(limits.processes).unwrap_or(usize::MAX);
        let processes = sweep::descendants(parent, most)?;
        let count = u64::try_from(processes.len()).unwrap_or(u64::MAX);
        if count > limits.processes {
            return Ok(Some(format!("more than {} processes", limits.processes)));
        }
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let mut sizes = Vec::new();
        for pid in &processes {
            sizes.push(resident(*pid)?.saturating_mul(page));
        }
        // What they share counts once for each there; whether it matters is looked at more closely.
        let much = sizes.iter().sum::<u64>() > limits.memory && {
            let sizes = processes.iter().zip(&sizes);
            let proportional = sizes.map(|(pid, size)| proportional(*pid).unwrap_or(*size));
            proportional.sum::<u64>() > limits.memory
        };
        // One that starts another has its memory twice for a moment.
        if std::mem::replace(&mut self.much, much) && much {
            return Ok(Some(format!(
                "more than {} of memory",
                bytes(limits.memory)
            )));
        }
        let unnamed = unlinked(&processes)?;
        // One that is just being replaced by another program hides for a moment.
        let hid = std::mem::replace(&mut self.hidden, unnamed.is_none());
        if hid && unnamed.is_none() {
            return Ok(Some(HIDDEN.to_owned()));
        }
        let kept = files(folder)?.saturating_add(unnamed.unwrap_or(0));
        Ok((kept > limits.folder).then(|| format!("more than {} in files", bytes(limits.folder))))
    }
}

fn bytes(count: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    if count.is_multiple_of(MIB) {
        format!("{} MiB", count / MIB)
    } else {
        format!("{count} bytes")
    }
}

/// A thread of a process that has its memory and its files. The first one may have ended, and then
/// nothing is to be had of the process itself. None: it has ended.
fn thread(pid: Pid) -> io::Result<Option<PathBuf>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))?;
    for task in tasks {
        let Some(task) = unless_gone(task)? else {
            continue;
        };
        if is_there(&task.path())? {
            return Ok(Some(task.path()));
        }
    }
    Ok(None)
}

/// A number of pages of a thread's process: all that it has mapped (0), what of it is in memory (1).
fn pages(thread: &Path, field: usize) -> io::Result<u64> {
    let text = unless_gone(fs::read_to_string(thread.join("statm")))?.unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(field);
    Ok(pages.and_then(|it| it.parse().ok()).unwrap_or(0))
}

/// Pages in memory.
fn resident(pid: Pid) -> io::Result<u64> {
    match unless_gone(thread(pid))?.flatten() {
        Some(thread) => pages(&thread, 1),
        None => Ok(0),
    }
}

/// Bytes in memory, of what is shared its part only.
fn proportional(pid: Pid) -> Option<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// What was seen of a directory: the bytes of each file, by device and inode.
#[derive(Debug, Default)]
struct Seen {
    files: BTreeMap<(u64, u64), u64>,
    /// Something in it has changed lately.
    moves: bool,
}

/// Bytes of a directory's files. More than anything, where there are too many or too deep ones.
///
/// A node can move files from a directory that is not counted yet to one that is. So where entries
/// change, all is counted several times, each time in another order, of which the node sees nothing
/// (it cannot be notified, and reading leaves no trace); and what was seen once counts.
fn files(folder: &OwnedFd) -> io::Result<u64> {
    let mut seen = Seen::default();
    for _ in 0..PASSES {
        if !count(folder, &mut seen)? {
            return Ok(u64::MAX);
        }
        if !seen.moves {
            break;
        }
    }
    Ok(seen.files.into_values().fold(0, u64::saturating_add))
}

/// A number that nobody foresees.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Adds what there is once. False: there is too much.
fn count(folder: &OwnedFd, seen: &mut Seen) -> io::Result<bool> {
    let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
    let mut entries = 0_u64;
    let mut levels = vec![sweep::reopen(folder)?];
    // One level after the other: a directory's name is not asked for twice.
    for _ in 0..DEPTH {
        let mut below = Vec::new();
        while !levels.is_empty() {
            let left = u64::try_from(levels.len()).unwrap_or(u64::MAX);
            let chosen = usize::try_from(random()? % left).unwrap_or(0);
            let level = levels.swap_remove(chosen);
            let changed = rustix::fs::fstat(&level)?.st_ctime;
            seen.moves |= now.saturating_sub(changed) < RECENT;
            for entry in Dir::read_from(&level)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                entries += 1;
                if entries > ENTRIES {
                    return Ok(false);
                }
                let stat = match statat(&level, name, AtFlags::SYMLINK_NOFOLLOW) {
                    // Removed meanwhile.
                    Err(Errno::NOENT) => continue,
                    stat => stat?,
                };
                let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                let size = blocks.saturating_mul(BLOCK);
                let file = (stat.st_dev, stat.st_ino);
                let known = seen.files.entry(file).or_default();
                *known = size.max(*known);
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    match sweep::open_directory(&level, name, Some(file)) {
                        // Removed, or another: then it is elsewhere, or its name is a link's.
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => seen.moves = true,
                        opened => below.push(opened?),
                    }
                }
            }
        }
        if below.is_empty() {
            return Ok(true);
        }
        levels = below;
    }
    // As deep as nobody means it.
    Ok(false)
}

/// Bytes of files that have no name any more, and are open. None: a process does not let them be
/// counted, as one does whose program's file cannot be read.
///
/// Not seen are those that are mapped and not open, and those that are on their way in a socket.
fn unlinked(processes: &[Pid]) -> io::Result<Option<u64>> {
    let mut files = BTreeMap::new();
    for pid in processes {
        let mut counted = false;
        for _ in 0..TRIES {
            counted = open_files(*pid, &mut files)?;
            if counted {
                break;
            }
        }
        if !counted {
            return Ok(None);
        }
    }
    Ok(Some(files.into_values().fold(0, u64::saturating_add)))
}

/// Adds the open files of a process that have no name, and their bytes. False: not all can be seen. An
/// error: the launcher itself cannot look.
fn open_files(pid: Pid, files: &mut BTreeMap<(u64, u64), u64>) -> io::Result<bool> {
    let thread = match thread(pid) {
        Ok(Some(thread)) => thread,
        Ok(None) => return Ok(true),
        // Where `/proc` tells of processes that can be looked into only, it tells nothing of others.
        Err(error) if is_hidden(&error) => return Ok(test_kill_process(pid).is_err()),
        Err(error) => return Err(error),
    };
    let entries = match fs::read_dir(thread.join("fd")) {
        Ok(entries) => entries,
        Err(error) if is_hidden(&error) => return Ok(!is_there(&thread)?),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let Some(entry) = unless_gone(entry)? else {
            break;
        };
        match fs::metadata(entry.path()) {
            Ok(data) if data.is_file() && data.nlink() == 0 => {
                let bytes = data.blocks().saturating_mul(BLOCK);
                files.insert((data.dev(), data.ino()), bytes);
            }
            Ok(_) => {}
            // Who is root may list all, and looks into those of its like only.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
            // It was closed meanwhile.
            Err(error) => {
                unless_gone::<()>(Err(error))?;
            }
        }
    }
    is_there(&thread)
}

/// Whether a process is gone, or does not let itself be looked into.
fn is_hidden(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a thread has not ended: of one that ends, memory goes first and files after it.
fn is_there(thread: &Path) -> io::Result<bool> {
    Ok(pages(thread, 0)? > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn directory_closed_by_its_owner_is_counted() {
        let outer = tempfile::tempdir().unwrap();
        let directory = open(outer.path());
        let closed = outer.path().join("a/b");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("file"), vec![1; 1 << 20]).unwrap();
        for path in [&closed, &outer.path().join("a"), outer.path()] {
            set_permissions(path, Permissions::from_mode(0o000)).unwrap();
        }
        assert!(files(&directory).unwrap() >= 1 << 20);
    }

    #[test]
    fn link_in_place_of_directory_is_not_followed() {
        let outer = tempfile::tempdir().unwrap();
        let victim = outer.path().join("victim");
        fs::create_dir(&victim).unwrap();
        set_permissions(&victim, Permissions::from_mode(0o500)).unwrap();
        let place = open(outer.path());
        let directory = outer.path().join("name");
        fs::create_dir(&directory).unwrap();
        let is = fs::metadata(&directory).unwrap();
        let is = Some((is.dev(), is.ino()));
        fs::remove_dir(&directory).unwrap();
        // A link, and another directory: neither is what was seen.
        std::os::unix::fs::symlink(&victim, &directory).unwrap();
        assert!(sweep::open_directory(&place, c"name", is).is_err());
        fs::remove_file(&directory).unwrap();
        fs::rename(&victim, &directory).unwrap();
        assert!(sweep::open_directory(&place, c"name", is).is_err());
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o500);
    }

    /// Each pass alone misses a file that is always in the directory that is not looked into.
    #[test]
    fn file_moved_between_passes_counts_once_seen() {
        let outer = tempfile::tempdir().unwrap();
        let directory = open(outer.path());
        let (one, other) = (outer.path().join("one"), outer.path().join("other"));
        fs::write(&one, vec![1; 1 << 20]).unwrap();
        let mut seen = Seen::default();
        assert!(count(&directory, &mut seen).unwrap());
        assert!(seen.moves, "it was made just now");
        fs::rename(&one, outer.path().with_extension("away")).unwrap();
        fs::write(&other, vec![1; 1 << 19]).unwrap();
        assert!(count(&directory, &mut seen).unwrap());
        fs::remove_file(outer.path().with_extension("away")).unwrap();
        let bytes: u64 = seen.files.into_values().sum();
        assert!(bytes >= (1 << 20) + (1 << 19));
    }

    /// A hundred looks at files that another thread moves all the time.
    #[test]
    fn files_in_motion_are_never_missed() {
        const FILES: usize = 16;
        const SIZE: usize = 1 << 16;
        let outer = tempfile::tempdir().unwrap();
        let directory = open(outer.path());
        for name in ["a", "b", "c", "d"] {
            fs::create_dir(outer.path().join(name)).unwrap();
        }
        let path = |place: usize, file: usize| {
            let place = ["a", "b", "c", "d"][place % 4];
            outer.path().join(place).join(file.to_string())
        };
        for file in 0..FILES {
            fs::write(path(0, file), vec![1; SIZE]).unwrap();
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 0;
                while !done.load(order) {
                    for file in 0..FILES {
                        fs::rename(path(at, file), path(at + 1, file)).unwrap();
                    }
                    at += 1;
                }
            });
            let half = u64::try_from(FILES * SIZE / 2).unwrap();
            let least = (0..100).map(|_| files(&directory).unwrap()).min();
            done.store(true, order);
            assert!(least.unwrap() > half, "{least:?}");
        });
    }

    /// "Cannot look" is "over the limit".
    #[test]
    fn directory_that_cannot_be_read_is_over_limit() {
        let outer = tempfile::tempdir().unwrap();
        let own = rustix::process::getpid();
        let limits = Limits {
            processes: 1 << 20,
            memory: u64::MAX,
            ..Limits::default()
        };
        let over = |it: &OwnedFd| Usage::default().over(own, it, &limits);
        assert_eq!(over(&open(outer.path())), None);
        fs::write(outer.path().join("file"), "").unwrap();
        let said = over(&open(&outer.path().join("file"))).unwrap();
        assert!(said.starts_with("more than can be counted"), "{said}");
    }

    #[test]
    fn only_what_has_ended_is_nothing() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        assert!(open_files(pid, &mut BTreeMap::new()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(open_files(pid, &mut BTreeMap::new()).unwrap());
        assert!(sweep::children(pid).unwrap().is_empty());
        for (number, gone) in [
            (libc::ESRCH, true),
            (libc::ENOENT, true),
            (libc::EMFILE, false),
            (libc::EACCES, false),
            (libc::EIO, false),
        ] {
            let error = io::Error::from_raw_os_error(number);
            let found = unless_gone::<()>(Err(error));
            assert_eq!(found.is_ok(), gone, "{number}");
        }
    }
}
