//! Where services are found by their FQSN: in files here, in a cluster later.
//!
//! Must not know runs.

pub mod files;
