//! The checks of the fuzz targets (`tests/fuzz`), over random texts on every build.

use apscli::engine::expr::Expr;
use apscli::executor::lines::LineParser;
use apscli::template::{Filling, Params, Template};
use proptest::prelude::*;

/// Texts out of the pieces that readers know, and out of anything.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(":"),
        Just(","),
        Just("\""),
        Just("\\"),
        Just("\\u12"),
        Just("$x"),
        Just("${x}"),
        Just("$$"),
        Just("- "),
        Just("\n  "),
        Just("\t"),
        Just("&a "),
        Just("*a"),
        Just("|\n"),
        Just("\"a\":"),
        Just("a: "),
        Just("\"action\":"),
        Just("{\"type\":\"cmd\",\"cmd\":\"x\"}"),
        Just("\"prev_nodes\":[\"a\"]"),
        Just("\"decision_expr\":\"a==1\""),
        Just("1.5e3"),
        Just("-"),
        Just("null"),
        Just("é"),
        Just("---\n"),
        Just("# "),
        Just("!!t "),
        Just("'"),
    ];
    prop_oneof![
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat()),
        ".{0,200}",
    ]
}

fn expression() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("a"),
        Just("b1"),
        Just("1"),
        Just("'N/A'"),
        Just("("),
        Just(")"),
        Just("||"),
        Just("&&"),
        Just("=="),
        Just("!="),
        Just("<"),
        Just("<="),
        Just("+"),
        Just(" "),
        Just("`a b`"),
        Just("`"),
        Just("'"),
        Just("é"),
        Just("99999999999999999999"),
    ];
    prop_oneof![
        prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat()),
        ".{0,100}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_template_or_an_error_with_a_place(text in text()) {
        for name in ["t.template", "t.json", "t.yaml"] {
            match Template::read(name, &text) {
                Ok(template) => {
                    for graph in [template.graph(Filling::Later), template.graph(Filling::With(&Params::new()))] {
                        if let Err(problems) = graph {
                            prop_assert!(problems.list.iter().all(|problem| problem.at.line > 0), "{}", problems);
                        }
                    }
                }
                Err(problems) => {
                    prop_assert!(!problems.list.is_empty());
                    prop_assert!(problems.list.iter().all(|problem| problem.at.line > 0), "{}", problems);
                }
            }
        }
    }

    #[test]
    fn any_text_is_an_expression_or_an_error_inside_it(text in expression()) {
        match Expr::parse(&text) {
            Ok(expr) => {
                for code in [None, Some(0), Some(1), Some(i64::MAX)] {
                    let _ = expr.eval(|_| code);
                }
            }
            Err(error) => prop_assert!(error.span.start <= text.chars().count(), "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_output_wherever_they_are_cut(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut whole = LineParser::default();
        whole.push(&bytes);
        let mut cut = LineParser::default();
        for byte in &bytes {
            cut.push(std::slice::from_ref(byte));
        }
        prop_assert_eq!(cut.finish(), whole.finish());
    }
}
