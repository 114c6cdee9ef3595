//! The house's rule: a room uses only what stands left of it, and the pure rooms touch nothing
//! outside.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from left to right.
const ROOMS: [&str; 10] = [
    "value", "engine", "template", "api", "catalog", "executor", "local", "operator", "server",
    "cli",
];

/// Rooms without I/O, and what they may not name.
const PURE: [&str; 4] = ["value", "engine", "template", "api"];
const IMPURE: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "tokio",
    "rustix",
    "::now()",
    "HashMap",
];

/// Of kube, the types of the API use what describes them, and nothing that talks to a cluster.
/// The other pure rooms do not know it.
fn names_kube(room: &str, line: &str) -> bool {
    let any = |words: &[&str]| words.iter().any(|word| line.contains(word));
    let describes = room == "api"
        && any(&["CustomResource", "KubeSchema", "kube::core"])
        && !any(&["Client", "Api<", "runtime"]);
    line.contains("kube::") && !describes
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("tests") {
            // Tests beside the code are checked as little as those at the end of a file.
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// What is wrong with one source of a room.
fn wrong(room: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let place = ROOMS.iter().position(|known| *known == room).unwrap();
    // Tests at the end of a file may use what they like; comments are words.
    let code = text.split("#[cfg(test)]").next().unwrap();
    for line in code
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
    {
        for right in &ROOMS[place + 1..] {
            if line.contains(&format!("crate::{right}"))
                || line.contains(&format!("super::super::{right}"))
            {
                wrong.push(format!("{room} uses {right}: {line}"));
            }
        }
        if PURE.contains(&room) {
            for impure in IMPURE {
                if line.contains(impure) {
                    wrong.push(format!("{room} names {impure}: {line}"));
                }
            }
            if names_kube(room, line) {
                wrong.push(format!("{room} names kube: {line}"));
            }
        }
    }
    wrong
}

#[test]
fn uses_point_left() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    let mut seen = 0;
    for room in ROOMS {
        for path in sources(&src.join(room)) {
            seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} has no head", path.display());
            assert!(
                text.to_lowercase().contains("must not") || text.contains("may not"),
                "{}: its head does not say what it must not do",
                path.display()
            );
            all.extend(wrong(room, &text));
        }
    }
    assert!(seen > 20, "only {seen} sources were read");
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_check_bites() {
    assert_eq!(wrong("engine", "use crate::local::Clock;\n").len(), 1);
    assert_eq!(
        wrong("engine", "use std::fs::File;\nlet now = Instant::now();\n").len(),
        2
    );
    assert_eq!(wrong("engine", "use kube::CustomResource;\n").len(), 1);
    assert_eq!(wrong("api", "use kube::{Client, KubeSchema};\n").len(), 1);
    assert_eq!(wrong("api", "use kube::CustomResource;\n").len(), 0);
    assert_eq!(
        wrong("local", "use crate::engine::state::RunState;\n").len(),
        0
    );
}

/// A name that a tenant wrote goes into a URL as it is, unless it was checked; and one object that
/// cannot be read makes a whole list unreadable, unless each is read by itself. Both are done in
/// `src/operator/object.rs`, so nothing else asks for objects.
#[test]
fn objects_are_asked_for_in_one_file() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in sources(&src) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        seen += usize::from(code.contains("object::get("));
        for call in [
            ".get_opt(",
            ".get_metadata",
            ".get_status(",
            ".list(&",
            ".list_metadata(",
        ] {
            let asks = code.contains(call);
            let is_that_file = path.ends_with("src/operator/object.rs");
            assert!(!asks || is_that_file, "{}: {call}", path.display());
        }
    }
    assert!(seen > 5, "only {seen} files ask for objects");
}

/// Unsafe code is in five files: starting processes, in the sandbox and outside of it, answering their
/// calls and becoming another user there, and adopting a descriptor in the extension module.
#[test]
fn unsafe_code_is_in_five_files() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&src) {
        let text = fs::read_to_string(&path).unwrap();
        let allowed = [
            "src/executor/spawn.rs",
            "src/executor/fence/broker.rs",
            "src/executor/fence/identity.rs",
            "src/executor/fence/launch.rs",
            "src/python/src/os.rs",
        ]
        .iter()
        .any(|file| path.ends_with(file));
        let used = text.contains("unsafe {")
            || text.contains("unsafe fn")
            || text.contains("allow(unsafe_code");
        assert!(allowed || !used, "{}", path.display());
    }
}
