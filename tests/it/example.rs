//! The original page's example, with its real sleeps, in both forms.

use std::path::Path;

use serde_json::Value;

use crate::program::{Done, Place};

fn metadata() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("metadata")
        .display()
        .to_string()
}

fn params() -> String {
    format!(
        "{}/oracle/peo/vm_allocation/vm_allocation.param.json",
        metadata()
    )
}

fn check(done: &Done, return_code: i64) {
    let json = done.json();
    let node = |name: &str| json["output"][name].clone();
    let result = |name: &str| node(name)["result"].clone();
    assert_eq!(result("a")["return_code"], 1);
    assert_eq!(result("b")["return_code"], 1);
    assert_eq!(result("b")["output"], " ip: 10.6.1.110 allocated");
    assert_eq!(result("c")["return_code"], 0);
    assert_eq!(result("c")["err_msg"], "err");
    assert_eq!(result("c")["output"], "storage01");
    assert_eq!(result("c")["info"], "100");
    assert_eq!(result("d")["return_code"], 1);
    assert_eq!(result("d")["output"], "vm:1 booted");
    assert_eq!(node("d")["should_I_start"], true);
    let statuses: Vec<Value> = ["a", "b", "c", "d"]
        .map(|name| node(name)["status"].clone())
        .into();
    assert_eq!(statuses, ["success", "success", "failure", "success"]);
    assert_eq!(json["return_code"], return_code);
    assert_eq!(done.status, i32::from(return_code != 1));
    for name in ["a", "b", "c", "d"] {
        let time = node(name)["start_time"].as_str().unwrap().to_owned();
        assert!(
            jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", &time).is_ok(),
            "{time}"
        );
    }
}

/// Runs it; b and c, which wait for a alone, are at work together.
fn run(place: &Place, args: &[&str]) -> Done {
    let done = place.apscli(args);
    let at = |what: &str| {
        let mut lines = done.stderr.lines();
        let found = lines.position(|line| line.starts_with(what));
        found.unwrap_or_else(|| panic!("{what}: {}", done.stderr))
    };
    let started = at("b: started").max(at("c: started"));
    let ended = at("b: Succeeded").min(at("c: Failed"));
    assert!(started < ended, "{}", done.stderr);
    done
}

#[test]
fn version_1_0_by_the_originals_own_command_line() {
    let place = Place::new();
    let metadata = metadata();
    let template = format!("{metadata}/oracle/peo/vm_allocation/1.0.template");
    check(
        &run(&place, &["-wt", &template, "-wp", &params(), "-po"]),
        0,
    );
}

#[test]
fn the_0_1_9_form() {
    let place = Place::new();
    let text = std::fs::read_to_string(format!(
        "{}/oracle/peo/vm_allocation/1.0.template",
        metadata()
    ))
    .unwrap();
    let text: String = text
        .lines()
        .filter(|line| !line.trim().starts_with("\"id\""))
        .map(|line| {
            line.replace("b || c", "b==1 || c==1")
                .replace("\".\"", "\"$folder\"")
                .replace("./alloc", "$folder/alloc")
                + "\n"
        })
        .collect();
    place.write("vm_allocation.template", text);
    let folder = format!("folder={}/oracle/peo/vm_allocation", metadata());
    let args = [
        "run",
        "--template",
        "vm_allocation.template",
        "--params",
        &params(),
        "--param",
        &folder,
        "-o",
        "json",
    ];
    check(&run(&place, &args), 0);
}

#[test]
fn the_default_version_from_the_catalogue() {
    let place = Place::new();
    let args = [
        "run",
        "--metadata",
        &metadata(),
        "--fqsn",
        "oracle.peo.cloud.vm_allocation",
        "--params",
        &params(),
        "-o",
        "json",
    ];
    check(&run(&place, &args), 1);
}
