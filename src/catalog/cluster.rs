//! The catalogue in a cluster: `Service` objects, and `ConfigMaps` that hold category files and
//! templates as they lie in a folder.
//!
//! An FQSN is looked for level by level: `Service` objects of the run's namespace, `ConfigMaps`
//! there, then the same two in the namespace that all share. Which of the two namespaces'
//! `ConfigMaps` count is the administrator's choice, see [`LabelledMaps`]. The first level that has
//! it counts; one where it cannot be read is an error: falling through to another would run
//! something else than was meant.
//!
//! Where a level has a name more than once, the object that was created first counts, see
//! [`seniority`]: an object that is added cannot take a name from one that is there, nor make it
//! useless for all others.
//!
//! A catalogue `ConfigMap` has the label [`LABEL`] and says by the annotation [`FOLDER`] which
//! folder of the catalogue it stands for. Its keys are the files of the folder; a `/` in a path is
//! written `__`, because a key cannot hold it.
//!
//! Must not ask the cluster: it is given the objects.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::api::Object;
use crate::api::service::{ParamDecl, ScriptSource, Service, ServiceVersion};
use crate::api::workflow_run::{ExecutorKind, PodOverrides};
use crate::engine::name::{Fqsn, FqsnError};
use crate::template::{Filling, Limits, Template};

use super::category::{self, ENDINGS};
use super::gzip::{self, GzipError};

/// Label of a `ConfigMap` that is part of a catalogue; its value does not matter.
pub const LABEL: &str = "apscli.dev/catalog";
/// Annotation of such a `ConfigMap`: the folder that it stands for, as `oracle/peo`. Without it:
/// the catalogue's top.
pub const FOLDER: &str = "apscli.dev/folder";

/// Which `ConfigMaps` with the label [`LABEL`] count as catalogs. Whoever may create a `ConfigMap`
/// in such a namespace decides what runs there execute, with the Secrets that they name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelledMaps {
    /// Those of the shared namespace. The default: roles that may create `ConfigMaps` but neither
    /// `Services` nor runs are common, and the label turns that right into the right to publish.
    #[default]
    Shared,
    /// Those of the shared namespace, and for each run those of its own namespace.
    All,
    /// None: only `Service` objects count.
    None,
}

impl LabelledMaps {
    /// Whether those of a namespace count.
    #[must_use]
    pub fn count_in(self, namespace: &str, shared: &str) -> bool {
        match self {
            Self::Shared => namespace == shared,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// The order in which objects of one namespace that have the same name in the catalog count: by
/// `metadata.creationTimestamp`, which is set by the API server, and by name within one second.
pub fn seniority<K: ResourceExt>(object: &K) -> (bool, Option<Time>, String) {
    let created = object.creation_timestamp();
    (created.is_none(), created, object.name_any())
}

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
    /// Files that lie beside its template, where it was found in `ConfigMaps`.
    pub files: Vec<Files>,
    /// The image that its nodes run in.
    pub image: Option<String>,
    /// What carries out its nodes.
    pub executor: Option<ExecutorKind>,
    /// Whether its processes have a network.
    pub network: Option<bool>,
    /// Further properties of its pods.
    pub pod: Option<PodOverrides>,
}

/// Files of one folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files {
    /// The folder, relative to that of the template; empty: that folder itself.
    pub path: String,
    /// Texts by file name.
    pub data: BTreeMap<String, String>,
    /// Other files by name.
    pub binary_data: BTreeMap<String, ByteString>,
}

/// Why there is nothing to run under a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// It is no name of a service.
    #[error(transparent)]
    Name(#[from] FqsnError),
    /// No level has it.
    #[error("there is no service {fqsn}: looked at {}{note}", looked.join(", "))]
    Nowhere {
        /// The name.
        fqsn: String,
        /// The levels, in order.
        looked: Vec<String>,
        /// Which objects do not count.
        note: String,
    },
    /// A `ConfigMap` has it more than once.
    #[error("there is more than one service {fqsn}: {}", sources.join(" and "))]
    Twice {
        /// The name.
        fqsn: String,
        /// Where it was found.
        sources: Vec<String>,
    },
    /// It has no such version.
    #[error("{place}: {fqsn}: {why}")]
    Version {
        /// The name.
        fqsn: String,
        /// Where it was found.
        place: String,
        /// Which versions there are.
        why: String,
    },
    /// What was looked at unfolds to more than was asked for.
    #[error("{fqsn} is larger than {most} bytes")]
    Larger {
        /// The name.
        fqsn: String,
        /// How much was asked for.
        most: usize,
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

/// Annotation of an object in the operator's memory of which the content was not taken in: why. No
/// author can set it, as the operator keeps none of their annotations but [`FOLDER`].
pub const REFUSED: &str = "apscli.dev/refused";

/// How much compressed texts may unfold to, and whether one would have been more.
struct Unfolding {
    most: usize,
    is_over: Cell<bool>,
}

impl Unfolding {
    fn to(most: usize) -> Self {
        Self {
            most,
            is_over: Cell::new(false),
        }
    }

    /// The content of a key as a text, unfolded where it is compressed, or in words why it is
    /// none.
    fn text(&self, map: &ConfigMap, key: &str) -> Option<Result<String, String>> {
        let content = bytes(map, key)?;
        let text = if gzip::is_gzip(content) {
            gzip::decompress_within(content, self.most)
        } else if content.len() > self.most {
            Err(GzipError::TooLarge)
        } else {
            Ok(content.to_vec())
        };
        self.is_over.set(
            self.is_over.get() || self.most < gzip::LARGEST && text == Err(GzipError::TooLarge),
        );
        let text = text.map_err(|error| error.to_string()).and_then(utf8);
        Some(text.map_err(|why| format!("{}: {why}", key_source(map, key))))
    }
}

/// Looks for a service. Only `Service` objects and `ConfigMaps` of the two namespaces (the run's and
/// the shared one) count, and of the latter those of a catalogue; others may be among them. Where one
/// of the texts that have to be read is more than `most` bytes, the error is [`NotFound::Larger`].
///
/// # Errors
/// Where no level has it, or the first that has it does not give a template.
pub fn find_within<'a>(
    (fqsn, version): (&str, Option<&str>),
    namespaces: (&str, &str),
    labelled: LabelledMaps,
    services: impl Iterator<Item = &'a Service> + Clone,
    config_maps: impl Iterator<Item = &'a ConfigMap> + Clone,
    most: usize,
) -> Result<Found, NotFound> {
    let name: Fqsn = fqsn.parse()?;
    let unfolding = Unfolding::to(most);
    let asked = Asked {
        fqsn,
        name: &name,
        version,
        unfolding: &unfolding,
    };
    let found = find_in(&asked, namespaces, labelled, services, config_maps);
    if unfolding.is_over.get() {
        let fqsn = fqsn.to_owned();
        return Err(NotFound::Larger { fqsn, most });
    }
    found
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "an iterator is handed over, and looked through as often as there are levels"
)]
fn find_in<'a>(
    asked: &Asked<'_>,
    (namespace, shared): (&str, &str),
    labelled: LabelledMaps,
    services: impl Iterator<Item = &'a Service> + Clone,
    config_maps: impl Iterator<Item = &'a ConfigMap> + Clone,
) -> Result<Found, NotFound> {
    let fqsn = asked.fqsn;
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
        if !labelled.count_in(namespace, shared) {
            continue;
        }
        let maps: Vec<&ConfigMap> = (config_maps.clone())
            .filter(|it| here(it.metadata.namespace.as_ref()))
            .collect();
        if let Some(found) = asked.among_config_maps(&maps)? {
            return Ok(found);
        }
    }
    let (mut looked, mut uncounted) = (Vec::new(), Vec::new());
    for namespace in namespaces {
        looked.push(format!("the Services of namespace {namespace}"));
        if labelled.count_in(namespace, shared) {
            looked.push(format!("the ConfigMaps there with the label {LABEL}"));
        } else {
            uncounted.push(namespace);
        }
    }
    let note = if uncounted.is_empty() {
        String::new()
    } else {
        format!(
            " (ConfigMaps of namespace {} do not count as catalogs; the cluster's administrator \
             can change that: --catalog-config-maps)",
            uncounted.join(" and of ")
        )
    };
    Err(NotFound::Nowhere {
        fqsn: fqsn.to_owned(),
        looked,
        note,
    })
}

struct Asked<'a> {
    fqsn: &'a str,
    name: &'a Fqsn,
    version: Option<&'a str>,
    unfolding: &'a Unfolding,
}

/// An entry of a category file in a `ConfigMap`.
#[allow(
    clippy::struct_field_names,
    reason = "it is an entry and where it stands"
)]
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
            place: source.to_owned(),
            why,
        }
    }

    fn among_services<'s>(
        &self,
        services: impl Iterator<Item = &'s Service>,
    ) -> Result<Option<Found>, NotFound> {
        let found = services.filter(|it| it.spec.fqsn == self.fqsn);
        let oldest = found.min_by_key(|it| seniority(*it));
        oldest.map(|service| self.of_service(service)).transpose()
    }

    fn of_service(&self, service: &Service) -> Result<Found, NotFound> {
        let source = service_source(service);
        if let Some(why) = refused(service) {
            return Err(self.unreadable(format!("{source}: {why}")));
        }
        let spec = &service.spec;
        let chosen = spec
            .version(self.version)
            .map_err(|why| self.no_version(&source, why))?;
        if chosen.memory() > self.unfolding.most && self.unfolding.most < gzip::LARGEST {
            self.unfolding.is_over.set(true);
        }
        let template = written(&source, chosen).map_err(|why| self.unreadable(why))?;
        Ok(Found {
            namespace: service.namespace().unwrap_or_default(),
            fqsn: self.fqsn.to_owned(),
            version: chosen.version.clone(),
            template,
            params: chosen.params.clone(),
            scripts: spec.scripts.clone(),
            files: Vec::new(),
            image: spec.image.clone(),
            executor: spec.executor,
            network: spec.network,
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
        let mut maps: Vec<&ConfigMap> = (maps.iter().copied())
            .filter(|map| catalogue_folder(map).is_some_and(|its| its == folder))
            .collect();
        maps.sort_by_cached_key(|map| seniority(*map));
        let mut unread = Vec::new();
        for (place, map) in maps.iter().enumerate() {
            let mut found = Vec::new();
            if let Some(why) = refused(*map) {
                unread.push(format!("{}: {why}", map_source(map)));
            }
            for ending in ENDINGS {
                let key = format!("{stem}.{ending}");
                match self.entry(map, &key) {
                    Ok(entry) => found.extend(entry),
                    Err(why) => unread.push(why),
                }
            }
            match found.as_slice() {
                [] => {}
                // It may stand in an older one that cannot be read, or in this one.
                _ if !unread.is_empty() => break,
                [entry] => {
                    // What the entry's own object has goes before what older ones have: else who
                    // came first could put a template under a name that he does not have.
                    maps.get_mut(..=place).unwrap_or_default().rotate_right(1);
                    return self.of_entry(&folder, entry, &maps).map(Some);
                }
                several => {
                    return Err(self.twice(several.iter().map(|it| it.source.clone()).collect()));
                }
            }
        }
        if unread.is_empty() {
            Ok(None)
        } else {
            Err(self.unreadable(unread.join("; ")))
        }
    }

    fn entry(&self, map: &ConfigMap, key: &str) -> Result<Option<Entry>, String> {
        let Some(text) = self.unfolding.text(map, key) else {
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

    fn of_entry(
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
        let (holder, key) = template_at(maps, folder, version, path).map_err(unreadable)?;
        let text = self.unfolding.text(holder, &key);
        let text = text.unwrap_or_else(|| Ok(String::new()));
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
            files: beside(maps, &key, self.unfolding),
            image: None,
            executor: None,
            network: None,
            pod: None,
        })
    }
}

/// The first `ConfigMap` that has a template, and the key in it; or in words why there is none.
fn template_at<'m>(
    maps: &[&'m ConfigMap],
    folder: &str,
    version: &str,
    path: &str,
) -> Result<(&'m ConfigMap, String), String> {
    let key = template_key(path)?;
    if let Some(holder) = maps.iter().find(|map| bytes(map, &key).is_some()) {
        return Ok((holder, key));
    }
    let looked: Vec<String> = maps.iter().map(|map| map_source(map)).collect();
    Err(format!(
        "version {version}: there is no key {key} for the template {path} of folder `{folder}`: \
         looked at {}. {LIMIT}",
        looked.join(", ")
    ))
}

/// The keys that the entries of a folder's category files name as their templates.
fn templates(maps: &[&ConfigMap], unfolding: &Unfolding) -> BTreeSet<String> {
    categories(maps, unfolding)
        .filter_map(|(_, _, entries)| entries.ok())
        .flatten()
        .filter_map(|(_, _, entry)| entry.ok())
        .flat_map(|entry| entry.templates.into_values())
        .filter_map(|path| template_key(&path).ok())
        .collect()
}

/// The files of a template's folder and of the folders below it, but for templates and category
/// files. Of several of one name the first counts.
fn beside(maps: &[&ConfigMap], template: &str, unfolding: &Unfolding) -> Vec<Files> {
    let prefix = match template.rsplit_once(SLASH) {
        Some((folder, _)) => format!("{folder}{SLASH}"),
        None => String::new(),
    };
    let templates = templates(maps, unfolding);
    let mut folders: BTreeMap<String, Files> = BTreeMap::new();
    for map in maps {
        let texts = map.data.iter().flatten();
        let texts = texts.map(|(key, text)| (key, Ok(text)));
        let others = map.binary_data.iter().flatten();
        let others = others.map(|(key, bytes)| (key, Err(bytes)));
        for (key, content) in texts.chain(others) {
            let Some(rest) = key.strip_prefix(&prefix).filter(|rest| !rest.is_empty()) else {
                continue;
            };
            if category_stem(key).is_some() || templates.contains(key) {
                continue;
            }
            let (path, name) = place(rest);
            let files = folders.entry(path).or_default();
            if files.data.contains_key(name) || files.binary_data.contains_key(name) {
                continue;
            }
            match content {
                Ok(text) => drop(files.data.insert(name.to_owned(), text.clone())),
                Err(bytes) => drop(files.binary_data.insert(name.to_owned(), bytes.clone())),
            }
        }
    }
    let folders = folders.into_iter();
    folders
        .map(|(path, files)| Files { path, ..files })
        .collect()
}

/// Folder and name of the file that a key stands for.
fn place(key: &str) -> (String, &str) {
    // Names in which the underscores are no slash.
    let packages = ["__init__.py", "__main__.py"];
    let package = packages.iter().find_map(|name| {
        let folder = key.strip_suffix(name)?.strip_suffix(SLASH)?;
        Some((folder, *name))
    });
    let whole = (String::new(), key);
    if packages.contains(&key) {
        return whole;
    }
    let Some((folder, name)) = package.or_else(|| key.rsplit_once(SLASH)) else {
        return whole;
    };
    let path = folder.replace(SLASH, "/");
    let is_name = |segment: &str| !["", ".", ".."].contains(&segment);
    if is_name(name) && path.split('/').all(is_name) {
        (path, name)
    } else {
        whole
    }
}

/// The category that a key stands for; none: it is no category file. Templates and parameter
/// files may lie beside.
fn category_stem(key: &str) -> Option<&str> {
    let (stem, ending) = key.rsplit_once('.')?;
    let is_category = ENDINGS.contains(&ending) && !stem.contains('.') && !stem.contains(SLASH);
    is_category.then_some(stem)
}

type Parsed = (String, String, Result<category::Entry, String>);

/// All category files of a folder, each with its key and its entries: category, service and what
/// it is.
fn categories<'m>(
    maps: &[&'m ConfigMap],
    unfolding: &Unfolding,
) -> impl Iterator<Item = (&'m ConfigMap, &'m String, Result<Vec<Parsed>, String>)> {
    maps.iter().flat_map(|map| {
        let keys = map.data.iter().flat_map(BTreeMap::keys);
        let keys = keys.chain(map.binary_data.iter().flat_map(BTreeMap::keys));
        keys.filter_map(|key| {
            let stem = category_stem(key)?;
            let source = key_source(map, key);
            let entries = unfolding.text(map, key)?.and_then(|text| {
                category::parse(&source, &text).map_err(|problems| problems.to_string())
            });
            let entries = entries.map(|entries| {
                let entries = entries.into_iter().map(|(name, value)| {
                    let entry = category::entry(&source, &name, &value);
                    (stem.to_owned(), name, entry.map_err(|it| it.to_string()))
                });
                entries.collect()
            });
            Some((*map, key, entries))
        })
    })
}

/// The catalogue that a `ConfigMap` is part of: its namespace and folder; none: of no catalogue.
#[must_use]
pub fn folder_of(map: &ConfigMap) -> Option<(String, String)> {
    let folder = catalogue_folder(map)?;
    Some((map.namespace().unwrap_or_default(), folder.to_owned()))
}

/// A key that several `ConfigMaps` of a folder have: which counts where is said of each. A category
/// may be spread over several; its entries are looked at one by one.
fn keys_twice<'m>(
    holders: &BTreeMap<&str, Vec<&'m ConfigMap>>,
    templates: &BTreeSet<String>,
) -> Vec<(&'m ConfigMap, String)> {
    let mut problems = Vec::new();
    let is_spread = |key: &str| category_stem(key).is_some() && !templates.contains(key);
    for (key, holders) in holders.iter().filter(|(key, _)| !is_spread(key)) {
        if let [first, more @ ..] = holders.as_slice() {
            for later in more {
                for of in [*first, *later] {
                    let why = conflict(
                        &format!("file {key}"),
                        &map_source(first),
                        &map_source(later),
                    );
                    problems.push((of, why));
                }
            }
        }
    }
    problems
}

/// In words, that two objects have the same.
fn conflict(what: &str, older: &str, later: &str) -> String {
    format!(
        "there is more than one {what}: {older} and {later}; the older counts, which is {older}. \
         Take it out of one of them"
    )
}

/// Templates that were checked, by the version of the `ConfigMap` and the key that have them: each
/// is read once, however many entries name it and however often others of its folder change.
#[derive(Clone, Debug, Default)]
pub struct Checks(BTreeMap<(String, String, String), Result<(), String>>);

impl Checks {
    /// Forgets the templates of `ConfigMaps` that are not among these.
    pub fn retain(&mut self, maps: &[&ConfigMap]) {
        let versions: BTreeSet<(&str, &str)> = maps.iter().map(|map| version(map)).collect();
        self.0
            .retain(|(uid, version, _), _| versions.contains(&(uid.as_str(), version.as_str())));
    }

    /// How many templates were checked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was checked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// UID and version of a `ConfigMap`.
fn version(map: &ConfigMap) -> (&str, &str) {
    let metadata = &map.metadata;
    (
        metadata.uid.as_deref().unwrap_or_default(),
        metadata.resource_version.as_deref().unwrap_or_default(),
    )
}

/// Why the operator did not take in the content of an object; none: it did.
#[must_use]
pub fn refused(object: &impl ResourceExt) -> Option<&str> {
    object.annotations().get(REFUSED).map(String::as_str)
}

/// Most problems of a folder that are reported.
const MAX_PROBLEMS: usize = 200;

/// What is wrong with a folder of a catalogue, whose `ConfigMaps` these are: each problem with
/// the one that says what cannot be had. Of a name that stands in two, each of them is told.
/// `checks` are those of earlier times.
#[must_use]
pub fn problems<'m>(
    folder: &str,
    maps: &[&'m ConfigMap],
    checks: &mut Checks,
) -> Vec<(&'m ConfigMap, String)> {
    let mut maps = maps.to_vec();
    maps.sort_by_cached_key(|map| seniority(*map));
    let maps = maps.as_slice();
    let unfolding = Unfolding::to(gzip::LARGEST);
    let templates = templates(maps, &unfolding);
    let mut problems: Vec<(&ConfigMap, String)> = (maps.iter())
        .filter_map(|map| Some((*map, format!("{}: {}", map_source(map), refused(*map)?))))
        .collect();
    let mut seen: BTreeMap<(String, String), (&ConfigMap, String)> = BTreeMap::new();
    let mut holders: BTreeMap<&str, Vec<&ConfigMap>> = BTreeMap::new();
    for map in maps {
        let keys = map.data.iter().flat_map(BTreeMap::keys);
        for key in keys.chain(map.binary_data.iter().flat_map(BTreeMap::keys)) {
            holders.entry(key).or_default().push(map);
        }
    }
    problems.extend(keys_twice(&holders, &templates));
    for (map, key, entries) in categories(maps, &unfolding) {
        if problems.len() > MAX_PROBLEMS {
            break;
        }
        let source = key_source(map, key);
        // A template may look like a category file by its name; then it has no services.
        let is_category = |entries: &Vec<Parsed>| entries.iter().any(|(.., it)| it.is_ok());
        if templates.contains(key) && !entries.as_ref().is_ok_and(is_category) {
            continue;
        }
        let wrong = |why: String| (map, why);
        let entries = match entries {
            Ok(entries) => entries,
            Err(why) => {
                problems.push(wrong(why));
                continue;
            }
        };
        for (category, name, entry) in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(why) => {
                    problems.push(wrong(why));
                    continue;
                }
            };
            let path = folder.replace('/', ".");
            let fqsn = [path.as_str(), &category, &name].join(".");
            let fqsn = fqsn.trim_start_matches('.');
            if let Err(error) = fqsn.parse::<Fqsn>() {
                problems.push(wrong(format!("{source}: {error}")));
            }
            match seen.get(&(category.clone(), name.clone())) {
                Some((first, at)) => {
                    let why = conflict(&format!("service {fqsn}"), at, &source);
                    if !std::ptr::eq(*first, map) {
                        problems.push((first, why.clone()));
                    }
                    problems.push((map, why));
                    continue;
                }
                None => drop(seen.insert((category, name), (map, source.clone()))),
            }
            let default = entry.default_version.as_deref();
            if let (Some(_), Err(why)) =
                (default, category::choose(&entry.templates, default, None))
            {
                problems.push(wrong(format!("{source}: {fqsn}: {why}")));
            }
            for (version, path) in &entry.templates {
                if let Err(why) = check(maps, &holders, (folder, version, path), checks) {
                    problems.push(wrong(format!("{source}: {fqsn}: {why}")));
                }
            }
        }
    }
    problems
}

fn check(
    maps: &[&ConfigMap],
    holders: &BTreeMap<&str, Vec<&ConfigMap>>,
    (folder, version, path): (&str, &str, &str),
    checks: &mut Checks,
) -> Result<(), String> {
    let key = template_key(path)?;
    let candidates = holders.get(key.as_str());
    let (holder, key) = match candidates.map(Vec::as_slice) {
        Some(&[holder]) => (holder, key),
        // The first of several.
        Some(several) => template_at(several, folder, version, path)?,
        None => template_at(maps, folder, version, path)?,
    };
    let (uid, of) = self::version(holder);
    let known = (uid.to_owned(), of.to_owned(), key.clone());
    let check = || {
        let unfolding = Unfolding::to(gzip::LARGEST);
        let text = unfolding.text(holder, &key);
        let text = text.unwrap_or_else(|| Ok(String::new()))?;
        Template::read_within(&key_source(holder, &key), &text, Limits::CLUSTER)
            .and_then(|template| template.graph(Filling::Later))
            .map(drop)
            .map_err(|problems| cut(problems.to_string()))
    };
    checks.0.entry(known).or_insert_with(check).clone()
}

/// The beginning of what is wrong with a template: an Event holds no more.
fn cut(mut text: String) -> String {
    const LONGEST: usize = 2_000;
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

/// The template of a version of a service, or in words why there is none.
fn written(source: &str, version: &ServiceVersion) -> Result<Written, String> {
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
    utf8(unfold(bytes)?)
}

/// A text out of bytes, or in words why there is none.
pub fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TEMPLATE: &str = r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#;
    const NAME: &str = "oracle.peo.cloud.vm";

    fn service(namespace: &str, name: &str, fqsn: &str, versions: &[&str]) -> Service {
        let versions: Vec<_> = (versions.iter())
            .map(|version| json!({"version": version, "templateText": format!("{TEMPLATE} ")}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "apscli.dev/v1alpha1",
            "kind": "Service",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"fqsn": fqsn, "versions": versions},
        }))
        .unwrap()
    }

    fn map(namespace: &str, name: &str, folder: &str, data: &[(&str, &str)]) -> ConfigMap {
        let data: serde_json::Map<String, serde_json::Value> = data
            .iter()
            .map(|(key, text)| ((*key).to_owned(), json!(text)))
            .collect();
        serde_json::from_value(json!({
            "metadata": {
                "namespace": namespace,
                "name": name,
                "labels": {LABEL: "true"},
                "annotations": {FOLDER: folder},
            },
            "data": data,
        }))
        .unwrap()
    }

    fn category(service: &str, path: &str) -> String {
        json!({service: {"version": 1.0, "workflow_template_path": path}}).to_string()
    }

    /// 1,000 services with one template, which is read once, also when others of its folder change.
    #[test]
    fn template_that_many_entries_name_is_checked_once() {
        let entries: serde_json::Map<String, serde_json::Value> = (0..1_000)
            .map(|at| {
                (
                    format!("s{at}"),
                    json!({"workflow_template_path": "t.json"}),
                )
            })
            .collect();
        let entries = serde_json::Value::Object(entries).to_string();
        let mut a = map(
            "team",
            "a",
            "x",
            &[("many.json", &entries), ("t.json", "{}")],
        );
        a.metadata.uid = Some("a".to_owned());
        a.metadata.resource_version = Some("1".to_owned());
        let mut b = map(
            "team",
            "b",
            "x",
            &[("more.json", &entries.replace("\"s", "\"t"))],
        );
        b.metadata.uid = Some("b".to_owned());
        let mut checks = Checks::default();
        let found = problems("x", &[&a, &b], &mut checks);
        assert_eq!(checks.len(), 1);
        assert!(found.len() > MAX_PROBLEMS && found.len() < MAX_PROBLEMS + 1_000);
        // It is not read again: what it was found to be is believed.
        for known in checks.0.values_mut() {
            *known = Ok(());
        }
        checks.retain(&[&a, &b]);
        assert_eq!(problems("x", &[&a, &b], &mut checks), Vec::new());
        a.metadata.resource_version = Some("2".to_owned());
        checks.retain(&[&a, &b]);
        assert!(checks.is_empty());
    }

    /// A service, however large its texts are.
    fn find<'a>(
        fqsn: &str,
        version: Option<&str>,
        (namespace, shared): (&str, &str),
        labelled: LabelledMaps,
        services: impl Iterator<Item = &'a Service> + Clone,
        config_maps: impl Iterator<Item = &'a ConfigMap> + Clone,
    ) -> Result<Found, NotFound> {
        let asked = (fqsn, version);
        let most = gzip::LARGEST;
        find_within(
            asked,
            (namespace, shared),
            labelled,
            services,
            config_maps,
            most,
        )
    }

    fn look(services: &[Service], maps: &[ConfigMap]) -> Result<Found, NotFound> {
        let all = LabelledMaps::All;
        find(
            NAME,
            None,
            ("team", "shared"),
            all,
            services.iter(),
            maps.iter(),
        )
    }

    fn failure(services: &[Service], maps: &[ConfigMap]) -> String {
        look(services, maps).unwrap_err().to_string()
    }

    #[test]
    fn the_first_level_that_has_it_counts() {
        let entry = category("vm", "templates/vm.template");
        let files = [
            ("cloud.json", entry.as_str()),
            ("templates__vm.template", TEMPLATE),
        ];
        let services = [
            service("team", "vm", NAME, &["1"]),
            service("shared", "vm", NAME, &["1"]),
            service("other", "vm", NAME, &["1"]),
        ];
        let maps = [
            map("team", "peo", "oracle/peo", &files),
            map("shared", "peo", "/oracle/peo/", &files),
            map("other", "peo", "oracle/peo", &files),
        ];
        let sources =
            |services: &[Service], maps: &[ConfigMap]| look(services, maps).unwrap().source;
        assert_eq!(sources(&services, &maps), "Service team/vm");
        assert_eq!(
            sources(&services[1..], &maps),
            "ConfigMap team/peo key cloud.json"
        );
        assert_eq!(sources(&services[1..], &maps[1..]), "Service shared/vm");
        assert_eq!(
            sources(&services[2..], &maps[1..]),
            "ConfigMap shared/peo key cloud.json"
        );
        assert_eq!(
            failure(&services[2..], &maps[2..]),
            "there is no service oracle.peo.cloud.vm: looked at the Services of namespace team, \
             the ConfigMaps there with the label apscli.dev/catalog, the Services of namespace \
             shared, the ConfigMaps there with the label apscli.dev/catalog"
        );
        let found = look(&[], &maps).unwrap();
        assert_eq!(found.version, "1.0");
        assert_eq!(found.namespace, "team");
        let name = "ConfigMap team/peo key templates__vm.template".to_owned();
        let text = TEMPLATE.to_owned();
        assert_eq!(found.template, Written::Text { name, text });
    }

    /// The object as it was created in this second.
    fn created<K: kube::Resource>(mut object: K, second: i64) -> K {
        let time = jiff::Timestamp::from_second(second).unwrap();
        object.meta_mut().creation_timestamp = Some(Time(time));
        object
    }

    #[test]
    fn name_that_stands_twice_is_the_oldest_objects() {
        let service = |name, second| created(service("team", name, NAME, &["1"]), second);
        let source =
            |services: &[Service], maps: &[ConfigMap]| look(services, maps).unwrap().source;
        let of_service = |services: &[Service]| source(services, &[]);
        let (old, new) = (service("z", 1), service("a", 2));
        assert_eq!(of_service(&[new.clone(), old.clone()]), "Service team/z");
        assert_eq!(of_service(&[old.clone(), new.clone()]), "Service team/z");
        // Within one second, by name.
        assert_eq!(of_service(&[service("b", 2), new]), "Service team/a");
        // One that was created later brings nothing in, not even a version.
        let mut with_more = created(service("a", 2), 2);
        with_more.spec.versions[0].version = "2".to_owned();
        let services = [old, with_more];
        let found = find(
            NAME,
            Some("2"),
            ("team", "team"),
            LabelledMaps::All,
            services.iter(),
            [].iter(),
        );
        assert!(matches!(found, Err(NotFound::Version { .. })), "{found:?}");

        let entry = category("vm", "vm.template");
        let map = |name, key, second| {
            let files = [(key, entry.as_str()), ("vm.template", TEMPLATE)];
            created(map("shared", name, "oracle/peo", &files), second)
        };
        let (old, new) = (map("y", "cloud.yaml", 1), map("x", "cloud.json", 2));
        for maps in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
            assert_eq!(source(&[], &maps), "ConfigMap shared/y key cloud.yaml");
        }
        // An older one that cannot be read may have it; one that is newer takes nothing away.
        let broken = |second| {
            created(
                super::tests::map("shared", "b", "oracle/peo", &[("cloud.json", "{")]),
                second,
            )
        };
        assert_eq!(
            source(&[], &[old.clone(), broken(3)]),
            "ConfigMap shared/y key cloud.yaml"
        );
        let error = failure(&[], &[old.clone(), broken(0)]);
        assert!(
            error.contains("cannot be read: ConfigMap shared/b key cloud.json"),
            "{error}"
        );
        // One object that has it twice says so, and stops this name only.
        let mut twice = old.clone();
        let data = twice.data.as_mut().unwrap();
        data.insert("cloud.json".to_owned(), entry.clone());
        assert_eq!(
            failure(&[], &[twice]),
            "there is more than one service oracle.peo.cloud.vm: ConfigMap shared/y key \
             cloud.json and ConfigMap shared/y key cloud.yaml"
        );
    }

    #[test]
    fn files_of_the_entrys_object_go_before_older_ones() {
        let entry = category("vm", "t/vm.template");
        let other = TEMPLATE.replace("true", "evil");
        let files = [
            ("cloud.json", entry.as_str()),
            ("t__vm.template", TEMPLATE),
            ("t__x.sh", "x"),
        ];
        let squatter = [
            ("t__vm.template", other.as_str()),
            ("t__x.sh", "evil"),
            ("t__y.sh", "y"),
        ];
        let of = |name, files: &[(&str, &str)], second| {
            created(map("team", name, "oracle/peo", files), second)
        };
        let maps = [
            of("a", &squatter, 1),
            of("b", &files, 2),
            of("c", &squatter, 3),
        ];
        let found = look(&[], &maps).unwrap();
        let name = "ConfigMap team/b key t__vm.template".to_owned();
        assert_eq!(
            found.template,
            Written::Text {
                name,
                text: TEMPLATE.to_owned()
            }
        );
        assert_eq!(found.files[0].data["x.sh"], "x");
        assert_eq!(found.files[0].data["y.sh"], "y");
    }

    #[test]
    fn labelled_maps_count_where_the_admin_says() {
        let entry = category("vm", "vm.template");
        let files = [("cloud.json", entry.as_str()), ("vm.template", TEMPLATE)];
        let maps = [
            map("team", "m", "oracle/peo", &files),
            map("shared", "m", "oracle/peo", &files),
        ];
        let services = [service("shared", "vm", NAME, &["1"])];
        let look = |labelled, services: &[Service]| {
            let found = find(
                NAME,
                None,
                ("team", "shared"),
                labelled,
                services.iter(),
                maps.iter(),
            );
            found.map_or_else(|error| error.to_string(), |found| found.source)
        };
        let of_team = "ConfigMap team/m key cloud.json";
        let of_shared = "ConfigMap shared/m key cloud.json";
        assert_eq!(look(LabelledMaps::All, &services), of_team);
        assert_eq!(look(LabelledMaps::Shared, &services), "Service shared/vm");
        assert_eq!(look(LabelledMaps::default(), &[]), of_shared);
        let none = look(LabelledMaps::None, &[]);
        assert!(
            none.ends_with(
                "looked at the Services of namespace team, the Services of namespace shared \
                 (ConfigMaps of namespace team and of shared do not count as catalogs; the \
                 cluster's administrator can change that: --catalog-config-maps)"
            ),
            "{none}"
        );
    }

    #[test]
    fn versions_are_texts_and_a_missing_one_is_told() {
        let services = [service("team", "vm", NAME, &["1.1", "1.10"])];
        let find = |version| {
            find(
                NAME,
                version,
                ("team", "team"),
                LabelledMaps::All,
                services.iter(),
                [].iter(),
            )
        };
        assert_eq!(find(Some("1.10")).unwrap().version, "1.10");
        assert_eq!(
            find(Some("1.2")).unwrap_err().to_string(),
            "Service team/vm: oracle.peo.cloud.vm: it has no version 1.2; its versions are 1.1, \
             1.10"
        );
        assert!(matches!(find(None), Err(NotFound::Version { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_not_passed_by() {
        let entry = category("vm", "vm.template");
        let sound = map(
            "shared",
            "peo",
            "oracle/peo",
            &[("cloud.json", &entry), ("vm.template", TEMPLATE)],
        );
        let broken = map("team", "peo", "oracle/peo", &[("cloud.json", "{\"vm\": ")]);
        let error = failure(&[], &[broken.clone(), sound.clone()]);
        assert!(
            error.starts_with(
                "oracle.peo.cloud.vm cannot be read: ConfigMap team/peo key cloud.json"
            ),
            "{error}"
        );
        // A folder that is not asked for stops nobody.
        let elsewhere = map("team", "peo", "oracle", &[("cloud.json", "{")]);
        assert!(look(&[], &[elsewhere, sound.clone()]).is_ok());
        // What is found beside is found.
        let twin = map("shared", "z", "oracle/peo", &[("cloud.yml", "- 1")]);
        assert!(look(&[], &[sound, twin]).is_ok());
        assert!(matches!(
            find(
                "vm",
                None,
                ("n", "n"),
                LabelledMaps::All,
                [].iter(),
                [].iter()
            ),
            Err(NotFound::Name(_))
        ));
    }

    #[test]
    fn a_category_may_be_spread_over_several() {
        let (vm, db) = (
            category("vm", "./t/../t/vm.json"),
            category("db", "db.template"),
        );
        let mut packed = map("team", "c", "oracle/peo", &[]);
        packed.binary_data = Some(BTreeMap::from([(
            "t__vm.json".to_owned(),
            ByteString(gzip::compress(TEMPLATE.as_bytes())),
        )]));
        let maps = [
            map("team", "a", "oracle/peo", &[("cloud.json", &vm)]),
            map(
                "team",
                "b",
                "oracle/peo",
                &[("cloud.json", &db), ("db.template", TEMPLATE)],
            ),
            packed,
        ];
        let Written::Text { text, .. } = look(&[], &maps).unwrap().template else {
            panic!("it is a text")
        };
        assert_eq!(text, TEMPLATE);
        let maps: Vec<&ConfigMap> = maps.iter().collect();
        assert_eq!(
            problems("oracle/peo", &maps, &mut Checks::default()),
            Vec::new()
        );

        let error = failure(&[], &[maps[0].clone(), maps[1].clone()]);
        assert!(
            error.contains("there is no key t__vm.json for the template ./t/../t/vm.json")
                && error.contains("looked at ConfigMap team/a, ConfigMap team/b")
                && error.contains("holds 1 MiB in all"),
            "{error}"
        );
        let mut twin = maps[2].clone();
        twin.metadata.name = Some("d".to_owned());
        let problems = problems(
            "oracle/peo",
            &[maps[0], maps[1], maps[2], &twin],
            &mut Checks::default(),
        );
        let told: Vec<String> = problems.iter().map(|(map, _)| map.name_any()).collect();
        assert_eq!(told, ["c", "d"], "{problems:#?}");
        assert!(
            problems[0].1.contains("more than one file t__vm.json"),
            "{problems:#?}"
        );
    }

    #[test]
    fn a_template_path_stays_below_its_folder() {
        for path in ["../x", "/etc/passwd", "a/../../x", "a/b/../../../c"] {
            let error = template_key(path).unwrap_err();
            assert!(error.contains("leaves the catalogue's folder"), "{error}");
        }
        for path in ["", ".", "a b", "ä.template", &"x".repeat(254)] {
            let error = template_key(path).unwrap_err();
            assert!(error.contains("cannot be a key"), "{error}");
        }
        assert_eq!(
            template_key("./a//b/../c.template"),
            Ok("a__c.template".to_owned())
        );
    }

    proptest! {
        #[test]
        fn any_path_is_a_key_or_refused(path in "[a./_ -]{0,12}") {
            if let Ok(key) = template_key(&path) {
                prop_assert!(!key.is_empty() && !key.contains('/'));
            }
        }

        #[test]
        fn no_key_makes_a_place_that_leaves(key in "[a._]{1,12}") {
            let (path, name) = place(&key);
            prop_assert!(!["", ".", ".."].contains(&name) || name == key);
            prop_assert!(path.is_empty() || path.split('/').all(|it| !["", ".", ".."].contains(&it)));
        }
    }

    #[test]
    fn files_beside_a_template_come_with_it() {
        let entry = json!({
            "vm": {"workflow_template_path": {"1": "vm/1.template", "2": "vm/2.template"}, "default_version": "2"},
            "db": {"workflow_template_path": "vm/db.template"},
        })
        .to_string();
        let mut other = map("team", "b", "oracle/peo", &[("vm__lib__x.sh", "x")]);
        other.binary_data = Some(BTreeMap::from([(
            "vm__tool".to_owned(),
            ByteString(vec![0, 255]),
        )]));
        let maps = [
            map(
                "team",
                "a",
                "oracle/peo",
                &[
                    ("cloud.json", &entry),
                    ("vm__1.template", TEMPLATE),
                    ("vm__2.template", TEMPLATE),
                    ("vm__db.template", TEMPLATE),
                    ("vm__foo.py", "def f(): pass"),
                    ("vm__pkg____init__.py", ""),
                    ("db__foo.py", ""),
                    ("foo.py", ""),
                ],
            ),
            other,
        ];
        let files = look(&[], &maps).unwrap().files;
        let names: Vec<(String, Vec<String>)> = (files.into_iter())
            .map(|it| {
                (
                    it.path,
                    it.data
                        .into_keys()
                        .chain(it.binary_data.into_keys())
                        .collect(),
                )
            })
            .collect();
        let expected = [
            ("", vec!["foo.py", "tool"]),
            ("lib", vec!["x.sh"]),
            ("pkg", vec!["__init__.py"]),
        ];
        let expected = expected.map(|(path, names)| {
            (
                path.to_owned(),
                names.into_iter().map(str::to_owned).collect(),
            )
        });
        assert_eq!(names, expected);

        let twice = map("team", "c", "oracle/peo", &[("vm__foo.py", "other")]);
        let problems = problems("oracle/peo", &[&maps[0], &twice], &mut Checks::default());
        let told: Vec<String> = problems.iter().map(|(map, _)| map.name_any()).collect();
        assert_eq!(told, ["a", "c"], "{problems:#?}");
        assert!(
            problems
                .iter()
                .all(|(_, it)| it.contains("more than one file vm__foo.py"))
        );
    }

    #[test]
    fn a_template_that_is_named_like_a_category_is_none() {
        let files = [
            ("cloud.json", category("vm", "vm.json")),
            ("vm.json", TEMPLATE.to_owned()),
            // Nobody's template, and no category either.
            ("db.json", TEMPLATE.to_owned()),
            // A category, though it is somebody's template.
            ("odd.json", category("x", "odd.json")),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(key, it)| (*key, it.as_str())).collect();
        let maps = [map("team", "peo", "oracle/peo", &files)];
        assert!(look(&[], &maps).is_ok());
        let problems = problems("oracle/peo", &[&maps[0]], &mut Checks::default());
        let told: Vec<&str> = problems.iter().map(|(_, it)| it.as_str()).collect();
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].contains("key db.json") && told[0].contains("workflow_template_path"));
        assert!(told[1].contains("key odd.json"), "{told:#?}");
    }

    #[test]
    fn all_that_is_wrong_with_a_folder_is_told() {
        let entries = json!({
            "gone": {"workflow_template_path": "gone.template"},
            "out": {"workflow_template_path": "../out.template"},
            "loop": {"workflow_template_path": "loop.template"},
            "none": 1,
            "default": {"workflow_template_path": "fine.template", "default_version": "9"},
            "two words": {"workflow_template_path": "fine.template"},
            "fine": {"workflow_template_path": "fine.template"},
        });
        let cycle = r#"{"a": {"action": {"type": "cmd", "cmd": "true"}, "prev_nodes": ["a"]}}"#;
        let a = map(
            "team",
            "a",
            "oracle",
            &[
                ("cloud.json", &entries.to_string()),
                ("loop.template", cycle),
                ("fine.template", TEMPLATE),
                ("vm.param.json", "no category"),
                ("sub__x.json", "nor this"),
            ],
        );
        let b = map(
            "team",
            "b",
            "oracle",
            &[
                ("cloud.yaml", &category("fine", "fine.template")),
                ("bad.json", "["),
            ],
        );
        let found = problems("oracle", &[&a, &b], &mut Checks::default());
        let of = |name: &str| -> Vec<&str> {
            let of = found.iter().filter(|(map, _)| map.name_any() == name);
            of.map(|(_, problem)| problem.as_str()).collect()
        };
        let (of_a, of_b) = (of("a"), of("b"));
        for expected in [
            "there is no key gone.template",
            "leaves the catalogue's folder",
            "loop.template",
            "expected an object with workflow_template_path",
            "it has no version 9; its versions are 1.0",
            "a segment holds other than",
            "more than one service oracle.cloud.fine",
        ] {
            let told = of_a.iter().any(|problem| problem.contains(expected));
            assert!(told, "{expected}: {of_a:#?}");
        }
        assert_eq!(of_a.len(), 7, "{of_a:#?}");
        assert_eq!(of_b.len(), 2, "{of_b:#?}");
        assert!(of_b[0].contains("bad.json"), "{of_b:#?}");
        assert!(
            of_b[1].contains("more than one service oracle.cloud.fine: ConfigMap team/a key cloud.json and ConfigMap team/b key cloud.yaml"),
            "{of_b:#?}"
        );
    }
}
