//! What is said between host and interpreter, one JSON text a packet, and the socket that carries it.
//!
//! May not block: the parent must go on reaping while the host is slow to read. So what cannot be sent
//! now waits in a queue, in order, and nothing is dropped.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Raised whenever the other side would misunderstand.
pub const PROTOCOL: u32 = 2;

/// A packet from the host is a few dozen bytes: what a call needs comes through the call's own pipe.
const PACKET_MAX: usize = 4096;

/// To the host.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Message<'a> {
    /// The interpreter serves.
    Ready {
        version: &'a str,
        executable: &'a str,
        protocol: u32,
    },
    /// The call runs as this process, which leads a process group of the same number.
    Forked { call: u64, pid: i32 },
    /// There is no process for the call.
    Refused { call: u64, error: &'a str },
    /// The call's process has ended. It stays unreaped, and so its number its own, until the host says
    /// that it is over with it: till then the host may signal the process and its group.
    Ended {
        call: u64,
        #[serde(flatten)]
        how: End,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    ExitCode(i32),
    Signal(i32),
}

/// What the host sends along with a call, in this order.
pub struct Call {
    pub id: u64,
    pub request: OwnedFd,
    pub result: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

pub enum Received {
    Call(Call),
    /// The host is done with a call: it signals its process no more.
    Over(u64),
    /// A call that cannot be carried out as it came.
    Unusable {
        call: u64,
        error: String,
    },
    /// Nothing more for now.
    Nothing,
    HostGone,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Packet {
    Call(u64),
    Over(u64),
}

/// The host's end of the conversation as this process sees it.
pub struct Host {
    socket: OwnedFd,
    unsent: VecDeque<Vec<u8>>,
}

impl Host {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            unsent: VecDeque::new(),
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Queues a message; `flush` sends it.
    pub fn say(&mut self, message: &Message<'_>) -> Result<(), String> {
        let text =
            serde_json::to_vec(message).map_err(|e| format!("cannot write a message: {e}"))?;
        self.unsent.push_back(text);
        Ok(())
    }

    /// Sends what the socket takes now. False: the host is gone.
    pub fn flush(&mut self) -> Result<bool, String> {
        while let Some(text) = self.unsent.front() {
            let sent = sendmsg(
                &self.socket,
                &[IoSlice::new(text)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match sent {
                // A packet goes whole or not at all.
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Ok(true),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(false),
                Err(e) => return Err(format!("cannot send to the host: {e}")),
            }
        }
        Ok(true)
    }

    /// Takes the next packet if there is one.
    pub fn receive(&self) -> Result<Received, String> {
        let mut text = [0_u8; PACKET_MAX];
        // Room for more than a call has, so that too many are noticed and closed, not cut off.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut text)],
                &mut control,
                flags,
            ) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET | Errno::NOTCONN) => return Ok(Received::HostGone),
                Err(e) => return Err(format!("cannot receive from the host: {e}")),
            }
        };
        // Taken before anything else is looked at: a descriptor left in the buffer would stay open.
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        if got.bytes == 0 {
            return Ok(Received::HostGone);
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(format!("a packet from the host is over {PACKET_MAX} bytes"));
        }
        let text = text.get(..got.bytes).unwrap_or_default();
        let packet = serde_json::from_slice(text).map_err(|e| {
            let text = String::from_utf8_lossy(text);
            format!(
                "a packet from the host is neither {{\"call\":ID}} nor {{\"over\":ID}}: {text}: {e}"
            )
        })?;
        let call = match packet {
            Packet::Call(call) => call,
            Packet::Over(call) => return Ok(Received::Over(call)),
        };
        let cut = got.flags.contains(ReturnFlags::CTRUNC);
        Ok(match <[OwnedFd; 4]>::try_from(fds) {
            Ok([request, result, stdout, stderr]) if !cut => Received::Call(Call {
                id: call,
                request,
                result,
                stdout,
                stderr,
            }),
            Ok(_) => Received::Unusable {
                call,
                error: "some of the call's descriptors could not be received".to_owned(),
            },
            Err(fds) => Received::Unusable {
                call,
                error: format!(
                    "{} of the call's 4 descriptors could be received{}",
                    fds.len(),
                    if cut { " (too many open files?)" } else { "" }
                ),
            },
        })
    }
}
