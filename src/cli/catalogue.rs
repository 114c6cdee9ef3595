//! `apscli list`, `register`, `unregister`: the catalogue on disk.
//!
//! Must not change a category file but through the catalogue.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::catalog::files::Registration;
use crate::engine::name::Fqsn;
use crate::template::{Filling, Template};

use super::inspect::read_text;
use super::shown::one_line;
use super::{Context, Failure};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only this service, or those whose name begins so
    #[arg(long, value_name = "NAME")]
    fqsn: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    /// The service's name, as `oracle.peo.cloud.vm_allocation`
    #[arg(long)]
    fqsn: Fqsn,
    /// Its template
    #[arg(long, value_name = "FILE", alias = "wf_template")]
    template: PathBuf,
    /// The version of this template
    #[arg(long, default_value = "1.0")]
    version: String,
    /// What the service is for
    #[arg(long)]
    desc: Option<String>,
    /// When it was released
    #[arg(long)]
    release: Option<String>,
    /// The version that runs when none is asked for [default: the one there is, else the newest registered]
    #[arg(long, value_name = "VERSION", alias = "default_version")]
    default_version: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct UnregisterArgs {
    /// The service's name
    #[arg(long)]
    fqsn: Fqsn,
    /// Only this version
    #[arg(long)]
    version: Option<String>,
}

pub(super) fn list(context: &Context, args: &ListArgs) -> Result<ExitCode, Failure> {
    let (services, unread) = context.catalogue().list()?;
    for error in &unread {
        context.printer.error(error);
    }
    let wanted = |name: &str| {
        args.fqsn
            .as_ref()
            .is_none_or(|prefix| name.starts_with(prefix.as_str()))
    };
    let rows: Vec<_> = services.iter().filter(|(name, _)| wanted(name)).collect();
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(7);
    let mut text = format!(
        "{:width$}  {:10}  {:20}  DESCRIPTION\n",
        "SERVICE", "DEFAULT", "VERSIONS"
    );
    for (name, service) in rows {
        let versions: Vec<&str> = service.templates.keys().map(String::as_str).collect();
        let versions = one_line(&versions.join(","));
        let default = one_line(service.default_version.as_deref().unwrap_or("-"));
        let desc = one_line(service.desc.as_deref().unwrap_or(""));
        let name = one_line(name);
        let row = format!("{name:width$}  {default:10}  {versions:20}  {desc}");
        let _ = writeln!(text, "{}", row.trim_end());
    }
    context.printer.data(&text);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn register(context: &Context, args: &RegisterArgs) -> Result<ExitCode, Failure> {
    let text = read_text(&args.template)?;
    Template::read(&args.template.display().to_string(), &text)?.graph(Filling::Later)?;
    let new = Registration {
        version: args.version.clone(),
        template: args.template.clone(),
        desc: args.desc.clone(),
        release: args.release.clone(),
        default_version: args.default_version.clone(),
    };
    context.catalogue().register(&args.fqsn, &new)?;
    context.printer.say(&format!(
        "registered {} version {}",
        args.fqsn, args.version
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unregister(context: &Context, args: &UnregisterArgs) -> Result<ExitCode, Failure> {
    context
        .catalogue()
        .unregister(&args.fqsn, args.version.as_deref())?;
    let what = args
        .version
        .as_ref()
        .map_or(String::new(), |version| format!(" version {version}"));
    context
        .printer
        .say(&format!("unregistered {}{what}", args.fqsn));
    Ok(ExitCode::SUCCESS)
}
