//! Faults at every step: the operator between a proxy that does it every harm an API server, a
//! network or a kill can do, and a real API server; and the local driver likewise.
//!
//! `proxy` does the harm, `process` is the operator as a process, `witness` sees what really came to
//! pass, `effects` likewise what processes really do, `scenario` says what is run, `plan` what goes wrong in
//! it. `play` carries a plan out, `came` compares what comes of it, `judge` says what has to come of it
//! where work was lost. `matrix` runs each scenario once clean and then with each plan, `report` counts.
//! `broken` shows that all this notices an operator that breaks a rule.

mod broken;
mod came;
mod effects;
mod judge;
mod local;
mod matrix;
mod monkey;
mod outages;
mod plan;
mod play;
mod process;
mod proxy;
mod proxy_tests;
mod report;
mod scenario;
mod witness;

use crate::cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn the_same_comes_of_a_run_whatever_goes_wrong() {
    cluster::definitions();
    matrix::run(cluster::client(cluster::FAKE).await).await;
}
