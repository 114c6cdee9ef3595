//! A user and group of its own for each node that root starts.
//!
//! Root without capabilities still owns root's files, and so could change them. The launcher takes a
//! number that no other process has, gives it the node's directory, and the node's process becomes
//! that user. The launcher stays root, so that it can end the node and remove its directory; on files
//! it acts as that user, so that it can look into the node's processes and reaches nothing that the
//! node does not reach.
//!
//! Must not let a node run as root.
//!
//! Unsafe code: the user and group of file accesses, which only libc sets.
#![allow(unsafe_code)]

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Gid, Uid, fchown};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
    configure_capability_in_ambient_set, set_capabilities, set_capabilities_secure_bits,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Numbers that no user has: above those of containers, and below those that a signed number cannot
/// hold; where these are not mapped, above ordinary users and below those of `systemd`.
const RANGES: [Range<u32>; 2] = [0x7000_0000..0x7FFF_0000, 50_000..60_000];
/// How many numbers are tried.
const TRIES: usize = 64;
/// What the launcher needs.
const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::KILL, "CAP_KILL"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
];
/// What the node keeps where Landlock decides which files it can open: root's templates can often be
/// read by root only.
pub(super) const KEPT: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// A user that is the node's alone, for as long as this is held.
#[derive(Debug)]
pub(super) struct Identity {
    number: u32,
    /// Whether the launcher may read what file modes forbid.
    reads: bool,
    /// Its name says that the number is taken.
    _held: OwnedFd,
}

impl Identity {
    /// Takes a number and gives it the node's directory, if this process is root.
    pub(super) fn take(directory: impl AsFd) -> Result<Option<Self>, String> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let refused = |why: &str| {
            format!(
                "the sandbox needs a user for each node where root starts it, and {why}; run apscli as a user other than root"
            )
        };
        let has = capabilities(None)
            .map_err(|error| refused(&format!("capabilities cannot be read: {error}")))?;
        let lacks = NEEDED.iter().find(|(it, _)| !has.effective.contains(*it));
        if let Some((_, name)) = lacks {
            return Err(refused(&format!("{name} is missing")));
        }
        let range = range().ok_or_else(|| {
            refused("no user from 50000 to 59999 is mapped (/proc/self/uid_map, gid_map)")
        })?;
        let (number, held) = (0..TRIES).find_map(|_| hold(&range)).ok_or_else(|| {
            refused(&format!(
                "none from {} to {} is free",
                range.start, range.end
            ))
        })?;
        fchown(directory, Some(uid(number)), Some(gid(number)))
            .map_err(|error| refused(&format!("its directory cannot be given to it: {error}")))?;
        Ok(Some(Self {
            number,
            reads: has.permitted.contains(KEPT),
            _held: held,
        }))
    }

    /// Makes this process, which must have one thread and is about to become the program, that user.
    /// `landlocked`: what can be opened is bounded.
    pub(super) fn assume(&self, landlocked: bool) -> Result<(), String> {
        let words =
            |error: rustix::io::Errno| format!("cannot become user {}: {error}", self.number);
        let (uid, gid) = (uid(self.number), gid(self.number));
        let kept = if landlocked && self.reads {
            KEPT
        } else {
            CapabilitySet::empty()
        };
        set_thread_groups(&[]).map_err(words)?;
        set_thread_res_gid(gid, gid, gid).map_err(words)?;
        // access(2) asks with no capabilities otherwise. Without CAP_SETPCAP that is so.
        let _ = set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
        set_keep_capabilities(true).map_err(words)?;
        set_thread_res_uid(uid, uid, uid).map_err(words)?;
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: kept,
        };
        set_capabilities(None, sets).map_err(words)?;
        if !kept.is_empty() {
            // Else exec would take it away.
            configure_capability_in_ambient_set(kept, true).map_err(words)?;
        }
        Ok(())
    }

    /// From now on this process, the launcher, accesses files as that user. The kernel lets it look
    /// into processes of that user then, also without `CAP_SYS_PTRACE`.
    pub(super) fn act(&self, landlocked: bool) -> Result<(), String> {
        let words = |what: &dyn std::fmt::Display| {
            format!("cannot act as user {} on files: {what}", self.number)
        };
        // SAFETY: sets numbers of this process. The second call of each says what is set.
        let set = unsafe {
            libc::setfsgid(self.number);
            libc::setfsuid(self.number);
            [libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX)]
        };
        if set != [self.number.cast_signed(); 2] {
            return Err(words(&"the kernel refuses"));
        }
        if landlocked && self.reads {
            let mut sets = capabilities(None).map_err(|error| words(&error))?;
            sets.effective |= KEPT;
            set_capabilities(None, sets).map_err(|error| words(&error))?;
        }
        Ok(())
    }

    /// From now on the launcher accesses files as root again, if it is root.
    pub(super) fn rest() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // SAFETY: sets numbers of this process.
        unsafe {
            libc::setfsuid(0);
            libc::setfsgid(0);
        }
    }
}

fn uid(number: u32) -> Uid {
    Uid::from_raw(number)
}

fn gid(number: u32) -> Gid {
    Gid::from_raw(number)
}

/// The first range that is mapped, for users and for groups.
fn range() -> Option<Range<u32>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let (uids, gids) = (read("uid_map"), read("gid_map"));
    let is_mapped = |range: &Range<u32>| holds(&uids, range) && holds(&gids, range);
    RANGES.into_iter().find(is_mapped)
}

/// Whether one line of a map holds all of a range.
fn holds(map: &str, range: &Range<u32>) -> bool {
    let mut lines = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (first, _, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some((first.ok()?, length.ok()?))
    });
    lines.any(|(first, length)| {
        first <= u64::from(range.start) && u64::from(range.end) <= first.saturating_add(length)
    })
}

/// Takes a random number of a range, if nobody has it. The name of a socket says so to other
/// launchers; of other users of the number, in a small range, there may be processes.
fn hold(range: &Range<u32>) -> Option<(u32, OwnedFd)> {
    let mut random = [0_u8; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok()?;
    let size = range.end.checked_sub(range.start).filter(|it| *it > 0)?;
    let number = range.start + u32::from_ne_bytes(random) % size;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.ok()?;
    let name = format!("apscli-sandbox-user-{number}");
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?;
    bind(&socket, &address).ok()?;
    let is_small = size < 1 << 20;
    (!is_small || is_unused(number)).then_some((number, socket))
}

/// Whether no process that can be seen is of this user.
fn is_unused(number: u32) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else {
        return false;
    };
    entries.flatten().all(|entry| {
        let name = entry.file_name();
        let is_process = name
            .to_str()
            .is_some_and(|it| it.bytes().all(|it| it.is_ascii_digit()));
        !is_process || entry.metadata().map_or(true, |data| data.uid() != number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_range_partly_mapped_is_not_used() {
        let whole = "         0          0 4294967295\n";
        assert!(holds(whole, &RANGES[0]) && holds(whole, &RANGES[1]));
        let container = "0 100000 65536";
        assert!(!holds(container, &RANGES[0]) && holds(container, &RANGES[1]));
        for map in ["0 1000 1", "0 1000 1\n1 100000 55000", "", "0 0 x"] {
            assert!(!holds(map, &RANGES[0]), "{map}");
            assert!(!holds(map, &RANGES[1]), "{map}");
        }
    }

    #[test]
    fn user_number_held_is_not_given_twice() {
        let range = RANGES[1].start..RANGES[1].start + 4;
        let held: Vec<_> = (0..200).filter_map(|_| hold(&range)).collect();
        let mut numbers: Vec<u32> = held.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), held.len());
        assert!((1..=4).contains(&held.len()));
    }
}
