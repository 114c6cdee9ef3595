//! `apscli package`: a catalogue as a Helm chart.
//!
//! Must not replace a folder that it did not make.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::catalog::package::{Chart, PACKAGED, Wanted, chart};

use super::{CANNOT_RUN, Context, Failure};

#[derive(Debug, Args)]
pub(super) struct PackageArgs {
    /// The catalogue's folder
    catalogue: PathBuf,
    /// The chart's folder; it is made, or replaced if this command made it
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// The chart's name
    #[arg(long, default_value = "apscli-services", value_parser = chart_name)]
    name: String,
    /// The chart's version
    #[arg(long, value_name = "VERSION", default_value = "0.1.0", value_parser = chart_version)]
    chart_version: String,
    /// Only this service, or those whose name begins so
    #[arg(long, value_name = "NAME")]
    fqsn: Option<String>,
    /// Take in scripts and folders whose name begins with a dot, such as .config; without this they are left out
    #[arg(long)]
    include_dot_files: bool,
}

fn chart_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && text.len() <= 53 && !text.ends_with('-') && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 53 of a-z 0-9 -, beginning with a letter".to_owned())
    }
}

/// A version as Helm wants it: `1.2.3`, or `1.2.3-rc.1+build`.
fn chart_version(text: &str) -> Result<String, String> {
    let (rest, build) = text
        .split_once('+')
        .map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest
        .split_once('-')
        .map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let is_number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let is_word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let numbers: Vec<&str> = core.split('.').collect();
    let words = [pre, build]
        .into_iter()
        .flatten()
        .flat_map(|words| words.split('.'));
    if numbers.len() == 3 && numbers.into_iter().all(is_number) && words.into_iter().all(is_word) {
        Ok(text.to_owned())
    } else {
        Err("expected a version as 1.2.3".to_owned())
    }
}

pub(super) fn package(context: &Context, args: &PackageArgs) -> Result<ExitCode, Failure> {
    let wanted = Wanted {
        name: args.name.clone(),
        version: args.chart_version.clone(),
        prefix: args.fqsn.clone(),
        dot_files: args.include_dot_files,
    };
    let chart = match chart(&args.catalogue, &wanted) {
        Ok(chart) => chart,
        Err(errors) => {
            for error in &errors {
                context.printer.error(error);
            }
            return Ok(ExitCode::from(CANNOT_RUN));
        }
    };
    for note in &chart.notes {
        context.printer.say(&format!("note: {note}"));
    }
    write(&chart, &args.output)?;
    let count = chart.services.len();
    let plural = if count == 1 { "service" } else { "services" };
    context.printer.say(&format!(
        "{}: a chart of {count} {plural}",
        args.output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Writes the chart beside its place and then puts it there, so that it is never half there.
fn write(chart: &Chart, output: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", output.display());
    may_replace(output)?;
    let beside = |ending: &str| {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{ending}-{}", std::process::id()));
        output.with_file_name(name)
    };
    let (new, old) = (beside("new"), beside("old"));
    if let Some(parent) = output.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let written = write_files(chart, &new).and_then(|()| {
        if output.exists() {
            fs::rename(output, &old)?;
        }
        fs::rename(&new, output)
    });
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::AlreadyExists {
            let _ = fs::remove_dir_all(&new);
        }
        return Err(failed(error).into());
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(failed)?;
    }
    Ok(())
}

fn write_files(chart: &Chart, folder: &Path) -> io::Result<()> {
    // A new one: in one that was there already somebody else's links could lead anywhere.
    fs::create_dir(folder)?;
    for (path, content) in &chart.files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(())
}

/// A folder with something of somebody else's in it is not touched.
fn may_replace(output: &Path) -> Result<(), Failure> {
    let is_empty = match fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot list {}: {error}", output.display()).into()),
    };
    let mut head = String::new();
    let read = File::open(output.join("Chart.yaml"))
        .and_then(|file| file.take(1024).read_to_string(&mut head));
    if is_empty || read.is_ok() && head.lines().next() == Some(PACKAGED) {
        return Ok(());
    }
    Err(format!(
        "{} holds something that `apscli package` did not make; expected a new folder, or a chart \
         made by it",
        output.display()
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_names_and_versions_are_helms() {
        for good in ["1.2.3", "0.1.0", "1.0.0-rc.1+b-7"] {
            assert!(chart_version(good).is_ok(), "{good}");
        }
        for bad in [
            "1", "1.2", "1.2.03", "1.2.3-", "1.2.3+", "v1.2.3", "1.2.3\n", "1.2.3: x",
        ] {
            assert!(chart_version(bad).is_err(), "{bad}");
        }
        for bad in ["", "A", "a_b", "a-", "-a", "a: b", "9a"] {
            assert!(chart_name(bad).is_err(), "{bad}");
        }
    }
}
