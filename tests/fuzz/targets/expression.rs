//! Any text is an expression or an error inside the text; never a panic.
#![no_main]

use apscli::engine::expr::Expr;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Expr::parse(text) {
        Ok(expr) => {
            for code in [None, Some(0), Some(1), Some(i64::MAX)] {
                let _ = expr.eval(|_| code);
            }
        }
        Err(error) => assert!(error.span.start <= text.chars().count()),
    }
});
