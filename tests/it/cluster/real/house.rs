//! The one operator of the cluster, and who may change it.
//!
//! Most tests only need that it is there (`operator`). Those that upgrade, end or uninstall it take
//! it for themselves (`operator_alone`); what they leave is put right for whoever comes next.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::tool;

/// Whether the operator is as `cluster install` leaves it.
static AS_INSTALLED: RwLock<bool> = RwLock::const_new(false);

/// The operator, shared.
pub struct Shared(#[expect(dead_code, reason = "it is held")] RwLockReadGuard<'static, bool>);

/// The operator, for this test alone. It counts as changed until the test says otherwise.
pub struct Alone(RwLockWriteGuard<'static, bool>);

impl Alone {
    /// Nothing was changed, or all of it back.
    pub fn unchanged(mut self) {
        *self.0 = true;
    }
}

/// The operator as `cluster install` leaves it. Nobody changes it while this is held.
pub async fn operator() -> Shared {
    let shared = AS_INSTALLED.read().await;
    if *shared {
        return Shared(shared);
    }
    drop(shared);
    let mut alone = AS_INSTALLED.write().await;
    if !*alone {
        install();
        *alone = true;
    }
    Shared(alone.downgrade())
}

/// The operator as `cluster install` leaves it, for this test alone.
pub async fn operator_alone() -> Alone {
    let mut alone = AS_INSTALLED.write().await;
    if !*alone {
        install();
    }
    *alone = false;
    Alone(alone)
}

/// The operator in whatever state, even missing, for this test alone.
pub async fn anything() -> Alone {
    let mut alone = AS_INSTALLED.write().await;
    *alone = false;
    Alone(alone)
}

fn install() {
    tool("cluster", &["install"]);
}

/// The value of an argument of the operator that is installed.
pub fn argument(name: &str) -> String {
    let arguments = super::run(
        "kubectl",
        &[
            "get",
            "deployment/apscli",
            "--namespace=apscli",
            "--output=jsonpath={range .spec.template.spec.containers[0].args[*]}{@}{\"\\n\"}{end}",
        ],
    );
    let found = arguments
        .lines()
        .find_map(|line| line.strip_prefix(&format!("--{name}=")));
    found.unwrap_or_else(|| panic!("{arguments}")).to_owned()
}
