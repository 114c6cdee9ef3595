//! An object from outside: whatever the API server gives us was written by others.
//!
//! The API server takes JSON of 10,000 levels, and members of any kind where a schema preserves
//! unknown fields; `serde_json` reads 127 levels. An error in one object of a list is one of the whole
//! list, so each object is first skipped over as it is written, which neither recurses nor looks into
//! it, and then read by itself, with a bound on depth and size. One that cannot be read still has its
//! metadata, of which each field is read by itself likewise.
//!
//! They are read from JSON that is in memory as a string, as all answers are, and not copied first.
//!
//! Must not know what an object is for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::Resource;
use kube::core::error_boundary::InvalidObject;
use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Most bytes of JSON in one object that is read. An API server stores 1.5 MiB at the most, unless etcd
/// has another limit; written as JSON, control characters take six times as much.
pub const LARGEST: usize = 12 * 1024 * 1024;

/// Most bytes of the reason why an object cannot be read: it may quote what the object says.
const LONGEST_REASON: usize = 500;

/// An object, or why it cannot be read and its metadata. Reading it fails only where there is no
/// JSON value at all.
#[derive(Clone, Debug)]
pub struct Outside<K>(pub Result<K, InvalidObject>);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Outside<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(read(raw.get()).map_err(|error| InvalidObject {
            error,
            metadata: metadata(raw.get()),
        })))
    }
}

impl<K: Resource> Resource for Outside<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|it| &it.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0
            .as_mut()
            .map_or_else(|it| &mut it.metadata, K::meta_mut)
    }
}

/// An object of kind `K` of which only the metadata and the status are read, whatever else it
/// holds: always readable where there is JSON.
#[derive(Clone, Debug)]
pub struct Bare<K> {
    /// Its metadata, as far as they can be read.
    pub metadata: ObjectMeta,
    /// Its status; none where there is none, or where it cannot be read.
    pub status: Option<serde_json::Value>,
    kind: PhantomData<fn() -> K>,
}

impl<'de, K> Deserialize<'de> for Bare<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let status = members(raw.get()).remove("status").map(RawValue::get);
        Ok(Self {
            metadata: metadata(raw.get()),
            status: status.and_then(|status| read(status).ok()),
            kind: PhantomData,
        })
    }
}

impl<K: Resource> Resource for Bare<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Reads one value of JSON, at most [`LARGEST`] bytes and 127 levels of it.
///
/// # Errors
/// Why it cannot be read, human-readable, in one short line that does not depend on where in the
/// JSON the reason is: the same object has the same reason whatever else changes in it.
pub fn read<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    if json.len() > LARGEST {
        let found = json.len();
        return Err(format!(
            "it has {found} bytes of JSON; expected at most {LARGEST}"
        ));
    }
    serde_json::from_str(json).map_err(|error| reason(&error.to_string()))
}

fn reason(error: &str) -> String {
    let error = error.rsplit_once(" at line ").map_or(error, |it| it.0);
    if error.starts_with("recursion limit exceeded") {
        return "its JSON is nested too deeply; expected at most 127 levels".to_owned();
    }
    let mut reason: String = error
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if reason.len() > LONGEST_REASON {
        reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
        reason.push('…');
    }
    reason
}

/// The name of a member, read so that one that is no Unicode does not hide the others.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(String);

impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a member")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Key, E> {
                Ok(Key(String::from_utf8_lossy(bytes).into_owned()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key, E> {
                Ok(Key(text.to_owned()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// The members of an object as they are written; none where it is no object. Of two with one name,
/// the last.
fn members(json: &str) -> BTreeMap<Key, &RawValue> {
    serde_json::from_str(json).unwrap_or_default()
}

/// One member of an object, as it is written; none where there is no such.
#[must_use]
pub fn member<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    members(json).get(name).map(|it| it.get())
}

/// The items of a list that can be read.
fn items<T: DeserializeOwned>(json: &str) -> Vec<T> {
    let items: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
    let items = items.into_iter().filter_map(|item| read(item.get()).ok());
    items.collect()
}

/// The members of an object whose values are strings.
fn texts(json: &str) -> BTreeMap<String, String> {
    let members = members(json).into_iter();
    let members = members.filter_map(|(Key(name), value)| Some((name, read(value.get()).ok()?)));
    members.collect()
}

/// The metadata of an object, as far as they can be read; without who manages which field. A
/// `deletionTimestamp` that cannot be read still says that the object is being deleted: it is
/// read as the beginning of time.
#[must_use]
pub fn metadata(json: &str) -> ObjectMeta {
    let members = members(json);
    let Some(json) = members.get("metadata").map(|it| it.get()) else {
        return ObjectMeta::default();
    };
    if json.len() <= LARGEST
        && let Ok(metadata) = serde_json::from_str::<ObjectMeta>(json)
    {
        return ObjectMeta {
            managed_fields: None,
            ..metadata
        };
    }
    let members = self::members(json);
    let get = |name: &str| members.get(name).map(|it| it.get());
    let text = |name: &str| read::<Option<String>>(get(name)?).ok()?;
    let number = |name: &str| read::<Option<i64>>(get(name)?).ok()?;
    let time = |name: &str| read::<Option<Time>>(get(name)?).ok()?;
    let is_deleted = get("deletionTimestamp").is_some_and(|it| it != "null");
    ObjectMeta {
        annotations: get("annotations").map(texts),
        creation_timestamp: time("creationTimestamp"),
        deletion_grace_period_seconds: number("deletionGracePeriodSeconds"),
        deletion_timestamp: is_deleted
            .then(|| time("deletionTimestamp").unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH))),
        finalizers: get("finalizers").map(items),
        generation: number("generation"),
        labels: get("labels").map(texts),
        name: text("name"),
        namespace: text("namespace"),
        owner_references: get("ownerReferences").map(items),
        resource_version: text("resourceVersion"),
        uid: text("uid"),
        ..ObjectMeta::default()
    }
}
