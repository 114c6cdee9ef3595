//! The rules of a run, pure: what may run, what happened, what is next.
//!
//! ```text
//! Spec ─graph→ Graph ─┐
//!                     ├─step→ Decision … (an executor acts) … Outcome
//! Event ─fold→ RunState ─┘                                      │
//!   ▲───────────────────────────────────────────────────────────┘
//! ```
//! Every driver (one machine, cluster, tests) turns the same wheel: `step` says what to do next,
//! the driver records each decision as an [`event::Event`] *before* it acts, folds it, acts, and
//! folds what came back. A restart folds the recorded events and goes on; recovery is no mode.
//!
//! Must not: await, read a clock, touch files, sockets, the environment or Kubernetes, or
//! iterate a `HashMap`. Time and all else come in as arguments, so that the same events give the
//! same decisions always.
//!
//! Cost: `fold` and `step` work only on what the news touches. A run of n nodes and e edges
//! costs O((n + e) log n) in all, not O(n) a step; that is why [`state::RunState`] keeps sets of
//! what is runnable, and why the reasons of idle nodes ([`step::waiting`]) are computed only when
//! somebody asks.

pub mod event;
pub mod expr;
pub mod graph;
pub mod name;
pub mod spec;
pub mod state;
pub mod step;
pub mod view;
