//! What a run runs as parcels: documents and scripts as immutable `ConfigMaps` that are named by
//! their content.
//!
//! The name holds the SHA-256 of what is inside, so equal content has one name whoever packs it,
//! and what is unpacked can be checked against its name.
//!
//! Operators up to 0.1.0 wrote only the first half of the hash into names. Such objects are still
//! read by the runs that have them on record, but none is made, and what such a name says is not
//! proof against an author who looks for collisions: see [`Name::is_whole`].
//!
//! Must not hold a client: it makes objects and reads them.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::api::{LABEL_MANAGED_BY, MANAGED_BY};
use crate::catalog::cluster::Files;
use crate::catalog::gzip;

/// Label of all parcels; its value is `true`.
pub(super) const LABEL: &str = "apscli.dev/snapshot";
/// Most bytes of a document in one `ConfigMap`, which may hold 1 MiB. With the owners it stays
/// below what etcd takes in one write, 1.5 MiB.
pub(super) const CHUNK: usize = 900_000;
/// The key of a document.
const KEY: &str = "document.gz";
/// Hexadecimal digits of a hash in a name: the whole SHA-256.
const DIGITS: usize = 64;
/// The same in names that operators up to 0.1.0 made.
const DIGITS_BEFORE: usize = 32;

/// What is in a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    /// A service: template, scripts, image and so on.
    Service,
    /// A template without a service.
    Template,
    /// Parameters.
    Params,
    /// Scripts, as their author's `ConfigMap` has them.
    Scripts,
}

impl Content {
    const ALL: [Self; 4] = [Self::Service, Self::Template, Self::Params, Self::Scripts];

    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Template => "template",
            Self::Params => "params",
            Self::Scripts => "scripts",
        }
    }
}

/// The name of a parcel: `apscli-CONTENT-HASH`, for documents `-CHUNK`, and for all but the first
/// of several equal ones `-COPY`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) content: Content,
    pub(super) hash: String,
    /// Which part of the document, from 0. Scripts have but one.
    pub(super) chunk: usize,
    /// Which of several equal ones, from 0: one `ConfigMap` has room for so many owners only.
    pub(super) copy: u32,
}

impl Name {
    pub(super) fn of(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("apscli-")?;
        let (word, rest) = rest.split_once('-')?;
        let content = Content::ALL.into_iter().find(|it| it.word() == word)?;
        let mut parts = rest.split('-');
        let hash = parts.next()?.to_owned();
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if ![DIGITS, DIGITS_BEFORE].contains(&hash.len()) || !hash.bytes().all(is_hex) {
            return None;
        }
        let chunk = match content {
            Content::Scripts => 0,
            _ => parts.next()?.parse().ok()?,
        };
        let copy = parts.next().map_or(Ok(0), str::parse).ok()?;
        let name = Self {
            content,
            hash,
            chunk,
            copy,
        };
        // One name, one text: no leading noughts, no rest.
        (name.to_string() == text).then_some(name)
    }

    /// Whether the name holds the whole hash. Half a hash is 128 bits: who makes two contents
    /// that share it needs about 2^64 tries, so such a name must not decide what is allowed.
    pub(super) fn is_whole(&self) -> bool {
        self.hash.len() == DIGITS
    }

    /// Whether content with this hash may have this name.
    fn is_of(&self, hash: &str) -> bool {
        hash.starts_with(&self.hash)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "apscli-{}-{}", self.content.word(), self.hash)?;
        if self.content != Content::Scripts {
            write!(f, "-{}", self.chunk)?;
        }
        if self.copy > 0 {
            write!(f, "-{}", self.copy)?;
        }
        Ok(())
    }
}

/// An object to be made, without owners.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub(super) name: Name,
    pub(super) map: ConfigMap,
}

impl Parcel {
    fn new(name: Name, namespace: &str, map: ConfigMap) -> Self {
        let metadata = ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([
                (LABEL.to_owned(), "true".to_owned()),
                (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
            ])),
            ..ObjectMeta::default()
        };
        let map = ConfigMap {
            metadata,
            immutable: Some(true),
            ..map
        };
        Self { name, map }
    }

    /// The same under the name of its nth copy.
    pub(super) fn copy(&self, copy: u32) -> Self {
        let name = Name {
            copy,
            ..self.name.clone()
        };
        let mut map = self.map.clone();
        map.metadata.name = Some(name.to_string());
        Self { name, map }
    }

    /// In words, why what was found under the name is not this.
    pub(super) fn differs(&self, found: &ConfigMap) -> Option<&'static str> {
        if found.immutable != Some(true) {
            return Some("it can be changed at any time");
        }
        if inside(found) != inside(&self.map) {
            return Some("it holds something else");
        }
        None
    }
}

/// What a `ConfigMap` holds; nothing at all and empty fields are the same.
fn inside(map: &ConfigMap) -> Inside<'_> {
    Inside {
        data: map.data.iter().flatten().collect(),
        binary_data: map.binary_data.iter().flatten().collect(),
    }
}

#[derive(Debug, PartialEq, Serialize)]
struct Inside<'a> {
    data: BTreeMap<&'a String, &'a String>,
    binary_data: BTreeMap<&'a String, &'a ByteString>,
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    let mut hex = String::with_capacity(DIGITS);
    for byte in Sha256::digest(bytes) {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Packs a document into as many parcels as it needs.
pub(super) fn pack(content: Content, namespace: &str, document: &[u8]) -> Vec<Parcel> {
    let packed = gzip::compress(document);
    let hash = hash(&packed);
    (packed.chunks(CHUNK).enumerate())
        .map(|(chunk, bytes)| {
            let name = Name {
                content,
                hash: hash.clone(),
                chunk,
                copy: 0,
            };
            let map = ConfigMap {
                binary_data: Some(BTreeMap::from([(
                    KEY.to_owned(),
                    ByteString(bytes.to_vec()),
                )])),
                ..ConfigMap::default()
            };
            Parcel::new(name, namespace, map)
        })
        .collect()
}

/// Why parcels are no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// It unfolds to more than was asked for.
    #[error("it unfolds to more than it may")]
    TooLarge,
    /// They are not what their names say.
    #[error("{0}")]
    Other(String),
}

/// Unpacks a document of at most so many bytes from its parcels, in any order.
pub(super) fn unpack(parcels: &[(Name, ConfigMap)], most: usize) -> Result<Vec<u8>, Broken> {
    let mut parcels: Vec<&(Name, ConfigMap)> = parcels.iter().collect();
    parcels.sort_by_key(|(name, _)| name.chunk);
    let mut packed = Vec::new();
    for (place, (name, map)) in parcels.iter().enumerate() {
        if name.chunk != place {
            let why = format!("part {place} is missing; the next is {name}");
            return Err(Broken::Other(why));
        }
        let binary = map.binary_data.as_ref().and_then(|data| data.get(KEY));
        let bytes = binary
            .ok_or_else(|| Broken::Other(format!("{name} has no key {KEY} in its binaryData")))?;
        packed.extend_from_slice(&bytes.0);
    }
    let found = hash(&packed);
    if let Some((name, _)) = parcels.iter().find(|(name, _)| !name.is_of(&found)) {
        return Err(Broken::Other(format!(
            "{name} was made anew with something else in it (its content's hash is {found}), or a \
             part is missing"
        )));
    }
    gzip::decompress_within(&packed, most).map_err(|error| match error {
        gzip::GzipError::TooLarge => Broken::TooLarge,
        other => Broken::Other(other.to_string()),
    })
}

/// Files as `ConfigMaps` that are small enough.
pub(super) fn portions(files: &Files) -> Vec<ConfigMap> {
    let (mut done, mut map, mut size) = (Vec::new(), ConfigMap::default(), 0);
    let mut make_room = |map: &mut ConfigMap, more: usize| {
        if size > 0 && size + more > CHUNK {
            done.push(std::mem::take(map));
            size = 0;
        }
        size += more;
    };
    for (name, text) in &files.data {
        make_room(&mut map, name.len() + text.len());
        let data = map.data.get_or_insert_default();
        data.insert(name.clone(), text.clone());
    }
    for (name, bytes) in &files.binary_data {
        make_room(&mut map, name.len() + bytes.0.len());
        let data = map.binary_data.get_or_insert_default();
        data.insert(name.clone(), bytes.clone());
    }
    done.push(map);
    done
}

/// Packs an author's scripts as they are.
pub(super) fn pack_scripts(namespace: &str, author: &ConfigMap) -> Parcel {
    let map = ConfigMap {
        data: author.data.clone(),
        binary_data: author.binary_data.clone(),
        ..ConfigMap::default()
    };
    let name = Name {
        content: Content::Scripts,
        hash: hash_scripts(author),
        chunk: 0,
        copy: 0,
    };
    Parcel::new(name, namespace, map)
}

/// In words, why this is not what its name says; none: it is.
pub(super) fn check_scripts(name: &Name, found: &ConfigMap) -> Result<(), String> {
    let hash = hash_scripts(found);
    if name.is_of(&hash) {
        return Ok(());
    }
    Err(format!(
        "{name} was made anew with something else in it (its content's hash is {hash})"
    ))
}

fn hash_scripts(map: &ConfigMap) -> String {
    // Texts and names of keys cannot fail to be JSON.
    hash(serde_json::to_vec(&inside(map)).unwrap_or_default())
}

/// The SHA-256 of each file in a `ConfigMap`, in hexadecimal, by name.
pub(super) fn hashes(map: &ConfigMap) -> BTreeMap<String, String> {
    let inside = inside(map);
    let texts = inside.data.into_iter();
    let texts = texts.map(|(key, text)| (key.clone(), hash(text)));
    let others = inside.binary_data.into_iter();
    let others = others.map(|(key, bytes)| (key.clone(), hash(&bytes.0)));
    texts.chain(others).collect()
}

/// The files in a `ConfigMap`, by name.
pub(super) fn keys(map: &ConfigMap) -> Vec<String> {
    let inside = inside(map);
    let mut keys: Vec<String> = (inside.data.into_keys())
        .chain(inside.binary_data.into_keys())
        .cloned()
        .collect();
    keys.sort();
    keys
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;
    use proptest::prelude::*;

    use super::*;

    fn named(parcels: &[Parcel]) -> Vec<(Name, ConfigMap)> {
        let parcels = parcels.iter();
        parcels
            .map(|it| (Name::of(&it.map.name_any()).unwrap(), it.map.clone()))
            .collect()
    }

    /// Bytes that nothing can make smaller.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(document: Vec<u8>) {
            let parcels = pack(Content::Service, "n", &document);
            prop_assert_eq!(unpack(&named(&parcels), gzip::LARGEST), Ok(document));
        }

        #[test]
        fn names_are_read_as_they_are_written(hash in "[0-9a-f]{32}|[0-9a-f]{64}", chunk in 0_usize..99, copy in 0_u32..99, which in 0_usize..4) {
            let content = Content::ALL[which];
            let chunk = if content == Content::Scripts { 0 } else { chunk };
            let name = Name { content, hash, chunk, copy };
            prop_assert_eq!(Name::of(&name.to_string()), Some(name));
        }

        #[test]
        fn no_name_makes_it_panic(text in "(apscli-)?(service|params|scripts)?-?[0-9a-f-]{0,40}") {
            if let Some(name) = Name::of(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn scripts_of_other_content_have_other_names(a: BTreeMap<String, String>, b: BTreeMap<String, Vec<u8>>) {
            let of = |data: &BTreeMap<String, String>, binary: &BTreeMap<String, Vec<u8>>| pack_scripts("n", &ConfigMap {
                data: Some(data.clone()),
                binary_data: Some(binary.iter().map(|(k, v)| (k.clone(), ByteString(v.clone()))).collect()),
                ..ConfigMap::default()
            });
            let parcel = of(&a, &b);
            prop_assert_eq!(check_scripts(&parcel.name, &parcel.map), Ok(()));
            prop_assert_eq!(&parcel, &of(&a, &b));
            let mut more = a;
            more.entry(String::new()).or_default().push('x');
            prop_assert_ne!(parcel.name, of(&more, &b).name);
        }
    }

    #[test]
    fn a_large_document_goes_into_several() {
        let document = noise(2 * CHUNK + 1);
        let parcels = pack(Content::Params, "n", &document);
        assert_eq!(parcels.len(), 3);
        for (place, parcel) in parcels.iter().enumerate() {
            let binary = parcel.map.binary_data.as_ref().unwrap();
            assert!(binary.values().all(|bytes| bytes.0.len() <= CHUNK));
            assert_eq!(parcel.name.chunk, place);
            assert_eq!(parcel.map.immutable, Some(true));
        }
        let mut found = named(&parcels);
        found.reverse();
        assert_eq!(
            unpack(&found, gzip::LARGEST).as_deref(),
            Ok(document.as_slice())
        );

        let missing_last = unpack(&found[1..], gzip::LARGEST).unwrap_err().to_string();
        assert!(missing_last.contains("a part is missing"), "{missing_last}");
        let missing_first = unpack(&found[..2], gzip::LARGEST).unwrap_err().to_string();
        assert!(
            missing_first.contains("part 0 is missing"),
            "{missing_first}"
        );
    }

    #[test]
    fn a_parcel_that_was_made_anew_is_noticed() {
        let parcels = pack(Content::Service, "n", b"what runs");
        let other = pack(Content::Service, "n", b"something else");
        let found = [(parcels[0].name.clone(), other[0].map.clone())];
        let error = unpack(&found, gzip::LARGEST).unwrap_err().to_string();
        assert!(error.contains("made anew"), "{error}");
        assert_eq!(
            parcels[0].differs(&other[0].map),
            Some("it holds something else")
        );
        let mut loose = parcels[0].map.clone();
        assert_eq!(parcels[0].differs(&loose), None);
        loose.immutable = None;
        assert_eq!(
            parcels[0].differs(&loose),
            Some("it can be changed at any time")
        );
    }

    /// What operators up to 0.1.0 made: the first half of the same hash.
    #[test]
    fn half_a_hash_is_read_and_never_written() {
        let halved = |parcel: &Parcel| {
            let (whole, word) = (&parcel.name.hash, parcel.name.content.word());
            assert_eq!(whole.len(), 64);
            let text = match parcel.name.content {
                Content::Scripts => format!("apscli-{word}-{}", &whole[..32]),
                _ => format!("apscli-{word}-{}-0", &whole[..32]),
            };
            Name::of(&text).unwrap()
        };
        let parcels = pack(Content::Service, "n", b"what runs");
        assert!(parcels[0].name.is_whole() && Name::of(&parcels[0].map.name_any()).is_some());
        let half = halved(&parcels[0]);
        assert!(!half.is_whole());
        let found = [(half.clone(), parcels[0].map.clone())];
        assert_eq!(
            unpack(&found, gzip::LARGEST).as_deref(),
            Ok(b"what runs".as_slice())
        );
        let other = pack(Content::Service, "n", b"something else");
        assert!(unpack(&[(half, other[0].map.clone())], gzip::LARGEST).is_err());

        let author = ConfigMap {
            data: Some(BTreeMap::from([("x".to_owned(), "1".to_owned())])),
            ..ConfigMap::default()
        };
        let scripts = pack_scripts("n", &author);
        let half = halved(&scripts);
        assert_eq!(check_scripts(&half, &scripts.map), Ok(()));
        assert!(check_scripts(&half, &ConfigMap::default()).is_err());
    }

    #[test]
    fn other_names_are_none() {
        let hash = "0123456789abcdef0123456789abcdef";
        for other in [
            "apscli",
            "kube-root-ca.crt",
            &format!("apscli-service-{hash}"),
            &format!("apscli-service-{hash}-00"),
            &format!("apscli-service-{hash}-0-0"),
            &format!("apscli-service-{hash}-0-1-2"),
            &format!("apscli-other-{hash}-0"),
            &format!("apscli-service-{hash}0-0"),
            &format!("apscli-service-{}-0", &hash[1..]),
            &format!("apscli-service-{}-0", hash.to_uppercase()),
            "apscli-service--0",
        ] {
            assert_eq!(Name::of(other), None, "{other}");
        }
    }
}
