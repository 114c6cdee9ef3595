//! The catalogue on disk: found, listed, changed at once by several, never half written.

use crate::program::{PYTHON, Place, finish};

fn template(place: &Place, name: &str) {
    place.write(
        name,
        r#"{"a": {"action": {"type": "cmd", "cmd": ["echo", "[OUTPUT]ran"]}}}"#,
    );
}

fn register(place: &Place, more: &[&str]) -> (i32, String) {
    let mut args = vec![
        "register",
        "--fqsn",
        "x.y.cat.svc",
        "--template",
        "t.template",
    ];
    args.extend(more);
    let done = place.apscli(&args);
    (done.status, done.stderr)
}

#[test]
fn register_list_run_unregister() {
    let place = Place::new();
    template(&place, "t.template");
    assert_eq!(
        register(&place, &["--version", "1.10", "--desc", "A service"]).0,
        0
    );
    assert_eq!(register(&place, &["--version", "1.1"]).0, 0);
    // The same again changes what is said of it; another template needs another version.
    let again = ["--version", "1.1", "--desc", "A new word"];
    assert_eq!(register(&place, &again).0, 0);
    template(&place, "other.template");
    let done = place.apscli(&[
        "register",
        "--fqsn",
        "x.y.cat.svc",
        "--template",
        "other.template",
        "--version",
        "1.1",
    ]);
    assert_eq!(done.status, 2);
    assert!(
        done.stderr
            .contains("version 1.1 is registered already, with the template "),
        "{}",
        done.stderr
    );
    place.write("metadata/x/stray.yaml", "a: [");
    let list = place.apscli(&["list"]).stdout;
    assert!(
        list.contains("x.y.cat.svc") && list.contains("1.1,1.10") && list.contains("A new word"),
        "{list}"
    );

    let run = |more: &[&str]| {
        let mut args = vec!["run", "--fqsn", "x.y.cat.svc", "-o", "json"];
        args.extend(more);
        place.apscli(&args)
    };
    assert_eq!(run(&[]).json()["output"]["a"]["result"]["output"], "ran");
    assert_eq!(run(&["--version", "1.10"]).status, 0);
    let done = run(&["--version", "1.2"]);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (
            2,
            "error: there is no service x.y.cat.svc: it has no version 1.2; its versions are 1.1, 1.10\n"
        )
    );

    let gone = |more: &[&str]| {
        let mut args = vec!["unregister", "--fqsn", "x.y.cat.svc"];
        args.extend(more);
        place.apscli(&args)
    };
    assert!(
        gone(&["--version", "1.1"])
            .stderr
            .contains("is its default")
    );
    assert_eq!(gone(&["--version", "1.10"]).status, 0);
    assert_eq!(gone(&[]).status, 0);
    let done = run(&[]);
    assert!(
        done.stderr
            .starts_with("error: there is no service x.y.cat.svc: metadata/x/y/cat.json has "),
        "{}",
        done.stderr
    );
    assert!(
        place
            .apscli(&["run", "--fqsn", "x.nope.svc"])
            .stderr
            .contains("there is no category file metadata/x/nope.json")
    );
}

#[test]
fn the_originals_entries_are_understood_and_kept() {
    let place = Place::new();
    template(&place, "metadata/oracle/t.template");
    place.write(
        "metadata/oracle/cloud.json",
        r#"{"old": {"version": 1.0, "workflow_template_path": "t.template", "extra": [1.50]}}"#,
    );
    assert_eq!(
        place
            .apscli(&["run", "--fqsn", "oracle.cloud.old", "--version", "1.0"])
            .status,
        0
    );
    template(&place, "new.template");
    let done = place.apscli(&[
        "register",
        "--fqsn",
        "oracle.cloud.old",
        "--wf_template",
        "new.template",
        "--version",
        "2.0",
    ]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let file = place.read("metadata/oracle/cloud.json");
    assert!(
        file.contains("1.50") && file.contains("\"1.0\": \"t.template\""),
        "{file}"
    );
    assert_eq!(
        place
            .apscli(&["run", "--fqsn", "oracle.cloud.old", "--version", "1.0"])
            .status,
        0
    );
    assert_eq!(
        place.apscli(&["run", "--fqsn", "oracle.cloud.old"]).status,
        0
    );
}

#[test]
fn many_at_once_lose_nothing() {
    let place = Place::new();
    template(&place, "t.template");
    let versions: Vec<String> = (0..20).map(|version| format!("{version}.0")).collect();
    let all: Vec<_> = versions
        .iter()
        .map(|version| {
            place.start(&[
                "register",
                "--fqsn",
                "x.y.cat.svc",
                "--template",
                "t.template",
                "--version",
                version,
            ])
        })
        .collect();
    for one in all {
        assert_eq!(finish(one).status, 0);
    }
    let file: serde_json::Value =
        serde_json::from_str(&place.read("metadata/x/y/cat.json")).unwrap();
    assert_eq!(
        file["svc"]["workflow_template_path"]
            .as_object()
            .unwrap()
            .len(),
        20
    );
    assert_eq!(
        std::fs::read_dir(place.path("metadata/x/y"))
            .unwrap()
            .count(),
        1,
        "something was left behind"
    );
}

#[test]
fn what_cannot_be_read_is_left_as_it_is() {
    let place = Place::new();
    template(&place, "t.template");
    place.write("metadata/x/y/cat.json", "{\"svc\": ");
    let (status, error) = register(&place, &[]);
    assert_eq!(
        (status, error.as_str()),
        (
            2,
            "error: metadata/x/y/cat.json:1:9: the text ends here; expected a JSON value (object, list, \"text\", number, true, false, null)\n"
        )
    );
    assert_eq!(place.read("metadata/x/y/cat.json"), "{\"svc\": ");
    place.write("t.template", "{\"a\": {}}");
    assert_eq!(register(&place, &[]).0, 2);
}

/// A folder that cannot be listed (here: its path is longer than the system takes) hides
/// itself and nothing else.
#[test]
fn one_unreadable_folder_does_not_hide_the_rest() {
    let place = Place::new();
    template(&place, "t.template");
    assert_eq!(register(&place, &[]).0, 0);
    let deep = "import os\nos.chdir('metadata/x')\n\
        for _ in range(20): os.mkdir('d' * 250); os.chdir('d' * 250)";
    let made = std::process::Command::new(PYTHON.as_path())
        .args(["-c", deep])
        .current_dir(place.dir.path())
        .status();
    assert!(made.unwrap().success());
    let done = place.apscli(&["list"]);
    assert!(done.stdout.contains("x.y.cat.svc"), "{}", done.stdout);
    assert!(
        done.stderr.starts_with("error: ") && done.stderr.contains("cannot list the folder"),
        "{}",
        done.stderr
    );
    assert_eq!(done.status, 0);
}

/// The category file is written beside and then put in its place: what waits under that name is not
/// followed.
#[test]
fn no_link_is_written_through() {
    let place = Place::new();
    place.write("victim", "mine");
    template(&place, "t.template");
    std::fs::create_dir_all(place.path("metadata/x/y")).unwrap();
    // The program's process has one of the next numbers.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let last: u32 = load.split_whitespace().last().unwrap().parse().unwrap();
    for at in 1..3000 {
        let name = format!("metadata/x/y/cat.json.new-{}", last + at);
        std::os::unix::fs::symlink(place.path("victim"), place.path(&name)).unwrap();
    }
    let (status, said) = register(&place, &[]);
    assert_eq!(status, 0, "{said}");
    assert_eq!(place.read("victim"), "mine");
    assert!(place.read("metadata/x/y/cat.json").contains("t.template"));
}
