//! The README's examples, really run.
//!
//! A comment stands before every fenced block and says what the block is:
//! - `<!-- file: NAME -->` is a file, written as it stands (`#!` makes it executable). One that
//!   looks like a template must pass `apscli validate` and be used by some command.
//! - `<!-- run -->` is a transcript: `$ command` lines are run in order, by one shell, among the
//!   files; what they print on stdout must be what the README says.
//! - `<!-- run on a cluster -->` is a transcript too, for the test on real nodes
//!   (`cluster::real::the_readmes_cluster_section`).
//! - `<!-- run on fake nodes -->` likewise, for the test on nodes that only play their pods
//!   (`cluster::fake::catalogue`).
//! - `<!-- not run: REASON -->` is only shown, and may not look like a template.
//!
//! A block without such a comment fails: no example goes untested by oversight.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in tests a panic is the report"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../../README.md");
const APSCLI: &str = env!("CARGO_BIN_EXE_apscli");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// How much longer than the README says a node may take on a busy machine, in seconds.
const SLACK: f64 = 20.0;

#[derive(Debug, PartialEq)]
enum Role {
    File(String),
    Run,
    RunOnCluster,
    RunOnFakeNodes,
    Shown,
}

#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    role: Role,
    text: String,
}

/// (A manifest may hold one; the cluster reads it.)
fn looks_like_a_template(text: &str) -> bool {
    !text.starts_with("apiVersion:") && (text.contains("action:") || text.contains("\"action\""))
}

fn role(comment: &str) -> Option<Role> {
    let words = comment.strip_prefix("<!--")?.strip_suffix("-->")?.trim();
    match words.split_once(':') {
        Some(("file", name)) => Some(Role::File(name.trim().to_owned())),
        Some(("not run", reason)) if !reason.trim().is_empty() => Some(Role::Shown),
        None if words == "run" => Some(Role::Run),
        None if words == "run on a cluster" => Some(Role::RunOnCluster),
        None if words == "run on fake nodes" => Some(Role::RunOnFakeNodes),
        _ => None,
    }
}

/// All fenced blocks, or the first that breaks the rules.
fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = (1..).zip(text.lines());
    while let Some((line, content)) = lines.next() {
        if content.trim_start().starts_with("~~~")
            || content.trim_start() != content && content.trim_start().starts_with("```")
        {
            return Err(format!(
                "line {line}: a block must be fenced with ``` at the line's beginning"
            ));
        }
        if !content.starts_with("```") {
            if !content.trim().is_empty() {
                before = content.trim();
            }
            continue;
        }
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, content)) => writeln!(text, "{content}").unwrap(),
                None => return Err(format!("line {line}: the block is never closed")),
            }
        }
        let role = role(before)
            .ok_or_else(|| format!("line {line}: the block has no comment that says what it is"))?;
        before = "";
        let is_template = looks_like_a_template(&text);
        match role {
            Role::Shown if is_template => {
                return Err(format!(
                    "line {line}: a template must be a file, so that it is tested"
                ));
            }
            Role::Run | Role::RunOnCluster | Role::RunOnFakeNodes if !text.starts_with("$ ") => {
                return Err(format!("line {line}: a transcript begins with a command"));
            }
            _ => blocks.push(Block { line, role, text }),
        }
    }
    Ok(blocks)
}

/// A shell script that prints the transcript again. A command that fails must have its status
/// shown by `echo $?` in the next line.
fn script(transcript: &str) -> String {
    let commands: Vec<&str> = transcript
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    let mut script = String::from("s=0\n");
    for (index, command) in commands.iter().enumerate() {
        let shown = command.replace('\'', r"'\''");
        writeln!(
            script,
            "printf '%s\\n' '$ {shown}'; (exit $s)\n{command}\ns=$?"
        )
        .unwrap();
        if commands.get(index + 1) != Some(&"echo $?") {
            script.push_str("[ $s -eq 0 ] || exit $s\n");
        }
    }
    script
}

/// Whether two transcripts are the same but for when and how fast they ran.
fn same(expected: &str, actual: &str) -> bool {
    let (expected, actual): (Vec<_>, Vec<_>) =
        (expected.lines().collect(), actual.lines().collect());
    expected.len() == actual.len()
        && expected
            .iter()
            .zip(actual)
            .all(|(expected, actual)| same_line(expected, actual))
}

fn same_line(expected: &str, actual: &str) -> bool {
    let words = |line: &str| {
        line.split(' ')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (left, right) = (words(expected), words(actual));
    expected == actual
        || (!expected.starts_with("$ ")
            && left.len() == right.len()
            && left
                .iter()
                .zip(&right)
                .all(|(left, right)| same_word(left, right)))
}

fn same_word(expected: &str, actual: &str) -> bool {
    let seconds = |word: &str| {
        let (whole, tenths) = word.split_once('.')?;
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(whole) && digits(tenths) && tenths.len() == 1).then(|| word.parse::<f64>().unwrap())
    };
    let shape = |word: &str| {
        word.bytes()
            .map(|byte| {
                if byte.is_ascii_digit() {
                    '0'
                } else {
                    char::from(byte)
                }
            })
            .collect::<String>()
    };
    // As kubectl has them.
    let is_age = |word: &str| {
        let shape = shape(word).replace('0', "");
        word.len() > shape.len() && matches!(shape.as_str(), "s" | "ms" | "m")
    };
    let is_time = |word: &str| {
        let shape = shape(word);
        matches!(shape.trim_matches(['"', ',']), "0000-00-00" | "00:00:00")
    };
    match (seconds(expected), seconds(actual)) {
        (Some(expected), Some(actual)) => actual > expected - 0.15 && actual < expected + SLACK,
        _ if is_time(expected) => shape(expected) == shape(actual),
        _ if is_age(expected) => is_age(actual),
        _ => expected == actual,
    }
}

/// A folder like a checkout with the catalogue, in which `apscli` is the one that was just built.
fn checkout() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-R")
        .arg(Path::new(ROOT).join("metadata"))
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(copied.success());
    fs::create_dir_all(dir.path().join("target/debug")).unwrap();
    fs::create_dir(dir.path().join(".bin")).unwrap();
    for link in ["target/debug/apscli", ".bin/apscli"] {
        symlink(APSCLI, dir.path().join(link)).unwrap();
    }
    // The workspace is built: this test is part of it. Any other use of cargo is a mistake.
    let cargo = "#!/bin/sh\n[ \"$*\" = 'build --workspace' ]\n";
    write_file(&dir.path().join(".bin/cargo"), cargo);
    dir
}

fn write_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    if text.starts_with("#!") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A shell for examples: it finds the `apscli` that was just built, and leaves nothing at home.
fn shell(dir: &Path, script: &str) -> (bool, String, String) {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("sh");
    command
        .env("PATH", format!("{}:{path}", dir.join(".bin").display()))
        .env("XDG_STATE_HOME", dir.join(".state"))
        .env_remove("APSCLI_METADATA");
    answer(&mut command, dir, script)
}

fn answer(shell: &mut Command, dir: &Path, script: &str) -> (bool, String, String) {
    let output = shell
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn every_example_does_what_the_readme_says() {
    let blocks = blocks(README).unwrap();
    let dir = checkout();
    let transcripts: Vec<&Block> = blocks
        .iter()
        .filter(|block| block.role == Role::Run)
        .collect();
    let mut templates = 0;
    for block in &blocks {
        let Role::File(name) = &block.role else {
            continue;
        };
        let path = dir.path().join(name);
        assert!(!path.exists(), "line {}: {name} stands twice", block.line);
        write_file(&path, &block.text);
        if looks_like_a_template(&block.text) {
            templates += 1;
            let (valid, _, said) = shell(dir.path(), &format!("apscli validate {name}"));
            assert!(valid, "line {}: {said}", block.line);
            assert!(said.contains("valid"), "line {}: {said}", block.line);
            let used = transcripts
                .iter()
                .any(|block| block.text.contains(&format!("--template {name}")));
            assert!(
                used,
                "line {}: no command of the README uses {name}",
                block.line
            );
        }
    }
    for block in &transcripts {
        compare(block, shell(dir.path(), &script(&block.text)));
    }
    // An extractor that finds nothing would pass all of the above.
    assert!(templates >= 3, "found {templates} templates");
    assert!(
        transcripts.len() >= 3,
        "found {} transcripts",
        transcripts.len()
    );
}

fn compare(block: &Block, (succeeded, printed, said): (bool, String, String)) {
    assert!(
        succeeded && same(&block.text, &printed),
        "line {}: the README says\n{}\nbut it printed\n{printed}\nand said\n{said}",
        block.line,
        block.text
    );
}

/// Runs what needs a cluster, against the one that `tests/cluster/with` has lent: with its state
/// and its programs, and with the cargo that builds.
pub fn run_on_a_cluster() {
    run_all(&Role::RunOnCluster, |_| {});
}

/// Runs what needs an API server and an operator, in the namespace that the kubeconfig names.
pub fn run_on_fake_nodes(kubeconfig: &Path) {
    run_all(&Role::RunOnFakeNodes, |shell| {
        shell.env("KUBECONFIG", kubeconfig);
    });
}

fn run_all(wanted: &Role, prepare: impl Fn(&mut Command)) {
    let dir = checkout();
    symlink(Path::new(ROOT).join("tests"), dir.path().join("tests")).unwrap();
    let blocks = blocks(README).unwrap();
    let mut ran = 0;
    for block in &blocks {
        match &block.role {
            Role::File(name) => write_file(&dir.path().join(name), &block.text),
            role if role == wanted => {
                let mut shell = Command::new("sh");
                prepare(&mut shell);
                compare(block, answer(&mut shell, dir.path(), &script(&block.text)));
                ran += 1;
            }
            _ => {}
        }
    }
    assert!(ran >= 2, "found {ran} transcripts");
}

#[test]
fn every_path_of_the_house_exists_and_every_room_is_named() {
    let quoted: Vec<&str> = README.split('`').collect();
    for path in &quoted {
        let of_the_house = ["src/", "metadata/", "tests/", ".ci/"]
            .iter()
            .any(|room| path.starts_with(room));
        if of_the_house && !path.contains(|c: char| c.is_whitespace() || "*<".contains(c)) {
            assert!(
                Path::new(ROOT).join(path).exists(),
                "the README names {path}, which does not exist"
            );
        }
    }
    for room in fs::read_dir(Path::new(ROOT).join("src")).unwrap() {
        let room = room.unwrap();
        if room.file_type().unwrap().is_dir() {
            let name = format!("src/{}/", room.file_name().to_str().unwrap());
            assert!(
                quoted.contains(&name.as_str()),
                "the README does not name {name}"
            );
        }
    }
}

#[test]
fn every_option_of_the_program_is_in_the_readme() {
    for command in [
        "run",
        "validate",
        "graph",
        "list",
        "register",
        "unregister",
        "package",
        "strip-finalizers",
        "crd",
        "completions",
    ] {
        assert!(
            README.contains(&format!("`apscli {command}")),
            "the README does not explain apscli {command}"
        );
        let help = Command::new(APSCLI)
            .args([command, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let options: Vec<&str> = help
            .lines()
            .filter_map(|line| {
                line.split_whitespace()
                    .find(|word| word.starts_with("--"))
                    .filter(|_| line.trim_start().starts_with('-'))
            })
            .filter(|option| *option != "--help")
            .collect();
        assert!(options.contains(&"--metadata"), "{help}");
        for option in options {
            // Where a value may be left out, its name stands with the option.
            let option = option.replace(['<', '>'], "");
            assert!(
                README.contains(&option),
                "the README does not explain apscli {command} {option}"
            );
        }
    }
}

#[test]
fn a_block_that_would_go_untested_is_an_error() {
    let error = |text: &str| blocks(text).unwrap_err();
    assert_eq!(
        error("words\n```\nx\n```\n"),
        "line 2: the block has no comment that says what it is"
    );
    assert_eq!(
        error("<!-- run -->\n```\n$ true\n```\n```\nx\n```\n"),
        "line 5: the block has no comment that says what it is"
    );
    assert_eq!(
        error("<!-- not run: -->\n```\nx\n```\n"),
        "line 2: the block has no comment that says what it is"
    );
    assert_eq!(
        error("<!-- not run: why -->\n```\na: {action: b}\n```\n"),
        "line 2: a template must be a file, so that it is tested"
    );
    assert_eq!(
        error("<!-- run -->\n```\ntrue\n```\n"),
        "line 2: a transcript begins with a command"
    );
    assert_eq!(
        error("<!-- run -->\n```\n$ true\n"),
        "line 2: the block is never closed"
    );
    assert_eq!(
        error("- item\n  ```\n  x\n  ```\n"),
        "line 2: a block must be fenced with ``` at the line's beginning"
    );
    let file = Block {
        line: 3,
        role: Role::File("a.yaml".to_owned()),
        text: "x\n".to_owned(),
    };
    assert_eq!(
        blocks("<!-- file: a.yaml -->\n\n```yaml\nx\n```\n").unwrap(),
        [file]
    );
}

#[test]
fn a_transcript_differs_where_it_matters() {
    assert!(same("a  Succeeded   2.0\n", "a  Succeeded   2.7\n"));
    assert!(same("a  Succeeded   9.8\n", "a  Succeeded  10.1\n"));
    assert!(same(
        "\"2026-01-01 10:00:00\",\n",
        "\"2031-12-24 23:59:59\",\n"
    ));
    assert!(same("vm  5s\n", "vm  1m10s\n"));
    assert!(!same("vm  5s\n", "vm  s\n"));
    assert!(!same("vm  5s\n", "vm  5\n"));
    assert!(!same("a  Succeeded   2.0\n", "a  Succeeded   1.0\n"));
    assert!(!same("a  Succeeded   2.0\n", "a  Failed      2.0\n"));
    assert!(!same("ip: 10.6.1.110\n", "ip: 10.6.1.111\n"));
    assert!(!same("a\n", "a\nb\n"));
    assert!(!same("1\n", "0\n"));
    assert!(!same("\"2026-01-01 10:00:00\",\n", "null,\n"));

    let dir = checkout();
    let (succeeded, printed, _) = shell(
        dir.path(),
        &script("$ false\n$ echo $?\n1\n$ echo 'a b'\na b\n"),
    );
    assert!(succeeded);
    assert_eq!(printed, "$ false\n$ echo $?\n1\n$ echo 'a b'\na b\n");
    let (succeeded, _, _) = shell(dir.path(), &script("$ false\n$ true\n"));
    assert!(!succeeded, "a failure must be shown");
    let (succeeded, _, _) = shell(dir.path(), &script("$ cargo build\n"));
    assert!(
        !succeeded,
        "only the whole workspace has the extension module"
    );
}
