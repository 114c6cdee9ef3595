//! The definitions in `crds/`: what the types say, small enough, structural, and described.

use std::fs;
use std::path::Path;

use apscli::value::json::Dialect;
use apscli::value::{Format, read};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::program::Place;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");

/// Plain `kubectl apply` keeps a copy of each in an annotation, of which 256 KiB may stand.
const MOST_BYTES: usize = 100_000;

fn yaml(text: &str) -> Value {
    let tree = read(text, Format::Yaml, Dialect::Strict).unwrap();
    serde_json::from_str(&tree.into_value().to_string()).unwrap()
}

/// All definitions by their file names.
fn definitions() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(CRDS).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.push((name, yaml(&fs::read_to_string(path).unwrap())));
        }
    }
    found.sort_by(|(left, _), (right, _)| left.cmp(right));
    found
}

#[test]
fn what_stands_in_crds_is_of_today() {
    let done = Place::new().apscli(&["crd", "--check", CRDS]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let names: Vec<String> = definitions().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "services.apscli.dev.yaml",
            "workflowrunpages.apscli.dev.yaml",
            "workflowruns.apscli.dev.yaml"
        ]
    );
}

#[test]
fn they_are_printed_written_and_checked() {
    let place = Place::new();
    let nowhere = place.apscli(&["crd", "--check", "out"]);
    assert_eq!(nowhere.status, 2);
    assert!(nowhere.stderr.contains("cannot read out: "));
    fs::create_dir(place.path("out")).unwrap();
    let missing = place.apscli(&["crd", "--check", "out"]);
    assert_eq!(missing.status, 1, "{}", missing.stderr);
    assert!(
        missing
            .stderr
            .contains("out/services.apscli.dev.yaml is missing")
    );
    assert_eq!(place.apscli(&["crd", "--write", "out"]).status, 0);
    assert_eq!(place.apscli(&["crd", "--check", "out"]).status, 0);

    let printed = place.apscli(&["crd"]);
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    let written: Vec<String> = definitions()
        .iter()
        .map(|(name, _)| fs::read_to_string(place.path("out").join(name)).unwrap())
        .collect();
    assert_eq!(printed.stdout, written.join("---\n"));

    let path = place.path("out/workflowruns.apscli.dev.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("shortNames", "longNames")).unwrap();
    place.write("out/old.yaml", "");
    let stale = place.apscli(&["crd", "--check", "out"]);
    assert_eq!(stale.status, 1);
    assert_eq!(
        stale.stderr,
        "out/workflowruns.apscli.dev.yaml is stale\n\
         out/old.yaml is no definition of today's; remove it\n\
         to repair: apscli crd --write out\n"
    );
    let both = place.apscli(&["crd", "--check", "out", "--write", "out"]);
    assert_eq!(both.status, 2);
    // Who may write the folder too can have put a link there.
    place.write("victim", "mine");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(place.path("victim"), &path).unwrap();
    let refused = place.apscli(&["crd", "--write", "out"]);
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("cannot write out/workflowruns"));
    assert_eq!(place.read("victim"), "mine");
    place.write("file", "");
    let refused = place.apscli(&["crd", "--write", "file/out"]);
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("cannot make the folder file/out"));
}

#[test]
fn they_are_small_enough_for_plain_apply() {
    let sizes = definitions()
        .into_iter()
        .map(|(name, _)| fs::metadata(Path::new(CRDS).join(name)).unwrap().len());
    let bytes = usize::try_from(sizes.sum::<u64>()).unwrap();
    assert!(bytes < MOST_BYTES, "{bytes} bytes");
}

/// What is wrong with a schema, by the rules of structural schemas and our own.
/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
fn wrong(path: &str, schema: &Value, described: bool) -> Vec<String> {
    let Some(members) = schema.as_object() else {
        return vec![format!("{path}: found {schema}; expected a schema")];
    };
    let mut faults = Vec::new();
    let has = |keyword: &str| schema.get(keyword) == Some(&json!(true));
    let open = has("x-kubernetes-preserve-unknown-fields") || has("x-kubernetes-int-or-string");
    let kind = schema["type"].as_str();
    if kind.is_none() && !open {
        faults.push(format!("{path}: no type"));
    }
    if described && schema["description"].as_str().is_none_or(str::is_empty) {
        faults.push(format!("{path}: no description"));
    }
    let format = schema.get("format").and_then(Value::as_str);
    if format.is_some_and(|format| !["int32", "int64", "date-time"].contains(&format)) {
        faults.push(format!("{path}: the format {}", schema["format"]));
    }
    for keyword in [
        "$ref",
        "default",
        "nullable",
        "title",
        "oneOf",
        "anyOf",
        "allOf",
        "not",
        "definitions",
    ] {
        if members.contains_key(keyword) {
            faults.push(format!("{path}: {keyword}"));
        }
    }
    if kind == Some("array") {
        if members
            .get("x-kubernetes-list-type")
            .is_none_or(Value::is_null)
        {
            faults.push(format!("{path}: a list that does not say how it is merged"));
        }
        match schema.get("items") {
            Some(items) => faults.extend(wrong(&format!("{path}[]"), items, false)),
            None => faults.push(format!("{path}: no items")),
        }
    }
    if let Some(values) = schema.get("additionalProperties") {
        faults.extend(wrong(&format!("{path}{{}}"), values, false));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        faults.extend(wrong(&format!("{path}.{name}"), property, true));
    }
    faults
}

#[test]
fn schemas_are_structural_and_every_field_is_described() {
    for (file, definition) in definitions() {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"];
            let faults = wrong("", schema, true);
            assert!(faults.is_empty(), "{file}\n{}", faults.join("\n"));
            assert!(
                schema["properties"]["spec"]["properties"]
                    .as_object()
                    .unwrap()
                    .len()
                    > 2
            );
        }
        let typed: CustomResourceDefinition = serde_json::from_value(definition.clone()).unwrap();
        assert_eq!(format!("{}.yaml", typed.metadata.name.unwrap()), file);
        let crd = &definition["spec"];
        assert_eq!(crd["names"]["categories"], json!(["apscli"]), "{file}");
        assert_eq!(crd["scope"], "Namespaced", "{file}");
    }
}

#[test]
fn what_is_replaced_whole_says_so() {
    let all = definitions();
    let schema = |file: &str| {
        let (_, definition) = all.iter().find(|(name, _)| name.starts_with(file)).unwrap();
        definition["spec"]["versions"][0].clone()
    };
    let (services, pages, runs) = (
        schema("services."),
        schema("workflowrunpages."),
        schema("workflowruns."),
    );
    let property = |version: &Value, path: &str| {
        let mut at = version["schema"]["openAPIV3Schema"].clone();
        for name in path.split('.') {
            at = match name {
                "[]" => at["items"].clone(),
                name => at["properties"][name].clone(),
            };
        }
        assert!(at.is_object(), "there is no {path}");
        at
    };
    for (version, path) in [
        (&runs, "spec.template"),
        (&runs, "spec.params"),
        (&services, "spec.versions.[].template"),
    ] {
        let property = property(version, path);
        assert_eq!(property["x-kubernetes-map-type"], "atomic", "{path}");
        assert_eq!(
            property["x-kubernetes-preserve-unknown-fields"], true,
            "{path}"
        );
    }
    for (version, path) in [(&runs, "status.nodes"), (&pages, "spec.nodes")] {
        let property = property(version, path);
        assert_eq!(property["x-kubernetes-list-type"], "atomic", "{path}");
        assert_eq!(property["maxItems"], 100, "{path}");
    }
    assert_eq!(runs["subresources"], json!({"status": {}}));
    assert_eq!(services["subresources"], json!({"status": {}}));
    let columns: Vec<&str> = runs["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        columns,
        [
            "Service", "Version", "Phase", "Progress", "Age", "Duration", "Message"
        ]
    );
}

#[test]
fn the_check_of_schemas_bites() {
    let schema = json!({
        "type": "object",
        "description": "It.",
        "properties": {
            "a": {"type": "integer", "format": "uint32", "description": "A."},
            "b": {"type": "string"},
            "c": {"type": "array", "description": "C.", "items": {"nullable": true, "type": "string"}},
            "d": {"description": "D."},
        },
    });
    assert_eq!(
        wrong("", &schema, true),
        [
            ".a: the format \"uint32\"",
            ".b: no description",
            ".c: a list that does not say how it is merged",
            ".c[]: nullable",
            ".d: no type"
        ]
    );
}

/// What a field of a spec may do. There is no class for one that reaches into a pod beyond these:
/// a field that nobody has thought about fails the test below.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Class {
    /// Says what is run, or how far; nothing of it is a property of a pod.
    Work,
    /// Any JSON: is read by the template's rules, and becomes arguments and nothing else.
    Data,
    /// A name of another object in the run's namespace, which the pod's own rights decide on.
    Name,
    /// A property of pods that no standard for pods forbids, whatever its value.
    Harmless,
    /// A property of pods that the operator's administrator decides on.
    Admin,
}

/// The paths of all fields below a schema, with what they hold.
fn fields(schema: &Value, path: &str, found: &mut Vec<String>) {
    let mut children = Vec::new();
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        children.push((format!("{path}.{name}"), child));
    }
    if let Some(items) = schema.get("items") {
        children.push((format!("{path}[]"), items));
    }
    if let Some(values) = schema.get("additionalProperties") {
        children.push((format!("{path}.*"), values));
    }
    if children.is_empty() {
        found.push(path.trim_start_matches('.').to_owned());
    }
    for (path, child) in children {
        fields(child, &path, found);
    }
}

#[test]
fn every_field_that_an_author_may_set_is_classified() {
    use Class::{Admin, Data, Harmless, Name, Work};
    let pod = [
        ("nodeSelector.*", Harmless),
        ("tolerations[].key", Harmless),
        ("tolerations[].operator", Harmless),
        ("tolerations[].value", Harmless),
        ("tolerations[].effect", Harmless),
        ("tolerations[].tolerationSeconds", Harmless),
        ("resources.limits.*", Harmless),
        ("resources.requests.*", Harmless),
        ("imagePullPolicy", Harmless),
        ("imagePullSecrets[].name", Name),
        ("priorityClassName", Name),
        // Those of apscli.dev and of the manager are the operator's own.
        ("labels.*", Harmless),
        ("annotations.*", Harmless),
    ];
    let of_run = [
        ("fqsn", Work),
        ("version", Work),
        ("template", Data),
        ("templateFrom[].configMap", Name),
        ("templateFrom[].key", Work),
        ("params", Data),
        ("paramsFrom[].configMap.name", Name),
        ("paramsFrom[].configMap.optional", Work),
        ("paramsFrom[].secret.name", Name),
        ("paramsFrom[].secret.key", Work),
        ("paramsFrom[].secret.param", Work),
        ("executor", Admin),
        ("parallelism", Work),
        ("timeout", Work),
        ("suspend", Work),
        ("cancel", Work),
        ("onLost", Work),
        ("ttlSecondsAfterFinished", Work),
        ("podRetention", Work),
        ("serviceAccountName", Admin),
        ("image", Harmless),
    ];
    let of_service = [
        ("fqsn", Work),
        ("description", Work),
        ("defaultVersion", Work),
        ("versions[].version", Work),
        ("versions[].release", Work),
        ("versions[].description", Work),
        ("versions[].template", Data),
        ("versions[].templateText", Data),
        ("versions[].params[].name", Work),
        ("versions[].params[].type", Work),
        ("versions[].params[].required", Work),
        ("versions[].params[].default", Data),
        ("versions[].params[].description", Work),
        ("versions[].params[].enum[]", Data),
        ("scripts[].configMap", Name),
        ("scripts[].path", Work),
        ("scripts[].mode", Work),
        ("executor", Admin),
        ("network", Admin),
        ("image", Harmless),
    ];
    let definitions = definitions();
    let found = |kind: &str| {
        let named = |(_, it): &&(String, Value)| it["spec"]["names"]["kind"] == kind;
        let (_, definition) = definitions.iter().find(named).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        fields(&schema["properties"]["spec"], "", &mut found);
        found.sort();
        found
    };
    for (kind, own) in [("WorkflowRun", &of_run[..]), ("Service", &of_service[..])] {
        let mut classified: Vec<String> = own.iter().map(|(path, _)| (*path).to_owned()).collect();
        classified.extend(pod.iter().map(|(path, _)| format!("pod.{path}")));
        classified.sort();
        assert_eq!(
            found(kind),
            classified,
            "{kind}: expected is what is classified"
        );
    }
}
