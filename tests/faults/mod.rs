//! Faults at every step: the operator between a proxy that does it every harm an API server, a
//! network or a kill can do, and a real API server; and the local driver likewise.
//!
//! `proxy` does the harm, `process` is the operator as a process, `witness` sees what really came to
//! pass, `scenario` says what is run, `plan` runs each scenario once clean and then once for each
//! write and each fault, and compares.

mod local;
mod monkey;
mod outages;
mod plan;
mod process;
mod proxy;
mod proxy_tests;
mod scenario;
mod witness;

use crate::cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn the_same_comes_of_a_run_whatever_goes_wrong() {
    cluster::definitions();
    plan::matrix(cluster::client(cluster::FAKE).await).await;
}
