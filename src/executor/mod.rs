//! The hands: they carry out one attempt and say what came of it.
//!
//! A hand blocks its thread until the attempt is over. The thread that starts a process waits
//! for it too, and so outlives it: the kernel's parent-death signal follows the *thread* that
//! spawned, and here it can only fire when the whole program dies. (A single spawner thread for
//! all was the other way; it would have stood in the way of starting on both cores.)
//!
//! Must not decide anything: what to start, when to end it and what an outcome means is the
//! engine's.

pub mod control;
pub mod decision;
pub mod fence;
pub mod frame;
pub mod lines;
#[cfg(feature = "program")]
pub mod pod;
pub mod process;
pub mod python;
#[cfg(feature = "program")]
pub mod runner;
pub mod scripts;
pub mod spawn;
