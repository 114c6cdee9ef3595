//! Where services are found by their FQSN: in files, in `Service` objects and `ConfigMaps`.
//!
//! Must not know runs.

mod category;
pub mod cluster;
pub mod files;
pub mod gzip;
