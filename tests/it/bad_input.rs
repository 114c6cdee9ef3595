//! Bad input gets one clear error with its place, and exit status 2 before anything has started.

use crate::program::Place;

/// The error of a template that must be refused; nothing may have been started or made.
fn refused(template: impl AsRef<[u8]>, more: &[&str]) -> String {
    let place = Place::new();
    place.write("t.template", template);
    let mut args = vec![
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--log-dir",
        "run",
    ];
    args.extend(more);
    let done = place.apscli(&args);
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (2, ""),
        "{}",
        done.stderr
    );
    assert!(
        !place.path("run").exists(),
        "a folder was made for a run that could not be"
    );
    done.stderr
        .trim_end()
        .trim_start_matches("error: ")
        .to_owned()
}

fn node(rest: &str) -> String {
    format!(r#"{{"a": {{"action": {{"type": "cmd", "cmd": "true"}}{rest}}}}}"#)
}

#[test]
fn texts_that_are_no_templates() {
    for (text, error) in [
        (
            "",
            "t.template:1:1: the text is empty; expected JSON or YAML",
        ),
        (
            " \n",
            "t.template:1:1: the text is empty; expected JSON or YAML",
        ),
        (
            "# only words\n",
            "t.template:1:1: the text holds no value; expected JSON or YAML",
        ),
        (
            "just words",
            "t.template:1:1: found a text; expected an object of nodes",
        ),
        (
            "{",
            "t.template:1:2: the text ends here; expected a key in double quotes",
        ),
        (
            "{\"a\": }",
            "t.template:1:7: found `}`; expected a value (object, list, \"text\", number, true, false, null, $parameter)",
        ),
        (
            "{}",
            "t.template:1:1: there are no nodes; expected at least one",
        ),
        (
            "{\"a\": 1}",
            "t.template:1:7: a: found a number; expected an object with `action` (a node)",
        ),
        (
            "{\"a\": {}}",
            "t.template:1:2: a: `action` is missing; expected {\"type\": \"cmd\", \"cmd\": …} or {\"type\": \"api\", \"module\": …, \"function\": …}",
        ),
        (
            "{\"a\": {\"action\": {\"type\": \"soap\"}}}",
            "t.template:1:27: a.action.type: there is no action `soap`; expected cmd or api",
        ),
        (
            "a:\n  action: {type: cmd, cmd: 'x'}\n  when: b\n",
            "t.template:3:3: a: there is no field `when`; expected id, prev_nodes, action, param, decision_expr, timeout",
        ),
    ] {
        let told = refused(text, &[]);
        assert!(
            told.lines().any(|line| line == error),
            "{text}\n{told}\n{error}"
        );
    }
    assert_eq!(
        refused(b"{\"a\": \"\xff\"}", &[]),
        "t.template: byte 8 is no UTF-8; expected a text"
    );
}

#[test]
fn one_mistake_is_told_once() {
    assert_eq!(refused("{\"a\": {}}", &[]).lines().count(), 1);
    assert_eq!(refused("{}", &[]).lines().count(), 1);
    assert_eq!(
        refused(node(", \"prev_nodes\": [\"a\"]"), &[]),
        "t.template:1:65: a.prev_nodes: `a` waits for itself; expected other nodes only"
    );
}

#[test]
fn all_mistakes_of_a_template_are_told_at_once() {
    let template = r#"{
  "a": {"id": 1, "prev_nodes": ["e"], "action": {"type": "cmd", "cmd": "true"}},
  "b": {"id": 1, "prev_nodes": ["a", "a", "boo"], "action": {"type": "cmd", "cmd": "true"}},
  "c": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "'"}, "decision_expr": "a == 1"},
  "d": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "a = 1"},
  "e": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "$PATH"}, "param": {"x": "$nope"}, "decision_expr": "a"},
  "b": {"action": {"type": "cmd", "cmd": "true"}}
}"#;
    let place = Place::new();
    place.write(
        "t.template",
        template
            .replace(
                "\n  \"b\": {\"action\": {\"type\": \"cmd\", \"cmd\": \"true\"}}",
                "",
            )
            .replace("\"a\"},\n}", "\"a\"}\n}"),
    );
    let done = place.apscli(&["run", "--template", "t.template", "--param", "known=1"]);
    insta::assert_snapshot!(done.stderr);
    assert_eq!(
        refused(template, &[]),
        "t.template:7:3: the key `b` stands twice in one object"
    );
}

#[test]
fn depth_and_length_are_bounded() {
    assert_eq!(
        refused("[".repeat(100_000), &[]),
        "t.template:1:130: nested deeper than 128 levels"
    );
    assert!(refused("{\"a\":".repeat(100_000), &[]).contains("nested deeper than 128 levels"));
    let yaml = format!("a: {}", "[".repeat(100_000));
    assert!(refused(yaml, &[]).starts_with("t.template:1:"));
    let long = "(".repeat(1_000_000);
    let told = refused(node(&format!(r#", "decision_expr": "{long}""#)), &[]);
    assert!(
        told.contains("a.decision_expr: in `((((") && told.len() < 1000,
        "{}",
        told.len()
    );
}

#[test]
fn a_million_characters_of_expression_run() {
    let template = format!(
        r#"{{"a": {{"action": {{"type": "cmd", "cmd": "true"}}}}, "b": {{"prev_nodes": ["a"], "action": {{"type": "cmd", "cmd": "true"}}, "decision_expr": "{}"}}}}"#,
        "a==1||".repeat(170_000) + "a"
    );
    assert_eq!(Place::new().run(&template, &[]).status, 0);
}

#[test]
fn a_parameter_cannot_become_structure() {
    let place = Place::new();
    place.script("show.sh", "printf '[OUTPUT]%s' \"$2\"");
    let evil = r#""}], "x": " $HOME $$ '; exit 1"#;
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "./show.sh", "env": {"E": "$evil"}}, "param": {"v": $evil}},
                       "b": {"action": {"type": "cmd", "cmd": ["./show.sh", "-", "$evil"]}}}"#;
    let done = place.run(template, &["--param", &format!("evil={evil}")]);
    let output = &done.json()["output"];
    assert_eq!(output["a"]["result"]["output"], evil);
    assert_eq!(output["b"]["result"]["output"], evil);
    assert_eq!(output.as_object().unwrap().len(), 2);
}

#[test]
fn parameters_that_are_not_there_are_told_with_those_that_are() {
    let told = refused(
        node(r#", "param": {"x": $nope}"#),
        &["--param", "one=1", "--param", "two=2"],
    );
    assert_eq!(
        told,
        "t.template:1:65: a.param: there is no parameter `nope`; the parameters are one, two"
    );
}

#[test]
fn parameter_files() {
    let place = Place::new();
    place.write("t.template", node(""));
    for (text, error) in [
        (
            "[1]",
            "error: p.json:1:1: found a list; expected an object of parameters\n",
        ),
        (
            "{\"a\": $b}",
            "error: p.json:1:7: found `$`; expected a JSON value (object, list, \"text\", number, true, false, null)\n",
        ),
        (
            "{\"a\": 1, \"a\": 2}",
            "error: p.json:1:10: the key `a` stands twice in one object\n",
        ),
    ] {
        place.write("p.json", text);
        let done = place.apscli(&["run", "--template", "t.template", "--params", "p.json"]);
        assert_eq!((done.status, done.stderr.as_str()), (2, error));
    }
    let done = place.apscli(&["run", "--template", "t.template", "--params", "gone.json"]);
    assert_eq!(done.status, 2);
    assert!(
        done.stderr.starts_with("error: cannot read gone.json: "),
        "{}",
        done.stderr
    );
}

#[test]
fn names_of_any_shape_run() {
    let place = Place::new();
    let names = [
        "align-1.bam",
        "Über Größe",
        "节点",
        "../../etc/passwd",
        "$HOME",
        "-x",
        &"n".repeat(300),
        "N/A",
        "a\\\"b",
    ];
    let nodes: Vec<String> = names
        .iter()
        .map(|name| format!(r#""{name}": {{"action": {{"type": "cmd", "cmd": ["sh", "-c", "echo [OUTPUT]ok"]}}}}"#))
        .collect();
    let last = r#""last": {"prev_nodes": ["align-1.bam", "Über Größe", "节点"], "action": {"type": "cmd", "cmd": "true"},
                  "decision_expr": "`align-1.bam` == 1 && `Über Größe` && 节点"}"#;
    let done = place.run(&format!("{{{},\n{last}}}", nodes.join(",\n")), &[]);
    let json = done.json();
    assert_eq!(
        (done.status, json["output"].as_object().unwrap().len()),
        (0, names.len() + 1)
    );
    assert_eq!(
        std::fs::read_dir(place.path("run/logs")).unwrap().count(),
        names.len()
    );
    let long = "n".repeat(301);
    assert!(
        refused(
            format!(r#"{{"{long}": {{"action": {{"type": "cmd", "cmd": "true"}}}}}}"#),
            &[]
        )
        .starts_with("t.template:1:2: a node's name has 301 characters; expected 1 to 300")
    );
    assert!(
        refused(r#"{"": {"action": {"type": "cmd", "cmd": "true"}}}"#, &[])
            .contains("a node's name is empty")
    );
    assert!(
        refused(
            r#"{"a\nb": {"action": {"type": "cmd", "cmd": "true"}}}"#,
            &[]
        )
        .contains("holds a control character")
    );
}

#[test]
fn command_lines_that_mean_nothing() {
    let place = Place::new();
    for args in [
        &["run"][..],
        &["run", "--template", "a", "--fqsn", "b.c"],
        &["run", "--template", "a", "--timeout", "soon"],
        &["run", "--template", "a", "--version", "1"],
        &["run", "--resume", "a", "--version", "1"],
        &["run", "--template", "a", "--on-lost", "retry"],
        &["submit", "--template", "a", "--version", "1"],
        &["run", "--template", "a", "--parallel", "0"],
        &["frobnicate"],
        &["run", "--fqsn", "no-category"],
    ] {
        let done = place.apscli(args);
        assert_eq!((done.status, done.stdout.as_str()), (2, ""), "{args:?}");
        assert!(done.stderr.contains("error"), "{}", done.stderr);
        // Nothing was looked for, in a folder or a cluster.
        assert!(done.stderr.contains("--help"), "{}", done.stderr);
    }
}

#[test]
fn validate_speaks_the_same_words_and_needs_no_parameters() {
    let place = Place::new();
    place.write(
        "t.template",
        node(r#", "param": {"x": $later}, "decision_expr": "$when", "timeout": "$limit""#),
    );
    let done = place.apscli(&["validate", "t.template"]);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (0, "t.template: valid, 1 node\n")
    );
    place.write("t.template", node(r#", "prev_nodes": ["b"]"#));
    let done = place.apscli(&["validate", "t.template"]);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (
            2,
            "error: t.template:1:65: a.prev_nodes: there is no node `b`; did you mean `a`?\n"
        )
    );
}

#[test]
fn pictures() {
    let place = Place::new();
    place.write(
        "t.yaml",
        "param:\n  a: {action: {type: cmd, cmd: x}}\n  'b \"q\"': {prev_nodes: [a], action: {type: api, module: m, function: f}, decision_expr: \"a=='N/A'\"}\ndecision_expr: a\n",
    );
    let mut all = String::new();
    for format in ["ascii", "dot", "mermaid", "json"] {
        let done = place.apscli(&["graph", "t.yaml", "--format", format]);
        assert_eq!(done.status, 0);
        all.push_str(&done.stdout);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_parameter_cannot_become_an_expression_or_an_option() {
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "false"}},
 "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "a==$x"}}"#;
    let told = refused(template, &["--param", "x=1 || a==0"]);
    assert!(
        told.ends_with(
            "b.decision_expr: the parameter `x` stands inside an expression; expected an integer"
        ),
        "{told}"
    );
    assert_eq!(
        Place::new().run(template, &["--param", "x=0"]).json()["output"]["b"]["status"],
        "success"
    );
    let told = refused(node(", \"param\": $p"), &["--param", r#"p={"--": 1}"#]);
    assert!(
        told.contains("`--` cannot be an option of a command"),
        "{told}"
    );
}
