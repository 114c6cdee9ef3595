//! `apscli strip-finalizers`: no operator is left, and its pods shall be deletable.
//!
//! Must not decide which pods those are.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Builder;

use crate::operator::options::Scope;
use crate::operator::strip::{Operators, Order, strip};
use crate::template::duration;

use super::logging::{self, Format};
use super::{Context, Failure};

/// Whose finalizers are taken off.
#[derive(Debug, Args)]
pub(super) struct StripArgs {
    /// A namespace with pods of runs; may be repeated [default: all namespaces]
    #[arg(long = "namespace", value_name = "NAMESPACE", value_parser = super::namespace)]
    namespaces: Vec<String>,
    /// Wait first until no pod is left there with these labels: the operator's own
    #[arg(long, value_name = "NAMESPACE/SELECTOR", value_parser = operators)]
    after_pods: Option<Operators>,
    /// Longest time for all of it: seconds, or as 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

fn operators(text: &str) -> Result<Operators, String> {
    match text.split_once('/') {
        Some((namespace, selector))
            if super::namespace(namespace).is_ok() && !selector.is_empty() =>
        {
            Ok(Operators {
                namespace: namespace.to_owned(),
                selector: selector.to_owned(),
            })
        }
        _ => Err("expected NAMESPACE/SELECTOR, as apscli/app=operator".to_owned()),
    }
}

/// Takes the operator's finalizer off all pods of runs.
pub(super) fn strip_finalizers(context: &Context, args: &StripArgs) -> Result<ExitCode, Failure> {
    logging::start(logging::filter("info")?, Format::Text)?;
    let order = Order {
        scope: if args.namespaces.is_empty() {
            Scope::Cluster
        } else {
            Scope::Namespaces(args.namespaces.clone())
        },
        after: args.after_pods.clone(),
        within: args.timeout,
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let stripped = runtime.block_on(strip(&order))?;
    context.printer.say(&format!(
        "took the finalizer off {stripped} pods; none is left"
    ));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_may_hold_slashes() {
        let found = operators("tools/app.kubernetes.io/name=apscli,x!=y").unwrap();
        assert_eq!(found.namespace, "tools");
        assert_eq!(found.selector, "app.kubernetes.io/name=apscli,x!=y");
        for wrong in ["", "tools", "/a=b", "tools/"] {
            assert!(operators(wrong).is_err(), "{wrong}");
        }
    }
}
