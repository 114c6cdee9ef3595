//! Reading one's own writes: what was written is the floor below which a watch tells old news.
//!
//! A watch may lag behind the answers to our own calls. Acting on an object older than the one we
//! have just written would undo what we know, so such events are dropped. Resource versions of one
//! kind are ordered numbers (Kubernetes KEP-5504).
//!
//! Must not compare versions of different objects.

use super::broken;

/// The newest version of one object that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor(u64);

impl Floor {
    /// Takes a version in. Returns whether it is news: not older than what is known. A version
    /// that is no number is always news.
    pub fn admit(&mut self, version: Option<&str>) -> bool {
        let Some(version) = version.and_then(|version| version.parse().ok()) else {
            return true;
        };
        if version < self.0 && !broken::rule("5") {
            return false;
        }
        self.0 = version;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Floor;

    #[test]
    fn what_is_older_than_ones_own_write_is_no_news() {
        let mut floor = Floor::default();
        assert!(floor.admit(Some("10")));
        assert!(floor.admit(Some("10")));
        assert!(!floor.admit(Some("9")));
        assert!(floor.admit(Some("11")));
        assert!(!floor.admit(Some("10")));
        assert!(floor.admit(None));
        assert!(floor.admit(Some("not a number")));
        assert!(!floor.admit(Some("10")));
    }
}
