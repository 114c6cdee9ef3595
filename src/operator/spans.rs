//! What stands on every line of the log that is about a run or a node.
//!
//! Must not write lines itself.

use tracing::{Span, error_span};

/// The span of a run. (Of the level `error`: a span that the filter leaves out would be missing
/// from the warnings inside it.)
#[must_use]
pub fn run(namespace: &str, name: &str, uid: &str) -> Span {
    // Given as values and not for display, so that they are quoted: names are the user's.
    error_span!("run", namespace, run = name, uid)
}

/// The span of one attempt of a node, inside the run's.
#[must_use]
pub fn node(name: &str, attempt: u32) -> Span {
    error_span!("node", node = name, attempt)
}
