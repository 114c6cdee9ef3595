//! What the processes of an attempt use together, which no limit of the kernel's bounds without a
//! control group of their own.
//!
//! Looked at from time to time, so it can be passed for a moment. Must not end anything.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, open, openat, statat};
use rustix::process::{Pid, test_kill_process};

use super::{Limits, sweep};

/// Most files and folders of an attempt, and how deep they may be.
const ENTRIES: u64 = 20_000;
const DEPTH: usize = 100;
/// How often it is tried to list a process's files: the thread that was asked may just have ended.
const TRIES: usize = 3;
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
    pub(super) fn over(&mut self, parent: Pid, folder: &Path, limits: &Limits) -> Option<String> {
        let most = usize::try_from(limits.processes).unwrap_or(usize::MAX);
        let processes = sweep::descendants(parent, most);
        let count = u64::try_from(processes.len()).unwrap_or(u64::MAX);
        if count > limits.processes {
            return Some(format!("more than {} processes", limits.processes));
        }
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let resident: u64 = processes.iter().map(|pid| resident(*pid) * page).sum();
        // What they share counts once for each there; whether it matters is looked at more closely.
        let much = resident > limits.memory && {
            let proportional = processes
                .iter()
                .map(|pid| proportional(*pid).unwrap_or_else(|| self::resident(*pid) * page));
            proportional.sum::<u64>() > limits.memory
        };
        // One that starts another has its memory twice for a moment.
        if std::mem::replace(&mut self.much, much) && much {
            return Some(format!("more than {} of memory", bytes(limits.memory)));
        }
        let unnamed = unlinked(&processes);
        // One that is just being replaced by another program hides for a moment.
        let hid = std::mem::replace(&mut self.hidden, unnamed.is_none());
        if hid && unnamed.is_none() {
            return Some(HIDDEN.to_owned());
        }
        let kept = files(folder).saturating_add(unnamed.unwrap_or(0));
        (kept > limits.folder).then(|| format!("more than {} in files", bytes(limits.folder)))
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
/// nothing is to be had of the process itself. None: it is over.
fn thread(pid: Pid) -> io::Result<Option<PathBuf>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))?;
    let mut threads = tasks.flatten().map(|entry| entry.path());
    Ok(threads.find(|thread| is_there(thread)))
}

/// A number of pages of a thread's process: all that it has mapped (0), what of it is in memory (1).
fn pages(thread: &Path, field: usize) -> u64 {
    let text = fs::read_to_string(thread.join("statm")).unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(field);
    pages.and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// Pages in memory.
fn resident(pid: Pid) -> u64 {
    let thread = thread(pid).ok().flatten();
    thread.map_or(0, |thread| pages(&thread, 1))
}

/// Bytes in memory, of what is shared its part only.
fn proportional(pid: Pid) -> Option<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Bytes of a folder's files. What cannot be looked into counts as more than anything: its owner
/// may have closed it for that.
fn files(folder: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut taken = 0_u64;
    let mut entries = 0_u64;
    let opened = open(folder, flags, Mode::empty()).or_else(|_| {
        rustix::fs::chmod(folder, Mode::RWXU)?;
        open(folder, flags, Mode::empty())
    });
    let Ok(top) = opened else {
        return u64::MAX;
    };
    let mut levels = vec![top];
    // One level after the other: a folder's name is not asked for twice.
    for _ in 0..DEPTH {
        let mut below = Vec::new();
        for level in &levels {
            for entry in Dir::read_from(level).ok().into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                entries += 1;
                if entries > ENTRIES {
                    return u64::MAX;
                }
                let Ok(stat) = statat(level, name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                taken = taken.saturating_add(blocks.saturating_mul(BLOCK));
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    continue;
                }
                let opened = openat(level, name, flags, Mode::empty()).or_else(|_| {
                    chmodat(level, name, Mode::RWXU, AtFlags::empty())?;
                    openat(level, name, flags, Mode::empty())
                });
                match opened {
                    Ok(opened) => below.push(opened),
                    // Removed meanwhile.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(_) => return u64::MAX,
                }
            }
        }
        if below.is_empty() {
            return taken;
        }
        levels = below;
    }
    // As deep as nobody means it.
    u64::MAX
}

/// Bytes of files that have no name any more, and are open. None: a process does not let them be
/// counted, as one does whose program's file cannot be read.
///
/// Not seen are those that are mapped and not open, and those that are on their way in a socket.
fn unlinked(processes: &[Pid]) -> Option<u64> {
    let mut files = BTreeMap::new();
    for pid in processes {
        let mut tries = (0..TRIES).map(|_| open_files(*pid, &mut files));
        tries.find(|counted| *counted)?;
    }
    Some(files.into_values().fold(0, u64::saturating_add))
}

/// Adds the open files of a process that have no name, and their bytes. False: not all can be seen.
fn open_files(pid: Pid, files: &mut BTreeMap<(u64, u64), u64>) -> bool {
    let thread = match thread(pid) {
        Ok(Some(thread)) => thread,
        Ok(None) => return true,
        // Where `/proc` tells of processes that can be looked into only, it tells nothing of others.
        Err(_) => return test_kill_process(pid).is_err(),
    };
    let Ok(entries) = fs::read_dir(thread.join("fd")) else {
        return !is_there(&thread);
    };
    for entry in entries.flatten() {
        match fs::metadata(entry.path()) {
            Ok(data) if data.is_file() && data.nlink() == 0 => {
                let bytes = data.blocks().saturating_mul(BLOCK);
                files.insert((data.dev(), data.ino()), bytes);
            }
            // Who is root may list all, and looks into those of its like only.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return false,
            // Or it was closed meanwhile.
            Ok(_) | Err(_) => {}
        }
    }
    is_there(&thread)
}

/// Whether a thread has not ended: of one that ends, memory goes first and files after it.
fn is_there(thread: &Path) -> bool {
    pages(thread, 0) > 0
}
