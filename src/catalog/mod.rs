//! Where services are found by their FQSN: in files, in `Service` objects and `ConfigMaps`; and how
//! files become such objects.
//!
//! Must not know runs.

mod category;
pub mod cluster;
pub mod files;
pub mod gzip;
pub mod package;
