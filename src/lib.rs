//! apscli: workflows as graphs of small jobs, on one machine or in Kubernetes.
//!
//! How data walks through the house:
//! ```text
//! text ─template→ Spec ─graph→ Graph ─step→ Decision ─executor→ Outcome ─fold→ RunState ─→ screen / result JSON
//!        pure             pure         pure            I/O                 pure
//! ```
//! A room may use only what stands left of it (checked by a test):
//! ```text
//! value ← engine ← template ← api ← catalog ← executor ← local ← operator ← server ← cli ← main
//! ```

#[cfg(feature = "program")]
pub mod api;
#[cfg(feature = "program")]
pub mod catalog;
#[cfg(feature = "program")]
pub mod cli;
pub mod engine;
pub mod executor;
#[cfg(feature = "program")]
pub mod local;
#[cfg(feature = "program")]
pub mod operator;
#[cfg(feature = "program")]
pub mod server;
pub mod template;
pub mod value;
