//! JSON of any content inside an object of the API, held as its text.
//!
//! Why not `serde_json::Value`: a tree of small values takes up to a hundred times the memory of
//! its text, and the operator holds such objects of all tenants. What is needed is read when it
//! is needed, and within a budget.
//!
//! Must not know what the JSON is for.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::value::json::{self, Dialect};
use crate::value::{Budget, MAX_DEPTH, Problem, Value};

/// A JSON value of any kind, as compact text. A clone shares the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Any(Arc<str>);

/// A JSON object of any content, as compact text, its keys in the API server's order. A clone
/// shares the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Object(Any);

/// A JSON list of any content, as compact text. A clone shares the text.
#[derive(Clone, PartialEq, Eq)]
pub struct List(Any);

impl List {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        &*self.0.0 == "[]"
    }

    /// The text, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Reads what is in it, and no more values than `budget` has left.
    ///
    /// # Errors
    /// Where there are more, or it is nested deeper than [`MAX_DEPTH`].
    pub fn read(&self, budget: &mut Budget) -> Result<Vec<Value>, Problem> {
        match self.0.read(budget)? {
            Value::List(items) => Ok(items),
            other => Ok(vec![other]),
        }
    }
}

impl Default for List {
    fn default() -> Self {
        Self(Any("[]".into()))
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Any::deserialize(deserializer)?
            .of_kind('[', "a list")
            .map(Self)
            .map_err(D::Error::custom)
    }
}

impl Any {
    fn of_kind(self, first: char, expected: &str) -> Result<Self, String> {
        if self.0.starts_with(first) {
            return Ok(self);
        }
        let found: String = self.0.chars().take(40).collect();
        Err(format!("found `{found}`; expected {expected}"))
    }

    /// The text, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Reads the value, and no more values than `budget` has left.
    ///
    /// # Errors
    /// Where there are more, or it is nested deeper than [`MAX_DEPTH`].
    pub fn read(&self, budget: &mut Budget) -> Result<Value, Problem> {
        json::read_within(&self.0, Dialect::Strict, budget)
            .map(crate::value::Tree::into_value)
            .map_err(|problems| {
                let first = problems.into_iter().next();
                first.unwrap_or_else(|| Problem::in_text(crate::value::Place::NONE, "not JSON"))
            })
    }

    fn of(value: &impl Serialize) -> Self {
        // Only values that are JSON already come here.
        Self(
            serde_json::to_string(value)
                .unwrap_or_else(|_| "null".to_owned())
                .into(),
        )
    }
}

impl Object {
    /// The text, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Reads the object, and no more values than `budget` has left.
    ///
    /// # Errors
    /// Where there are more, or it is nested deeper than [`MAX_DEPTH`].
    pub fn read(&self, budget: &mut Budget) -> Result<Value, Problem> {
        self.0.read(budget)
    }
}

impl From<&serde_json::Value> for Any {
    fn from(value: &serde_json::Value) -> Self {
        Self::of(value)
    }
}

impl From<&serde_json::Map<String, serde_json::Value>> for Object {
    fn from(members: &serde_json::Map<String, serde_json::Value>) -> Self {
        Self(Any::of(members))
    }
}

impl fmt::Debug for Any {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Any {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Any {
    /// `serde_json` only.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.0.to_string())
            .map_err(S::Error::custom)?
            .serialize(serializer)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = Vec::new();
        let writer = Writer {
            text: &mut text,
            depth: 0,
        };
        writer.deserialize(deserializer)?;
        let text = String::from_utf8(text).map_err(D::Error::custom)?;
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Any::deserialize(deserializer)?
            .of_kind('{', "an object")
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// Writes what a deserializer has as compact JSON, without a tree in between.
struct Writer<'t> {
    text: &'t mut Vec<u8>,
    depth: usize,
}

impl Writer<'_> {
    fn put<E: serde::de::Error>(self, value: &impl Serialize) -> Result<(), E> {
        serde_json::to_writer(self.text, value).map_err(E::custom)
    }

    fn below<E: serde::de::Error>(&mut self) -> Result<Writer<'_>, E> {
        let depth = self.depth + 1;
        if depth > MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Writer {
            text: &mut *self.text,
            depth,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.put(&value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.put(&value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.put(&value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.put(&value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.put(&value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.put(&())
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.put(&())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.text.push(b'[');
        let mut is_first = true;
        loop {
            let end = self.text.len();
            if !is_first {
                self.text.push(b',');
            }
            is_first = false;
            if items.next_element_seed(self.below()?)?.is_none() {
                self.text.truncate(end);
                self.text.push(b']');
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        self.text.push(b'{');
        let mut is_first = true;
        while let Some(key) = members.next_key::<std::borrow::Cow<'_, str>>()? {
            if !is_first {
                self.text.push(b',');
            }
            is_first = false;
            serde_json::to_writer(&mut *self.text, &key).map_err(A::Error::custom)?;
            self.text.push(b':');
            members.next_value_seed(self.below()?)?;
        }
        self.text.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn any() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            proptest::bool::ANY.prop_map(Json::from),
            proptest::num::i64::ANY.prop_map(Json::from),
            proptest::num::u64::ANY.prop_map(Json::from),
            // Others are read a little differently by `serde_json` itself.
            (-1_000_000_i32..1_000_000).prop_map(|it| Json::from(f64::from(it) / 8.0)),
            ".*".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                proptest::collection::btree_map(".*", inner, 0..5)
                    .prop_map(|members| Json::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_round_trips_from_text_and_from_tree(json in any()) {
            let text = json.to_string();
            let from_text: Any = serde_json::from_str(&text).unwrap();
            let from_tree: Any = serde_json::from_value(json.clone()).unwrap();
            prop_assert_eq!(&from_text, &from_tree);
            prop_assert_eq!(&*from_text.0, &text);
            prop_assert_eq!(serde_json::to_string(&from_text).unwrap(), text);
            prop_assert_eq!(serde_json::to_value(&from_text).unwrap(), json);
        }
    }

    #[test]
    fn object_of_another_kind_is_refused() {
        let error = serde_json::from_str::<Object>("[1]")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("found `[1]`; expected an object"),
            "{error}"
        );
        let object: Object = serde_json::from_str("{\"a\": [1, {}]}").unwrap();
        assert_eq!(object.bytes(), "{\"a\":[1,{}]}".len());
    }

    #[test]
    fn any_nested_too_deeply_is_refused() {
        let deep = (0..1_000).fold(json!(1), |inner, _| json!([inner]));
        let error = serde_json::from_value::<Any>(deep).unwrap_err().to_string();
        assert_eq!(error, "nested deeper than 128 levels");
    }

    #[test]
    fn any_with_too_many_values_is_too_large() {
        let many: Any = serde_json::from_str(&format!("[{}1]", "1,".repeat(1_000))).unwrap();
        let problem = many.read(&mut Budget::of(1_000)).unwrap_err();
        assert!(problem.too_large, "{problem}");
        assert!(many.read(&mut Budget::of(1_002)).is_ok());
    }
}
