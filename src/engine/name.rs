//! Names, parsed once: of nodes, of attempts, of services.
//!
//! Must not know where a name is used; a pod name or a file name is made from these elsewhere.

use std::borrow::Borrow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a node, in characters. Real graphs have names of 124.
pub const MAX_NODE_NAME: usize = 300;

/// The name of a node: 1 to [`MAX_NODE_NAME`] characters of any script, spaces and dots
/// included, but no control characters. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let length = text.chars().count();
        if length == 0 {
            return Err(NameError::Empty);
        }
        if length > MAX_NODE_NAME {
            return Err(NameError::TooLong { length });
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control {
                name: text.to_owned(),
            });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.as_str().to_owned()
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no name of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters.
    #[error("a node's name is empty; expected 1 to {MAX_NODE_NAME} characters")]
    Empty,
    /// More than [`MAX_NODE_NAME`] characters.
    #[error("a node's name has {length} characters; expected 1 to {MAX_NODE_NAME}")]
    TooLong {
        /// Its characters.
        length: usize,
    },
    /// Control characters, which no log or table can show.
    #[error("the node's name {name:?} holds a control character; expected printable characters")]
    Control {
        /// The text.
        name: String,
    },
}

/// The nth try of a node, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first try.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The try after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The try of that number; none for 0.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number, from 1.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fully qualified service name: `oracle.peo.cloud.vm_allocation` is the entry
/// `vm_allocation` of the category file `oracle/peo/cloud`.
///
/// Segments hold letters, digits, `_` and `-` only, so that a name can never leave the
/// catalogue's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fqsn {
    /// Folders and category file, at least one segment.
    pub category: Vec<String>,
    /// The entry in the category file.
    pub service: String,
}

impl FromStr for Fqsn {
    type Err = FqsnError;

    fn from_str(text: &str) -> Result<Self, FqsnError> {
        let wrong = |why: &'static str| FqsnError {
            text: text.to_owned(),
            why,
        };
        let mut category: Vec<String> = text.split('.').map(str::to_owned).collect();
        for segment in &category {
            if segment.is_empty() {
                return Err(wrong("a segment is empty"));
            }
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !segment.chars().all(allowed) {
                return Err(wrong("a segment holds other than A-Z a-z 0-9 _ -"));
            }
        }
        let service = category.pop().unwrap_or_default();
        if category.is_empty() {
            return Err(wrong("there is no category before the service"));
        }
        Ok(Self { category, service })
    }
}

impl fmt::Display for Fqsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.category.join("."), self.service)
    }
}

/// Why a text is no FQSN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no fully qualified service name: {why}; expected category.service, as oracle.peo.cloud.vm_allocation"
)]
pub struct FqsnError {
    text: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_of_real_graphs_are_taken() {
        for name in ["a", "align-1.bam", "Ünïcode 节点", "N/A", &"x".repeat(300)] {
            assert!(name.parse::<NodeName>().is_ok(), "{name}");
        }
        assert_eq!("".parse::<NodeName>(), Err(NameError::Empty));
        assert_eq!(
            "x".repeat(301).parse::<NodeName>(),
            Err(NameError::TooLong { length: 301 })
        );
        assert!("a\nb".parse::<NodeName>().is_err());
    }

    #[test]
    fn an_fqsn_cannot_leave_its_folder() {
        let fqsn: Result<Fqsn, _> = "oracle.peo.cloud.vm_allocation".parse();
        assert_eq!(
            fqsn.map(|f| f.to_string()).as_deref(),
            Ok("oracle.peo.cloud.vm_allocation")
        );
        for wrong in ["", "vm", "a..b", "../x.y", "a/b.c", ".a.b", "a.b.", "é.b"] {
            assert!(wrong.parse::<Fqsn>().is_err(), "{wrong}");
        }
    }
}
