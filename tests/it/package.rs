//! `apscli package`: a catalogue becomes a chart, the same each time, or all that is in the way is said.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Done, Place};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NODE: &str = r#"{"a": {"action": {"type": "cmd", "cmd": ["echo"]}}}"#;

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_path_buf();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

/// A catalogue with the service `cat.svc`, whose template is `svc/1.template`.
fn place(template: &str) -> Place {
    let place = Place::new();
    let entry = r#"{"svc": {"workflow_template_path": {"1": "svc/1.template"}}}"#;
    place.write("meta/cat.json", entry);
    place.write("meta/svc/1.template", template);
    place
}

fn package(place: &Place) -> Done {
    place.apscli(&["package", "meta", "--output", "chart"])
}

fn index(place: &Place) -> Value {
    serde_json::from_str(&place.read("chart/files/services.json")).unwrap()
}

/// What it says of a catalogue that it refuses; nothing is written then.
fn refusal(place: &Place) -> String {
    let done = package(place);
    assert_eq!(done.status, 2, "{}", done.stderr);
    assert!(!place.path("chart").exists());
    done.stderr
}

#[test]
fn the_shipped_chart_is_that_of_the_shipped_catalogue() {
    let place = Place::new();
    let metadata = format!("{ROOT}/metadata");
    for chart in ["one", "two"] {
        let done = place.apscli(&["package", &metadata, "--output", chart]);
        assert_eq!(done.status, 0, "{}", done.stderr);
    }
    let made = files(&place.path("one"));
    assert_eq!(made, files(&place.path("two")));
    assert!(made.len() > 10, "{:?}", made.keys());
    assert!(
        made == files(&Path::new(ROOT).join("charts/apscli-services")),
        "it is stale: apscli package metadata --output charts/apscli-services"
    );
}

#[test]
fn templates_and_scripts_are_kept_as_they_are() {
    let template = "{\"a\": {\"action\": {\"type\": \"cmd\", \"cmd\": \"./run.sh\"}, \"param\": {\"x\": $x}}}\r\n\t";
    let place = place(template);
    place.write("meta/svc/run.sh", "#!/bin/sh\necho {{ .Values }}\n");
    place.write("meta/svc/lib/deep/data", b"\0\xff");
    place.write("meta/svc/lib/params.json", r#"{"vm": 1}"#);
    place.write("meta/svc/__pycache__/x", "x");
    let done = package(&place);
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert_eq!(done.stderr, "chart: a chart of 1 service\n");
    let made = files(&place.path("chart/files/catalogue"));
    let made: Vec<(&str, &[u8])> = made
        .iter()
        .map(|(path, content)| (path.to_str().unwrap(), content.as_slice()))
        .collect();
    let expected: [(&str, &[u8]); 4] = [
        ("svc/1.template", template.as_bytes()),
        ("svc/lib/deep/data", b"\0\xff"),
        ("svc/lib/params.json", br#"{"vm": 1}"#),
        ("svc/run.sh", b"#!/bin/sh\necho {{ .Values }}\n"),
    ];
    assert_eq!(made, expected);
    let index = index(&place);
    let service = &index["services"][0];
    assert_eq!(service["name"], "cat-svc");
    assert_eq!(service["defaultVersion"], "1");
    let scripts = serde_json::json!([
        {"folder": "svc", "path": ""},
        {"folder": "svc.lib", "path": "lib"},
        {"folder": "svc.lib.deep", "path": "lib/deep"},
    ]);
    assert_eq!(service["scripts"], scripts);
    let deep = serde_json::json!([{"key": "data", "file": "svc/lib/deep/data", "binary": true}]);
    assert_eq!(index["folders"][2]["files"], deep);
}

#[test]
fn services_share_the_folders_of_their_templates_and_no_others() {
    let place = place(NODE);
    let entries = r#"{
        "svc": {"workflow_template_path": {"1": "svc/1.template", "2": "svc/2.template"}},
        "s-v_c": {"workflow_template_path": "svc/2.template"},
        "beside": {"workflow_template_path": "beside.template"}
    }"#;
    place.write("meta/cat.json", entries);
    place.write("meta/svc/2.template", NODE);
    place.write("meta/svc/run.sh", "true");
    place.write("meta/tools/t.sh", "true");
    place.write("meta/beside.template", NODE);
    let done = package(&place);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let index = index(&place);
    let scripts = |number: usize| index["services"][number]["scripts"].to_string();
    assert_eq!(scripts(0), r#"[{"folder":"tools","path":"tools"}]"#);
    assert_eq!(scripts(1), r#"[{"folder":"svc","path":""}]"#);
    assert_eq!(scripts(2), scripts(1));
    assert_eq!(index["folders"].as_array().unwrap().len(), 2);
    assert_eq!(index["services"][1]["name"], "cat-s-v-c");

    let some = [
        "package", "meta", "-o", "chart", "--fqsn", "cat.s-v", "--name", "few",
    ];
    assert_eq!(place.apscli(&some).status, 0);
    let head = place.read("chart/Chart.yaml");
    assert!(head.contains("\nname: few\n"), "{head}");
    assert!(
        !place.path("chart/files/catalogue/tools").exists(),
        "the old chart went"
    );
    let none = ["package", "meta", "-o", "chart", "--fqsn", "dog"];
    let done = place.apscli(&none);
    assert_eq!(done.status, 2);
    assert!(
        done.stderr
            .contains("there is no service in it whose name begins with dog"),
        "{}",
        done.stderr
    );
}

#[test]
fn what_would_be_lost_or_lead_out_is_refused() {
    let escapes = r#"{
        "a": {"action": {"type": "cmd", "cmd": "./../../x.sh"}},
        "b": {"action": {"type": "api", "module": "m", "function": "f", "path": ["lib/../.."]}},
        "c": {"action": {"type": "cmd", "cmd": "../$later"}},
        "d": {"action": {"type": "cmd", "cmd": "/bin/true"}}
    }"#;
    let leads_out = place(escapes);
    leads_out.write("secret", "canary");
    symlink(leads_out.path("secret"), leads_out.path("meta/svc/link")).unwrap();
    symlink(
        leads_out.path("nowhere"),
        leads_out.path("meta/svc/dangling"),
    )
    .unwrap();
    symlink(leads_out.path("meta/svc"), leads_out.path("meta/svc/round")).unwrap();
    leads_out.write("meta/svc/a b", "");
    let said = refusal(&leads_out);
    for (place, what) in [
        (
            "svc/1.template: a.cmd: `./../../x.sh`: ",
            "leads out of the template's folder",
        ),
        (
            "svc/1.template: b.path: `lib/../..`: ",
            "leads out of the template's folder",
        ),
        ("meta/svc/link: ", "which is not in the catalogue"),
        ("meta/svc/dangling: ", "cannot find it"),
        ("meta/svc/round: ", "is a link to a folder"),
        ("meta/svc/a b: ", "cannot be a key of a ConfigMap"),
    ] {
        let told = said
            .lines()
            .any(|line| line.contains(place) && line.contains(what));
        assert!(told, "{place}{what} is not in:\n{said}");
    }
    assert_eq!(
        said.lines()
            .filter(|line| line.starts_with("error: "))
            .count(),
        6,
        "{said}"
    );
    assert!(!said.contains("canary"));

    let outside = place(NODE);
    outside.write("t.template", NODE);
    let entry = r#"{"svc": {"workflow_template_path": "../t.template"}}"#;
    outside.write("meta/cat.json", entry);
    assert!(refusal(&outside).contains("which is not in the catalogue"));
}

#[test]
fn a_link_inside_the_catalogue_is_the_file() {
    let place = place(NODE);
    place.write("meta/common/run.sh", "true");
    symlink("../common/run.sh", place.path("meta/svc/run.sh")).unwrap();
    assert_eq!(package(&place).status, 0);
    assert_eq!(place.read("chart/files/catalogue/svc/run.sh"), "true");
}

#[test]
fn what_is_too_large_is_refused_with_the_limit() {
    let large = place(NODE);
    large.write("meta/svc/one", vec![b'x'; 600 * 1024]);
    large.write("meta/svc/two", vec![b'x'; 600 * 1024]);
    let said = refusal(&large);
    assert!(
        said.contains("its files have 1228800 bytes, and a ConfigMap holds 1048576"),
        "{said}"
    );
    fs::create_dir(large.path("meta/svc/more")).unwrap();
    fs::rename(large.path("meta/svc/two"), large.path("meta/svc/more/two")).unwrap();
    assert_eq!(package(&large).status, 0);

    let long = format!("{NODE}{}", " ".repeat(1 << 20));
    let said = refusal(&place(&long));
    assert!(said.contains("cat.svc: its templates have 1048"), "{said}");
}

#[test]
fn versions_with_scripts_in_two_folders_are_refused() {
    let place = place(NODE);
    let entry =
        r#"{"svc": {"workflow_template_path": {"1": "svc/1.template", "2": "new/2.template"}}}"#;
    place.write("meta/cat.json", entry);
    place.write("meta/new/2.template", NODE);
    place.write("meta/svc/run.sh", "true");
    assert_eq!(package(&place).status, 0);
    fs::remove_dir_all(place.path("chart")).unwrap();
    place.write("meta/new/run.sh", "false");
    let said = refusal(&place);
    assert!(
        said.contains("cat.svc: its templates stand in `new` and `svc`"),
        "{said}"
    );
}

#[test]
fn a_broken_catalogue_is_refused() {
    let wrong = place(r#"{"a": {"action": {"type": "cmd"}}}"#);
    wrong.write("meta/broken.json", "{");
    wrong.write("meta/svc/marked", "\u{feff}x");
    wrong.write(
        "meta/odd.json",
        r#"{"a b": {"workflow_template_path": "svc/1.template"},
            "gone": {"workflow_template_path": "svc/gone.template"},
            "d": {"workflow_template_path": "svc/1.template", "default_version": "9"}}"#,
    );
    let said = refusal(&wrong);
    for part in [
        "broken.json",
        "1.template:1:",
        "`odd.a b` is no fully qualified service name",
        "gone.template: cannot find it",
        "svc/marked: begins with a byte order mark",
        "odd.d: its default version 9 is none of its versions",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    let twice = place(NODE);
    twice.write(
        "meta/cat.yaml",
        "svc: {workflow_template_path: svc/1.template}",
    );
    assert!(refusal(&twice).contains("cat.svc: its category stands in two files"));
    // YAML that begins as JSON does.
    let named = place(NODE);
    let entry = r#"{"svc": {"workflow_template_path": "svc/t.yaml"}}"#;
    named.write("meta/cat.json", entry);
    named.write("meta/svc/t.yaml", "{a: {action: {type: cmd, cmd: echo}}}");
    let said = refusal(&named);
    assert!(
        said.contains("svc/t.yaml: is read as another format"),
        "{said}"
    );
    let empty = Place::new();
    fs::create_dir(empty.path("meta")).unwrap();
    assert!(refusal(&empty).contains("there is no service in it"));
    fs::remove_dir(empty.path("meta")).unwrap();
    assert!(refusal(&empty).contains("cannot find the catalogue"));
}

#[test]
fn a_program_that_is_not_there_is_noted() {
    let place = place(r#"{"a": {"action": {"type": "cmd", "cmd": "./made-later"}}}"#);
    let done = package(&place);
    assert_eq!(done.status, 0);
    assert!(
        done.stderr.starts_with("note: ") && done.stderr.contains("`./made-later` does not exist"),
        "{}",
        done.stderr
    );
}

#[test]
fn dot_files_are_left_out_and_noted() {
    let place = place(NODE);
    for name in [".env", ".netrc", ".cache/token", "lib/.hidden", "lib/seen"] {
        place.write(&format!("meta/svc/{name}"), "secret");
    }
    std::os::unix::fs::symlink(".env", place.path("meta/svc/settings")).unwrap();
    let done = package(&place);
    assert_eq!(done.status, 0, "{}", done.stderr);
    for name in [".env", ".netrc", ".cache", "lib/.hidden", "settings"] {
        let note = format!(
            "note: {} is left out",
            place.path("meta/svc").join(name).display()
        );
        assert!(done.stderr.contains(&note), "{name}: {}", done.stderr);
    }
    assert!(done.stderr.contains("--include-dot-files"));
    let chart = files(&place.path("chart"));
    let with = |name: &str| chart.keys().any(|path| path.ends_with(name));
    assert!(
        with("seen") && !with(".env") && !with("token") && !with("settings"),
        "{chart:?}"
    );

    let all = [
        "package",
        "meta",
        "--output",
        "chart",
        "--include-dot-files",
    ];
    let done = place.apscli(&all);
    assert_eq!(
        (done.status, done.stderr.contains("left out")),
        (0, false),
        "{}",
        done.stderr
    );
    let chart = files(&place.path("chart"));
    let with = |name: &str| chart.keys().any(|path| path.ends_with(name));
    assert!(
        with(".env") && with("token") && with(".hidden") && with("settings"),
        "{chart:?}"
    );
}

#[test]
fn somebody_elses_folder_is_not_replaced() {
    let place = place(NODE);
    place.write("chart/Chart.yaml", "name: mine\n");
    let done = package(&place);
    assert_eq!(done.status, 2);
    assert!(done.stderr.contains("did not make"), "{}", done.stderr);
    assert_eq!(place.read("chart/Chart.yaml"), "name: mine\n");
    fs::remove_file(place.path("chart/Chart.yaml")).unwrap();
    assert_eq!(package(&place).status, 0, "an empty folder is nobody's");
    place.write("chart/stray", "");
    assert_eq!(package(&place).status, 0);
    assert!(!place.path("chart/stray").exists());
    let left: Vec<_> = fs::read_dir(place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("chart."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
