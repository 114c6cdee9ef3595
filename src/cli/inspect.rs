//! `apscli validate` and `apscli graph`: look at a template without running it.
//!
//! Must not start anything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::engine::graph::Graph;
use crate::engine::view;
use crate::template::{Filling, Template, read_params};

use super::{Context, Failure};

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// The template
    template: PathBuf,
    /// A file of parameters; without it, what hangs on a parameter is not checked
    #[arg(long, value_name = "FILE", alias = "wp")]
    params: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    /// The template
    template: PathBuf,
    /// A file of parameters
    #[arg(long, value_name = "FILE", alias = "wp")]
    params: Option<PathBuf>,
    /// What to draw
    #[arg(long, value_enum, default_value_t)]
    format: GraphFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum GraphFormat {
    #[default]
    Ascii,
    Dot,
    Mermaid,
    Json,
}

pub(super) fn validate(context: &Context, args: &ValidateArgs) -> Result<ExitCode, Failure> {
    let graph = graph_of(&args.template, args.params.as_deref())?;
    let nodes = graph.len();
    let plural = if nodes == 1 { "node" } else { "nodes" };
    context.printer.say(&format!(
        "{}: valid, {nodes} {plural}",
        args.template.display()
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn graph(context: &Context, args: &GraphArgs) -> Result<ExitCode, Failure> {
    let graph = graph_of(&args.template, args.params.as_deref())?;
    match args.format {
        GraphFormat::Ascii => context.printer.data(&view::ascii(&graph)),
        GraphFormat::Dot => context.printer.data(&view::dot(&graph)),
        GraphFormat::Mermaid => context.printer.data(&view::mermaid(&graph)),
        GraphFormat::Json => context.printer.json(&view::json(&graph)),
    }
    Ok(ExitCode::SUCCESS)
}

fn graph_of(template: &Path, params: Option<&Path>) -> Result<Graph, Failure> {
    let text = read_text(template)?;
    let template = Template::read(&template.display().to_string(), &text)?;
    let params = match params {
        Some(path) => Some(read_params(&path.display().to_string(), &read_text(path)?)?),
        None => None,
    };
    let filling = params.as_ref().map_or(Filling::Later, Filling::With);
    Ok(template.graph(filling)?)
}

/// Reads a text file of the user's.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!(
            "{}: byte {} is no UTF-8; expected a text",
            path.display(),
            at + 1
        )
        .into()
    })
}
