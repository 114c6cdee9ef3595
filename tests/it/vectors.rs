//! All answers of the original's expression evaluator: ours are equal wherever it answered.

use std::collections::BTreeMap;

use apscli::engine::expr::{Expr, Truth};
use serde_json::Value;

/// What ours says: an answer, an error of the expression, or a name that is no node (which the
/// graph refuses).
fn ours(text: &str, codes: &serde_json::Map<String, Value>) -> Result<Truth, &'static str> {
    let expr = Expr::parse(text).map_err(|error| {
        assert!(error.span.start <= text.chars().count(), "{text}: {error}");
        "malformed"
    })?;
    if expr
        .names()
        .iter()
        .any(|name| !codes.contains_key(&name.name))
    {
        return Err("unknown name");
    }
    Ok(expr.eval(|index| codes[&expr.names()[index].name].as_i64()))
}

#[test]
fn the_originals_1175_answers() {
    let text = include_str!("../data/decision_expr_vectors.jsonl");
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let expr = vector["expr"].as_str().unwrap();
        let codes = vector["ctx"].as_object().unwrap();
        let ours = ours(expr, codes);
        let theirs = vector["err"].as_str().unwrap_or("answered");
        let class = match ours {
            Ok(Truth::Unknown) => "unknown",
            Ok(Truth::True) => "true",
            Ok(Truth::False) => "false",
            Err(error) => error,
        };
        match theirs {
            "answered" => {
                let expected = if vector["ok"].as_bool().unwrap() {
                    "true"
                } else {
                    "false"
                };
                assert_eq!(class, expected, "{line}");
            }
            // Unknown, or settled by the other side of || or &&, or malformed.
            "AssertionError" => {
                let joined = expr.contains("||") || expr.contains("&&");
                let settled = ["true", "false"].contains(&class);
                assert!(
                    !settled || joined || expr.contains("'N/A'"),
                    "{line}: {class}"
                );
            }
            // It crashed: ours is an error, but for what is fine: bare names, white space, and
            // 'N/A' at the end.
            _ => {
                let answers = ours.is_ok();
                let bare = Expr::parse(expr).is_ok();
                assert_eq!(answers, bare && class != "unknown name", "{line}");
            }
        }
        *counts.entry((theirs.to_owned(), class)).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .into_iter()
        .map(|((theirs, ours), count)| format!("{theirs} -> {ours}: {count}"))
        .collect();
    insta::assert_snapshot!(counts.join("\n"));
}

/// Where the original crashed on a plain comparison with 'N/A' or on a bare name, the answer is
/// computed here a second time, by hand.
#[test]
fn where_the_original_crashed_on_what_is_fine() {
    let text = include_str!("../data/decision_expr_vectors.jsonl");
    let mut checked = 0;
    for line in text.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let expr = vector["expr"].as_str().unwrap();
        let codes = vector["ctx"].as_object().unwrap();
        let squeezed: String = expr.chars().filter(|c| !c.is_whitespace()).collect();
        let expected = if let Some(name) = squeezed
            .strip_suffix("=='N/A'")
            .filter(|name| codes.contains_key(*name))
        {
            codes[name] == "N/A"
        } else if let Some(name) = squeezed
            .strip_suffix("!='N/A'")
            .filter(|name| codes.contains_key(*name))
        {
            codes[name] != "N/A"
        } else if let Some(code) = codes.get(&squeezed) {
            if code == "N/A" {
                continue;
            }
            code == 1
        } else {
            continue;
        };
        checked += 1;
        let truth = if expected { Truth::True } else { Truth::False };
        assert_eq!(ours(expr, codes), Ok(truth), "{line}");
    }
    assert!(checked > 50, "{checked}");
}
