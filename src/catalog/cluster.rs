//! The catalogue in a cluster: `Service` objects, and `ConfigMaps` that hold category files and
//! templates as they lie in a folder.
//!
//! An FQSN is looked for level by level: `Service` objects of the run's namespace, `ConfigMaps`
//! there, then the same two in the namespace that all share. The first level that has it counts;
//! one that has it twice is an error, and so is one where it cannot be read: falling through to
//! another would run something else than was meant.
//!
//! A catalogue `ConfigMap` has the label [`LABEL`] and says by the annotation [`FOLDER`] which
//! folder of the catalogue it stands for. Its keys are the files of the folder; a `/` in a path is
//! written `__`, because a key cannot hold it.
//!
//! Must not ask the cluster: it is given the objects.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::service::{ParamDecl, ScriptSource, Service, ServiceVersion};
use crate::api::workflow_run::{ExecutorKind, PodOverrides};
use crate::api::{Object, object_to_value};
use crate::engine::name::{Fqsn, FqsnError};
use crate::template::Template;
use crate::value::Problems;

use super::category::{self, ENDINGS};
use super::gzip;

/// Label of a `ConfigMap` that is part of a catalogue; its value does not matter.
pub const LABEL: &str = "apscli.dev/catalog";
/// Annotation of such a `ConfigMap`: the folder that it stands for, as `oracle/peo`. Without it:
/// the catalogue's top.
pub const FOLDER: &str = "apscli.dev/folder";

/// What stands for `/` in a key.
const SLASH: &str = "__";
/// Said wherever a `ConfigMap` was too small.
const LIMIT: &str = "a ConfigMap holds 1 MiB in all; larger files go into several ConfigMaps of \
    the same folder, or compressed with gzip into binaryData";

/// A template as it was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Written {
    /// As its author wrote it.
    Text {
        /// What to call it in errors.
        name: String,
        /// JSON or YAML.
        text: String,
    },
    /// As an object, its keys in the API server's order.
    Object(Object),
}

impl Written {
    /// The template, unfilled.
    ///
    /// # Errors
    /// Where the text is no JSON or YAML.
    pub fn read(&self) -> Result<Template, Problems> {
        match self {
            Self::Text { name, text } => Template::read(name, text),
            Self::Object(object) => {
                let value = object_to_value(object);
                Ok(Template::from_value("the service's template", &value))
            }
        }
    }

    /// The SHA-256 of the text, or of the object as compact JSON, in hexadecimal.
    #[must_use]
    pub fn hash(&self) -> String {
        let digest = match self {
            Self::Text { text, .. } => Sha256::digest(text),
            Self::Object(object) => Sha256::digest(object_to_value(object).to_string()),
        };
        digest.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A service, and all that a run of it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Where it was found, as `Service shared/vm` or `ConfigMap shared/peo key cloud.json`.
    pub source: String,
    /// The namespace of that object, in which its scripts are.
    pub namespace: String,
    /// The service.
    pub fqsn: String,
    /// The version that was asked for, or the default one.
    pub version: String,
    /// The template of that version.
    pub template: Written,
    /// The parameters that it declares.
    pub params: Vec<ParamDecl>,
    /// `ConfigMaps` with its scripts.
    pub scripts: Vec<ScriptSource>,
    /// The image that its nodes run in.
    pub image: Option<String>,
    /// What carries out its nodes.
    pub executor: Option<ExecutorKind>,
    /// Further properties of its pods.
    pub pod: Option<PodOverrides>,
}

/// Why there is nothing to run under a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// It is no name of a service.
    #[error(transparent)]
    Name(#[from] FqsnError),
    /// No level has it.
    #[error("there is no service {fqsn}: looked at {}", looked.join(", "))]
    Nowhere {
        /// The name.
        fqsn: String,
        /// The levels, in order.
        looked: Vec<String>,
    },
    /// A level has it more than once.
    #[error("there is more than one service {fqsn}: {}", sources.join(" and "))]
    Twice {
        /// The name.
        fqsn: String,
        /// Where it was found.
        sources: Vec<String>,
    },
    /// It has no such version.
    #[error("{source_}: {fqsn}: {why}")]
    Version {
        /// The name.
        fqsn: String,
        /// Where it was found.
        source_: String,
        /// Which versions there are.
        why: String,
    },
    /// It may be there, but cannot be read.
    #[error("{fqsn} cannot be read: {why}")]
    Unreadable {
        /// The name.
        fqsn: String,
        /// Where, and what is wrong.
        why: String,
    },
}

/// Looks for a service. Only `Service` objects and `ConfigMaps` of the two namespaces count, and
/// of the latter those of a catalogue; others may be among them.
///
/// # Errors
/// Where no level has it, or the first that has it does not give a template.
pub fn find<'a>(
    fqsn: &str,
    version: Option<&str>,
    namespace: &str,
    shared: &str,
    services: impl Iterator<Item = &'a Service> + Clone,
    config_maps: impl Iterator<Item = &'a ConfigMap> + Clone,
) -> Result<Found, NotFound> {
    let name: Fqsn = fqsn.parse()?;
    let asked = Asked {
        fqsn,
        name: &name,
        version,
    };
    let namespaces = if namespace == shared {
        vec![namespace]
    } else {
        vec![namespace, shared]
    };
    for namespace in &namespaces {
        let here = |its: Option<&String>| its.is_some_and(|its| its == namespace);
        let services = (services.clone()).filter(|it| here(it.metadata.namespace.as_ref()));
        if let Some(found) = asked.among_services(services)? {
            return Ok(found);
        }
        let maps: Vec<&ConfigMap> = (config_maps.clone())
            .filter(|it| here(it.metadata.namespace.as_ref()))
            .collect();
        if let Some(found) = asked.among_config_maps(&maps)? {
            return Ok(found);
        }
    }
    let looked = namespaces.iter().flat_map(|namespace| {
        [
            format!("the Services of namespace {namespace}"),
            format!("the ConfigMaps there with the label {LABEL}"),
        ]
    });
    Err(NotFound::Nowhere {
        fqsn: fqsn.to_owned(),
        looked: looked.collect(),
    })
}

struct Asked<'a> {
    fqsn: &'a str,
    name: &'a Fqsn,
    version: Option<&'a str>,
}

/// An entry of a category file in a `ConfigMap`.
struct Entry {
    source: String,
    namespace: String,
    entry: category::Entry,
}

impl Asked<'_> {
    fn twice(&self, mut sources: Vec<String>) -> NotFound {
        sources.sort();
        NotFound::Twice {
            fqsn: self.fqsn.to_owned(),
            sources,
        }
    }

    fn unreadable(&self, why: String) -> NotFound {
        NotFound::Unreadable {
            fqsn: self.fqsn.to_owned(),
            why,
        }
    }

    fn no_version(&self, source: &str, why: String) -> NotFound {
        NotFound::Version {
            fqsn: self.fqsn.to_owned(),
            source_: source.to_owned(),
            why,
        }
    }

    fn among_services<'s>(
        &self,
        services: impl Iterator<Item = &'s Service>,
    ) -> Result<Option<Found>, NotFound> {
        let found: Vec<&Service> = services.filter(|it| it.spec.fqsn == self.fqsn).collect();
        match found.as_slice() {
            [] => Ok(None),
            [service] => self.from_service(service).map(Some),
            several => Err(self.twice(several.iter().map(|it| service_source(it)).collect())),
        }
    }

    fn from_service(&self, service: &Service) -> Result<Found, NotFound> {
        let source = service_source(service);
        let spec = &service.spec;
        let versions: BTreeMap<String, &ServiceVersion> = (spec.versions.iter())
            .map(|it| (it.version.clone(), it))
            .collect();
        let only = match spec.versions.as_slice() {
            [only] => Some(only.version.as_str()),
            _ => None,
        };
        let default = spec.default_version.as_deref().or(only);
        let (version, chosen) = category::choose(&versions, default, self.version)
            .map_err(|why| self.no_version(&source, why))?;
        let template = written(&source, chosen).map_err(|why| self.unreadable(why))?;
        Ok(Found {
            namespace: service.namespace().unwrap_or_default(),
            fqsn: self.fqsn.to_owned(),
            version: version.to_owned(),
            template,
            params: chosen.params.clone(),
            scripts: spec.scripts.clone(),
            image: spec.image.clone(),
            executor: spec.executor,
            pod: spec.pod.clone(),
            source,
        })
    }

    /// Looks through all `ConfigMaps` of a namespace: those of the category's folder are one.
    fn among_config_maps(&self, maps: &[&ConfigMap]) -> Result<Option<Found>, NotFound> {
        let Some((stem, folder)) = self.name.category.split_last() else {
            return Ok(None);
        };
        let folder = folder.join("/");
        let maps: Vec<&ConfigMap> = (maps.iter().copied())
            .filter(|map| catalogue_folder(map).is_some_and(|its| its == folder))
            .collect();
        let mut found = Vec::new();
        let mut unread = Vec::new();
        for map in &maps {
            for ending in ENDINGS {
                let key = format!("{stem}.{ending}");
                match self.entry(map, &key) {
                    Ok(entry) => found.extend(entry),
                    Err(why) => unread.push(why),
                }
            }
        }
        match found.as_slice() {
            // It may stand in the one that cannot be read.
            [] if !unread.is_empty() => Err(self.unreadable(unread.join("; "))),
            [] => Ok(None),
            [entry] => self.from_entry(&folder, entry, &maps).map(Some),
            several => Err(self.twice(several.iter().map(|it| it.source.clone()).collect())),
        }
    }

    fn entry(&self, map: &ConfigMap, key: &str) -> Result<Option<Entry>, String> {
        let Some(text) = text(map, key) else {
            return Ok(None);
        };
        let source = key_source(map, key);
        let entries = category::parse(&source, &text?).map_err(|it| it.to_string())?;
        let Some((name, value)) = (entries.iter()).find(|(name, _)| *name == self.name.service)
        else {
            return Ok(None);
        };
        let entry = category::entry(&source, name, value).map_err(|it| it.to_string())?;
        Ok(Some(Entry {
            source,
            namespace: map.namespace().unwrap_or_default(),
            entry,
        }))
    }

    fn from_entry(
        &self,
        folder: &str,
        Entry {
            source,
            namespace,
            entry,
        }: &Entry,
        maps: &[&ConfigMap],
    ) -> Result<Found, NotFound> {
        let default = entry.default_version.as_deref();
        let (version, path) = category::choose(&entry.templates, default, self.version)
            .map_err(|why| self.no_version(source, why))?;
        let unreadable = |why: String| self.unreadable(format!("{source}: {why}"));
        let key = template_key(path).map_err(unreadable)?;
        let holders: Vec<&ConfigMap> = (maps.iter().copied())
            .filter(|map| bytes(map, &key).is_some())
            .collect();
        let holder = match holders.as_slice() {
            [holder] => holder,
            [] => {
                let looked: Vec<String> = maps.iter().map(|map| map_source(map)).collect();
                return Err(unreadable(format!(
                    "version {version}: there is no key {key} for the template {path} in folder \
                     `{folder}`: looked at {}. {LIMIT}",
                    looked.join(", ")
                )));
            }
            several => {
                let both: Vec<String> = several.iter().map(|map| key_source(map, &key)).collect();
                return Err(unreadable(format!(
                    "version {version}: there is more than one template {path}: {}",
                    both.join(" and ")
                )));
            }
        };
        let text = text(holder, &key).unwrap_or_else(|| Ok(String::new()));
        Ok(Found {
            source: source.clone(),
            namespace: namespace.clone(),
            fqsn: self.fqsn.to_owned(),
            version: version.to_owned(),
            template: Written::Text {
                name: key_source(holder, &key),
                text: text.map_err(|why| self.unreadable(why))?,
            },
            params: Vec::new(),
            scripts: Vec::new(),
            image: None,
            executor: None,
            pod: None,
        })
    }
}

/// The template of a version of a service, or in words why there is none.
pub fn written(source: &str, version: &ServiceVersion) -> Result<Written, String> {
    match (&version.template, &version.template_text) {
        (Some(object), None) => Ok(Written::Object(object.clone())),
        (None, Some(text)) => Ok(Written::Text {
            // The end of a name tells JSON from YAML: it must not be the author's.
            name: format!("{source}, versions[{}].templateText", version.version),
            text: text.clone(),
        }),
        (template, _) => {
            let found = if template.is_some() { "both" } else { "none" };
            Err(format!(
                "{source}: version {}: found {found}; expected exactly one of template and \
                 templateText",
                version.version
            ))
        }
    }
}

/// What to call a `Service`.
#[must_use]
pub fn service_source(service: &Service) -> String {
    let namespace = service.namespace().unwrap_or_default();
    format!("Service {namespace}/{}", service.name_any())
}

/// What to call a `ConfigMap`.
#[must_use]
pub fn map_source(map: &ConfigMap) -> String {
    let namespace = map.namespace().unwrap_or_default();
    format!("ConfigMap {namespace}/{}", map.name_any())
}

fn key_source(map: &ConfigMap, key: &str) -> String {
    format!("{} key {key}", map_source(map))
}

/// The folder for which a `ConfigMap` of a catalogue stands; none: it is of no catalogue.
fn catalogue_folder(map: &ConfigMap) -> Option<&str> {
    let labels = map.metadata.labels.as_ref()?;
    labels.get(LABEL)?;
    let annotations = map.metadata.annotations.as_ref();
    let folder = annotations.and_then(|all| all.get(FOLDER));
    Some(folder.map_or("", |folder| folder.trim_matches('/')))
}

/// The content of a key.
#[must_use]
pub fn bytes<'a>(map: &'a ConfigMap, key: &str) -> Option<&'a [u8]> {
    let text = map.data.as_ref().and_then(|data| data.get(key));
    let binary = map.binary_data.as_ref().and_then(|data| data.get(key));
    text.map(String::as_bytes)
        .or_else(|| binary.map(|it| it.0.as_slice()))
}

/// The content of a key as a text, unfolded where it is compressed, or in words why it is none.
fn text(map: &ConfigMap, key: &str) -> Option<Result<String, String>> {
    let content = bytes(map, key)?;
    Some(to_text(Cow::Borrowed(content)).map_err(|why| format!("{}: {why}", key_source(map, key))))
}

/// Bytes as they were before they were compressed, if they were, or in words why there are none.
pub fn unfold(bytes: Cow<'_, [u8]>) -> Result<Vec<u8>, String> {
    if gzip::is_gzip(&bytes) {
        gzip::decompress(&bytes).map_err(|error| error.to_string())
    } else {
        Ok(bytes.into_owned())
    }
}

/// A text out of bytes that may be compressed, or in words why there is none.
pub fn to_text(bytes: Cow<'_, [u8]>) -> Result<String, String> {
    String::from_utf8(unfold(bytes)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("it is no UTF-8 text (from byte {at}); expected JSON or YAML, or that with gzip")
    })
}

/// The key under which the file with this path stands.
fn template_key(path: &str) -> Result<String, String> {
    let leaves = || {
        format!(
            "the template path `{path}` leaves the catalogue's folder; expected a path below it"
        )
    };
    if path.starts_with('/') {
        return Err(leaves());
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or_else(leaves)?;
            }
            name => segments.push(name),
        }
    }
    let key = segments.join(SLASH);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.is_empty() || key.len() > 253 || !key.chars().all(allowed) {
        return Err(format!(
            "the template path `{path}` cannot be a key of a ConfigMap, which has at most 253 of \
             A-Z a-z 0-9 - _ . (and {SLASH} for /); rename the file"
        ));
    }
    Ok(key)
}
