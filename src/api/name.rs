//! Names of Kubernetes objects: the one place that says which string may name an object.
//!
//! A client library puts a name into the path of a URL as it is. A name with `?`, `/` or `..`
//! in it asks for something else: a collection, a watch, another namespace. So each name is checked
//! here before a request is built, and the definitions of the custom resources have the same rule.
//!
//! Must not know which objects there are.

use std::fmt;

/// The longest name of an object, in bytes: a DNS subdomain (RFC 1123).
pub const LONGEST: usize = 253;

/// The longest name of a namespace, in bytes: a DNS label (RFC 1123).
pub const LONGEST_LABEL: usize = 63;

/// What names an object, as a regular expression: a DNS subdomain (RFC 1123), as the API server
/// itself asks of `ConfigMaps`, Secrets, service accounts, priority classes and custom resources.
pub const PATTERN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// A string that names no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadName {
    /// The string, cut to what a message can hold.
    name: String,
    expected: &'static str,
}

impl BadName {
    fn of(name: &str, expected: &'static str) -> Self {
        const SHOWN: usize = 64;
        let mut shown = name.to_owned();
        if name.len() > SHOWN {
            shown.truncate(name.floor_char_boundary(SHOWN));
            shown.push('…');
        }
        Self {
            name: shown,
            expected,
        }
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // With escapes: it may hold control characters.
        let Self { name, expected } = self;
        write!(f, "{name:?} names no object; expected {expected}")
    }
}

impl std::error::Error for BadName {}

/// Checks the name of an object of any kind but a namespace.
///
/// # Errors
/// Where it is no DNS subdomain of at most [`LONGEST`] bytes.
pub fn check(name: &str) -> Result<&str, BadName> {
    if name.len() <= LONGEST && name.split('.').all(is_label) {
        return Ok(name);
    }
    let expected = "a DNS subdomain of at most 253 characters: a-z, 0-9, `-` and `.`";
    Err(BadName::of(name, expected))
}

/// Checks the name of a namespace.
///
/// # Errors
/// Where it is no DNS label of at most [`LONGEST_LABEL`] bytes.
pub fn check_namespace(name: &str) -> Result<&str, BadName> {
    if name.len() <= LONGEST_LABEL && is_label(name) {
        return Ok(name);
    }
    let expected = "a DNS label of at most 63 characters: a-z, 0-9 and `-`";
    Err(BadName::of(name, expected))
}

/// Whether a string is a DNS label, whatever its length.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|it| is_letter(*it));
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| is_letter(*byte) || *byte == b'-')
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_change_a_url_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "/",
            "a/",
            "../../kube-system/configmaps/x",
            "..%2f..%2fkube-system",
            "%2e%2e",
            "%2F",
            "?watch=true&timeoutSeconds=100000",
            "x?watch=true",
            "?limit=0",
            "x#y",
            "x;y",
            "x\\y",
            "bad name",
            "x\n",
            "x\0",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a.-b",
            "A",
            "é",
            "\u{ff41}",
            &"a".repeat(254),
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
            assert!(check_namespace(bad).is_err(), "{bad:?}");
        }
        for good in [
            "a",
            "0",
            "a-b",
            "a--b",
            "kube-root-ca.crt",
            "1.2.3",
            &"a".repeat(253),
        ] {
            assert_eq!(check(good), Ok(good));
        }
        assert!(check_namespace(&"a".repeat(63)).is_ok());
        assert!(check_namespace(&"a".repeat(64)).is_err());
        assert!(check_namespace("a.b").is_err());
    }

    #[test]
    fn a_message_shows_no_control_characters() {
        let message = check("\u{1b}[2J\n").unwrap_err().to_string();
        assert!(!message.chars().any(char::is_control), "{message}");
        let long = check(&"é".repeat(1000)).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }

    proptest! {
        /// A name that passes is one segment of a URL's path, and stays what it is there.
        #[test]
        fn a_name_that_passes_is_one_path_segment(name in "[a-zA-Z0-9./?#%&;=\\\\ ~:@-]{0,12}|.{0,12}") {
            let uri: Result<http::Uri, _> = format!("/api/v1/namespaces/n/pods/{name}").parse();
            if check(&name).is_ok() {
                let uri = uri.unwrap();
                prop_assert_eq!(uri.query(), None);
                let segments: Vec<&str> = uri.path().split('/').collect();
                prop_assert_eq!(segments.len(), 7);
                prop_assert_eq!(segments.last().copied(), Some(name.as_str()));
                prop_assert!(name != "." && name != "..");
            }
        }

        /// What the definitions accept, the code accepts.
        #[test]
        fn what_the_pattern_accepts_the_code_accepts(name in PATTERN.trim_matches(['^', '$'])) {
            prop_assert_eq!(check(&name).is_ok(), name.len() <= LONGEST, "{}", name);
        }
    }
}
