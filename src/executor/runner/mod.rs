//! The runner: a process of its own that carries out attempts for an operator, in the fence and
//! beside the operator's credentials, not with them.
//!
//! ```text
//! operator ─frames over one stream→ runner ─hands→ processes in the fence
//! ```
//! Frames are a length (four bytes, big end first) and so much JSON. The operator is the only
//! client. A connection is the life of what was started over it: when it ends, so does all that,
//! because nobody could tell any more what came of it.
//!
//! Must not decide what runs, and must not believe what it reads to be short.

pub mod check;
pub mod serve;

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::event::{KillCause, Outcome};
use crate::executor::decision::Work;
use crate::executor::fence::Limits;

/// The version of these messages; both sides are of one program, so there is only one.
pub const PROTOCOL: u32 = 1;
/// Most bytes of a frame: a folder of scripts in base64, and room to spare.
pub const MOST: usize = 8 * 1024 * 1024;

/// Names a piece of work for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// The UID of its run.
    pub run: String,
    /// The name of its node.
    pub node: String,
    /// Which try.
    pub attempt: u32,
}

/// A file of a template's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Where it is, relative to that folder.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// What is in it, in base64.
    pub content: String,
}

/// What an operator asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Files for a run, before its first start.
    Files {
        /// The run's UID.
        run: String,
        /// The files.
        files: Vec<Script>,
    },
    /// Carry out an attempt as soon as there is room.
    Start {
        /// Which.
        piece: Piece,
        /// What is to be done.
        work: Box<Work>,
        /// Whether it may use a network.
        network: bool,
    },
    /// End an attempt; one that has not begun will not begin.
    Kill {
        /// Which.
        piece: Piece,
        /// Why.
        cause: KillCause,
    },
    /// The run is over: its files may go.
    Over {
        /// The run's UID.
        run: String,
    },
}

/// What a runner says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The first word.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// How many attempts it carries out at once.
        slots: usize,
        /// What each may use.
        limits: Limits,
    },
    /// An attempt has to wait, in words.
    Waits {
        /// Which.
        piece: Piece,
        /// What for.
        why: String,
    },
    /// An attempt has begun.
    Began {
        /// Which.
        piece: Piece,
    },
    /// An attempt is over.
    Ended {
        /// Which.
        piece: Piece,
        /// What came of it.
        outcome: Box<Outcome>,
        /// What was enforced on it, in words.
        enforced: Option<String>,
    },
}

/// A message as a frame.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let length = u32::try_from(length).ok().filter(|_| length <= MOST);
    let length = length.ok_or_else(|| io::Error::other("the message is larger than a frame"))?;
    for (slot, byte) in bytes.iter_mut().zip(length.to_be_bytes()) {
        *slot = byte;
    }
    Ok(bytes)
}

/// The length that a frame's first bytes tell of.
pub fn length(head: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > MOST {
        return Err(io::Error::other("a frame is longer than any may be"));
    }
    Ok(length)
}

fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; length(head)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_and_a_long_one_is_not_begun() {
        let over = Request::Over {
            run: "r".to_owned(),
        };
        let bytes = frame(&over).unwrap();
        let read: Request = receive(&mut bytes.as_slice()).unwrap();
        assert!(matches!(read, Request::Over { run } if run == "r"));
        let mut long = u32::MAX.to_be_bytes().to_vec();
        long.extend(b"{}");
        assert!(receive::<Request>(&mut long.as_slice()).is_err());
        assert!(frame(&"x".repeat(MOST)).is_err());
    }
}
