//! Any bytes are a program's output, wherever they are cut.
#![no_main]

use apscli::executor::lines::LineParser;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = {
        let mut parser = LineParser::default();
        parser.push(bytes);
        parser.finish()
    };
    let mut parser = LineParser::default();
    for byte in bytes {
        parser.push(std::slice::from_ref(byte));
    }
    assert_eq!(parser.finish(), whole);
});
