//! The original's own forms: `apscli -wt T -wp P -po` and `apscli -fqsn F -wp P -po`.
//!
//! Must not touch any other command line.

use std::ffi::OsString;

/// Turns the original's form into today's; all else comes back as it is.
pub(super) fn translate(args: Vec<OsString>) -> Vec<OsString> {
    let is_legacy = args.get(1).is_some_and(|first| {
        ["-wt", "-wp", "-fqsn", "-po"]
            .iter()
            .any(|flag| first == flag)
    });
    if !is_legacy {
        return args;
    }
    let mut args = args.into_iter();
    let mut translated: Vec<OsString> = args.next().into_iter().collect();
    translated.push("run".into());
    let mut prints = false;
    for arg in args {
        translated.push(match arg.to_str() {
            Some("-wt") => "--template".into(),
            Some("-wp") => "--params".into(),
            Some("-fqsn") => "--fqsn".into(),
            Some("-po") => {
                prints = true;
                continue;
            }
            _ => arg,
        });
    }
    translated.push("--output".into());
    translated.push(if prints { "json" } else { "none" }.into());
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let words = translate(args);
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn the_originals_forms() {
        assert_eq!(
            translated("apscli -wt t -wp p -po"),
            "apscli run --template t --params p --output json"
        );
        assert_eq!(
            translated("apscli -fqsn a.b -wp p"),
            "apscli run --fqsn a.b --params p --output none"
        );
        assert_eq!(translated("apscli run -wt"), "apscli run -wt");
    }
}
