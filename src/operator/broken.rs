//! The rules of doing things exactly once, broken on purpose and one at a time, so that the tests of
//! `tests/faults` can show that they notice.
//!
//! Only a program built with the feature `broken-rules` can break one, and only where
//! `APSCLI_BROKEN_RULE` names it; in every other program each question here is answered with a
//! constant `false`. The names are the numbers of the rules, with the part that is broken where a
//! rule has several.
//!
//! Must not be asked anywhere but where a rule is kept, and must not change anything itself.

/// Whether this rule is to be broken.
#[cfg(not(feature = "broken-rules"))]
pub(super) const fn rule(_name: &str) -> bool {
    false
}

/// Whether this rule is to be broken.
#[cfg(feature = "broken-rules")]
pub(super) fn rule(name: &str) -> bool {
    static BROKEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("APSCLI_BROKEN_RULE").ok());
    BROKEN.as_deref() == Some(name)
}
