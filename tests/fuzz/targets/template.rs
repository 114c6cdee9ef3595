//! Any text is a template or an error with a place; never a panic.
#![no_main]

use apscli::template::{Filling, Params, Template};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for name in ["t.template", "t.json", "t.yaml"] {
        if let Ok(template) = Template::read(name, text) {
            let _ = template.graph(Filling::Later);
            let _ = template.graph(Filling::With(&Params::new()));
        }
    }
});
