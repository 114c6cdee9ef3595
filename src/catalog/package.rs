//! A catalogue on disk as a Helm chart: one `Service` object a service, one ConfigMap a folder of
//! scripts.
//!
//! In a pod, the folder of a service's templates stands at `/apscli/scripts` with its sub-folders, so
//! that a relative `cmd` or `path` means there what it means here. Whatever could not mean the same
//! is refused: nothing is left out in silence. The same catalogue gives the same bytes.
//!
//! Must not write: it returns the chart's files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::engine::name::Fqsn;
use crate::engine::spec::{Action, EnvPart, EnvText, Spec};
use crate::template::{Filling, Template};
use crate::value::Problems;

use super::files::{Catalogue, CatalogueError, Service};

/// Most bytes that the API server takes in one ConfigMap, and most that a `Service` may have in
/// templates: an object may have 1.5 MiB in all.
pub const MAX_OBJECT_BYTES: usize = 1 << 20;

/// How `Service` objects are called. The core kind of the same name may have 63 characters and no
/// dots; ours may have more, but tools that look at the kind alone warn of it.
const SERVICE_NAMES: Naming = Naming {
    separator: '.',
    joiner: "-",
    longest: 54,
};

/// How folders are called in the names of `ConfigMaps`, which have 253 characters.
const FOLDER_NAMES: Naming = Naming {
    separator: '/',
    joiner: ".",
    longest: 180,
};

/// What stands in folders and is nobody's script.
const LITTER: [&str; 5] = [".git", ".hg", ".svn", ".DS_Store", "__pycache__"];

/// A byte order mark, which Helm takes off the files of a chart.
const MARK: &[u8] = "\u{feff}".as_bytes();
const MARKED: &str =
    "begins with a byte order mark, which Helm drops; save it as UTF-8 without one";

/// What is the same in all charts: path in the chart, and text.
const SKELETON: [(&str, &str); 6] = [
    (
        "values.yaml",
        include_str!("../../charts/apscli-services/values.yaml"),
    ),
    (
        "values.schema.json",
        include_str!("../../charts/apscli-services/values.schema.json"),
    ),
    (
        "templates/_helpers.tpl",
        include_str!("../../charts/apscli-services/templates/_helpers.tpl"),
    ),
    (
        "templates/NOTES.txt",
        include_str!("../../charts/apscli-services/templates/NOTES.txt"),
    ),
    (
        "templates/scripts.yaml",
        include_str!("../../charts/apscli-services/templates/scripts.yaml"),
    ),
    (
        "templates/services.yaml",
        include_str!("../../charts/apscli-services/templates/services.yaml"),
    ),
];

/// What the chart is called, and which services come into it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The chart's name: letters a-z, digits and `-`.
    pub name: String,
    /// The chart's version, as `1.2.3`.
    pub version: String,
    /// Only services whose name begins so.
    pub prefix: Option<String>,
    /// Whether scripts whose name begins with a dot come into it.
    pub dot_files: bool,
}

/// A chart that was not written yet.
#[derive(Debug)]
pub struct Chart {
    /// The files by their path in the chart.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// The services that are in it.
    pub services: Vec<String>,
    /// What is no error, but looks like a mistake.
    pub notes: Vec<String>,
}

/// Why a catalogue cannot be made a chart.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The system refuses.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The catalogue, or a category file in it.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A template cannot be run.
    #[error(transparent)]
    Template(#[from] Problems),
    /// A file or folder that cannot be published.
    #[error("{}: {why}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A service that cannot be published.
    #[error("{fqsn}: {why}")]
    Service {
        /// Its name, or what stands for it.
        fqsn: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
}

/// `files/services.json` of the chart, which its templates read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    services: Vec<ServiceEntry>,
    folders: Vec<FolderEntry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceEntry {
    name: String,
    fqsn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_version: Option<String>,
    versions: Vec<VersionEntry>,
    scripts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
struct VersionEntry {
    version: String,
    template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
}

/// A folder of scripts and where a service has it.
#[derive(Debug, Serialize)]
struct Mount {
    folder: String,
    path: String,
}

#[derive(Debug, Serialize)]
struct FolderEntry {
    name: String,
    files: Vec<FileEntry>,
}

#[derive(Debug, Serialize)]
struct FileEntry {
    key: String,
    file: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    binary: bool,
}

/// A service whose files were found.
struct Found {
    fqsn: String,
    service: Service,
    /// Version, path in the catalogue.
    templates: Vec<(String, PathBuf)>,
    /// Where its scripts are, where it has any.
    folder: Option<PathBuf>,
}

/// Reads a catalogue and makes the chart, or says all that is in the way.
pub fn chart(root: &Path, wanted: &Wanted) -> Result<Chart, Vec<PackageError>> {
    let mut packer = Packer::open(root, wanted)?;
    let services = packer.services();
    let found: Vec<Found> = services
        .into_iter()
        .filter_map(|(fqsn, service)| packer.find(fqsn, service))
        .collect();
    if found.is_empty() && packer.errors.is_empty() {
        let prefix = wanted.prefix.as_deref().map_or(String::new(), |prefix| {
            format!(" whose name begins with {prefix}")
        });
        packer.errors.push(PackageError::File {
            path: root.to_path_buf(),
            why: format!("there is no service in it{prefix}"),
        });
    }
    let index = packer.index(&found);
    if !packer.errors.is_empty() {
        return Err(packer.errors);
    }
    let mut files = packer.files;
    let mut add = |path: &str, text: String| files.insert(path.into(), text.into_bytes());
    for (path, text) in SKELETON {
        add(path, text.to_owned());
    }
    add("Chart.yaml", head(wanted));
    let text = serde_json::to_string_pretty(&index).map_err(|error| {
        vec![PackageError::Io {
            path: "files/services.json".into(),
            what: "cannot be written",
            source: error.into(),
        }]
    })?;
    add("files/services.json", text + "\n");
    Ok(Chart {
        files,
        services: found.into_iter().map(|found| found.fqsn).collect(),
        notes: packer.notes,
    })
}

/// `Chart.yaml`. Its first line says whose work the folder is, so that it may be replaced.
fn head(wanted: &Wanted) -> String {
    format!(
        "{PACKAGED}\napiVersion: v2\nname: {}\ndescription: Services of apscli and their scripts\n\
         type: application\nversion: {}\nkubeVersion: \">=1.30.0-0\"\n",
        wanted.name, wanted.version
    )
}

/// The first line of a packaged chart's `Chart.yaml`.
pub const PACKAGED: &str = "# Made by `apscli package`, which replaces the whole folder.";

struct Packer<'a> {
    wanted: &'a Wanted,
    /// The catalogue's folder, without links.
    root: PathBuf,
    catalogue: BTreeMap<String, Service>,
    /// Category files and templates, which are nobody's scripts; without links.
    no_scripts: BTreeSet<PathBuf>,
    /// Files of folders that were read, by the folder's path in the catalogue.
    folders: BTreeMap<PathBuf, Vec<FileEntry>>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    errors: Vec<PackageError>,
    notes: Vec<String>,
}

impl<'a> Packer<'a> {
    fn open(root: &Path, wanted: &'a Wanted) -> Result<Self, Vec<PackageError>> {
        let root = fs::canonicalize(root).map_err(|source| {
            vec![PackageError::Io {
                path: root.to_path_buf(),
                what: "cannot find the catalogue",
                source,
            }]
        })?;
        let (catalogue, unread) = Catalogue::new(root.clone())
            .list()
            .map_err(|error| vec![error.into()])?;
        let mut no_scripts = BTreeSet::new();
        let mut with_category = BTreeSet::new();
        let mut with_template = BTreeSet::new();
        for service in catalogue.values() {
            no_scripts.extend(fs::canonicalize(&service.category));
            with_category.extend(service.category.parent().map(Path::to_path_buf));
            for template in service.templates.values() {
                no_scripts.extend(fs::canonicalize(template));
                let folder = template.parent().map(fs::canonicalize);
                with_template.extend(folder.and_then(Result::ok));
            }
        }
        // A category file that cannot be read hides services. But what looks like one and stands
        // with templates, in a folder without categories, is a script's data.
        let is_data = |error: &CatalogueError| match error {
            CatalogueError::Category(problems) => Path::new(&problems.source)
                .ancestors()
                .skip(1)
                .take_while(|folder| !with_category.contains(*folder))
                .any(|folder| with_template.contains(folder)),
            _ => false,
        };
        let errors = unread
            .into_iter()
            .filter(|error| !is_data(error))
            .map(PackageError::from)
            .collect();
        Ok(Self {
            wanted,
            root,
            catalogue,
            no_scripts,
            folders: BTreeMap::new(),
            files: BTreeMap::new(),
            errors,
            notes: Vec::new(),
        })
    }

    /// The services that are wanted.
    fn services(&self) -> Vec<(String, Service)> {
        let is_wanted = |fqsn: &str| {
            let prefix = self.wanted.prefix.as_deref();
            prefix.is_none_or(|prefix| fqsn.starts_with(prefix))
        };
        let all = self.catalogue.iter();
        all.filter(|(fqsn, _)| is_wanted(fqsn))
            .map(|(fqsn, service)| (fqsn.clone(), service.clone()))
            .collect()
    }

    fn refuse_service(&mut self, fqsn: &str, why: String) {
        self.errors.push(PackageError::Service {
            fqsn: fqsn.to_owned(),
            why,
        });
    }

    fn refuse_file(&mut self, path: &Path, why: String) {
        self.errors.push(PackageError::File {
            path: path.to_path_buf(),
            why,
        });
    }

    /// A path in the catalogue, links followed; none: it leads out, or nowhere, and that is said.
    fn inside(&mut self, path: &Path) -> Option<PathBuf> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(source) => {
                self.errors.push(PackageError::Io {
                    path: path.to_path_buf(),
                    what: "cannot find it",
                    source,
                });
                return None;
            }
        };
        if let Ok(inside) = real.strip_prefix(&self.root) {
            return Some(inside.to_path_buf());
        }
        let why = format!(
            "leads to {}, which is not in the catalogue {}; only what is in it is published",
            real.display(),
            self.root.display()
        );
        self.refuse_file(path, why);
        None
    }

    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        let read = fs::read(path).map_err(|source| PackageError::Io {
            path: path.to_path_buf(),
            what: "cannot read it",
            source,
        });
        read.map_err(|error| self.errors.push(error)).ok()
    }

    /// Finds and checks the files of a service.
    fn find(&mut self, fqsn: String, service: Service) -> Option<Found> {
        let before = self.errors.len();
        let name: Fqsn = match fqsn.parse() {
            Ok(name) => name,
            Err(error) => {
                self.refuse_service(&fqsn, format!("{error}"));
                return None;
            }
        };
        // A category in two files is listed, but nothing of it runs.
        if let Err(error) = Catalogue::new(self.root.clone()).find(&name) {
            self.errors.push(error.into());
            return None;
        }
        self.inside(&service.category)?;
        if let Some(default) = &service.default_version
            && !service.templates.contains_key(default)
        {
            let why = format!("its default version {default} is none of its versions");
            self.refuse_service(&fqsn, why);
        }
        let mut templates = Vec::new();
        let mut specs = Vec::new();
        let mut with_scripts = BTreeSet::new();
        let mut size = 0;
        for (version, path) in &service.templates {
            let Some(folder) = path.parent().and_then(|folder| self.inside(folder)) else {
                continue;
            };
            let Some(inside) = self.inside(path) else {
                continue;
            };
            let Some(content) = self.read(path) else {
                continue;
            };
            let Ok(text) = String::from_utf8(content) else {
                self.refuse_file(path, "is no UTF-8; expected a text".to_owned());
                continue;
            };
            if text.as_bytes().starts_with(MARK) {
                self.refuse_file(path, MARKED.to_owned());
            }
            match Template::read(&path.display().to_string(), &text).and_then(|template| {
                template.graph(Filling::Later)?;
                template.spec(Filling::Later)
            }) {
                Ok(spec) => {
                    // An object has the text without its file's name.
                    if let Err(problems) = Template::read("templateText", &text) {
                        let why = format!(
                            "is read as another format where its name does not tell which: \
                             {problems}"
                        );
                        self.refuse_file(path, why);
                    }
                    specs.push((path.clone(), folder.clone(), spec));
                }
                Err(problems) => self.errors.push(problems.into()),
            }
            self.folder(&folder);
            if !self.mounts(&folder).is_empty() {
                with_scripts.insert(folder);
            }
            // In an object a template is JSON text, with its quotes and line ends escaped.
            size += serde_json::to_string(&text).map_or(text.len(), |json| json.len());
            self.files.insert(in_chart(&inside), text.into_bytes());
            templates.push((version.clone(), inside));
        }
        for (path, folder, spec) in &specs {
            self.check_paths(path, folder, spec);
        }
        if size > MAX_OBJECT_BYTES {
            let why = format!(
                "its templates have {size} bytes, and an object in a cluster may have \
                 {MAX_OBJECT_BYTES} of them; make two services of it, or run a large template by \
                 templateFrom"
            );
            self.refuse_service(&fqsn, why);
        }
        if with_scripts.len() > 1 {
            let folders: Vec<String> = with_scripts
                .iter()
                .map(|folder| format!("`{}`", folder.display()))
                .collect();
            let why = format!(
                "its templates stand in {}, which all hold scripts, but in a pod there is one \
                 folder of scripts for all versions; put the templates into one folder, and what \
                 differs into sub-folders",
                folders.join(" and ")
            );
            self.refuse_service(&fqsn, why);
        }
        (self.errors.len() == before).then(|| Found {
            fqsn,
            service,
            templates,
            folder: with_scripts.pop_first(),
        })
    }

    /// A relative path of a template must lead to the same in a pod as here.
    fn check_paths(&mut self, path: &Path, folder: &Path, spec: &Spec) {
        for node in &spec.nodes {
            let (field, texts) = match &node.action {
                Action::Cmd(cmd) => ("cmd", std::slice::from_ref(&cmd.program)),
                Action::Api(api) => ("path", api.path.as_slice()),
            };
            for text in texts {
                let Some(text) = fixed(text) else { continue };
                let is_path = field == "path" || text.contains('/');
                if !is_path || text.starts_with('/') {
                    continue;
                }
                let place = format!("{}: {}.{field}: `{text}`", path.display(), node.name);
                match below(&text) {
                    None => self.refuse_service(
                        &place,
                        "leads out of the template's folder, and a pod has that folder only"
                            .to_owned(),
                    ),
                    Some(inside) if field == "cmd" => {
                        let inside = folder.join(inside);
                        let parent = inside.parent().unwrap_or(Path::new(""));
                        let is_mounted =
                            self.mounts(folder).iter().any(|(path, _)| *path == parent);
                        let is_there = is_mounted
                            && self.folders.get(parent).is_some_and(|files| {
                                files.iter().any(|file| Path::new(&file.file) == inside)
                            });
                        if is_there {
                            continue;
                        }
                        if self.root.join(&inside).exists() {
                            self.refuse_service(
                                &place,
                                "belongs to another service, whose folder it stands in".to_owned(),
                            );
                        } else {
                            self.notes.push(format!("{place} does not exist"));
                        }
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// The folders of scripts that a service with its templates in `folder` has: path in the
    /// catalogue, and path in the pod. Another service's folder is not this one's.
    fn mounts(&self, folder: &Path) -> Vec<(&Path, &Path)> {
        let is_own = |path: &Path| {
            path.ancestors()
                .take_while(|below| *below != folder)
                .all(|below| !self.holds_others(&self.root.join(below)))
        };
        let with_files = self.folders.iter().filter(|(_, files)| !files.is_empty());
        with_files
            .filter_map(|(path, _)| Some((path.as_path(), path.strip_prefix(folder).ok()?)))
            .filter(|(path, _)| is_own(path))
            .collect()
    }

    /// Whether a category file or template stands in a folder or below.
    fn holds_others(&self, folder: &Path) -> bool {
        let mut others = self.no_scripts.iter();
        others.any(|other| other.starts_with(folder))
    }

    /// Reads the scripts of a folder (a path in the catalogue) and of its sub-folders, once.
    fn folder(&mut self, folder: &Path) {
        if self.folders.contains_key(folder) {
            return;
        }
        self.folders.insert(folder.to_path_buf(), Vec::new());
        let whole = self.root.join(folder);
        let listed = fs::read_dir(&whole).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match listed {
            Ok(entries) => entries,
            Err(source) => {
                self.errors.push(PackageError::Io {
                    path: whole,
                    what: "cannot list the folder",
                    source,
                });
                return;
            }
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut files = Vec::new();
        let mut size = 0;
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            if self.is_left_out(&path) {
                continue;
            }
            let Some(name) = name.to_str().filter(|name| is_key(name)) else {
                let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                if !self.holds_others(&real) {
                    let why = "its name cannot be a key of a ConfigMap; expected 1 to 253 of A-Z \
                               a-z 0-9 - _ . that do not begin with two dots";
                    self.refuse_file(&path, why.to_owned());
                }
                continue;
            };
            if LITTER.contains(&name) {
                continue;
            }
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let Some(real) = self.inside(&path) else {
                continue;
            };
            let real = self.root.join(real);
            if self.no_scripts.contains(&real) {
                continue;
            }
            if real.is_dir() && is_link {
                let why = "is a link to a folder, which could lead round in circles; put the \
                           folder itself here";
                self.refuse_file(&path, why.to_owned());
            } else if real.is_dir() {
                if !self.holds_others(&real) {
                    self.folder(&folder.join(name));
                }
            } else if real.is_file() {
                let Some(content) = self.read(&real) else {
                    continue;
                };
                if content.starts_with(MARK) {
                    self.refuse_file(&path, MARKED.to_owned());
                }
                size += content.len();
                let file = folder.join(name);
                files.push(FileEntry {
                    key: name.to_owned(),
                    file: file.display().to_string(),
                    binary: !is_plain(&content),
                });
                self.files.insert(in_chart(&file), content);
            } else {
                self.refuse_file(&path, "is no file; expected a script".to_owned());
            }
        }
        if size > MAX_OBJECT_BYTES {
            let why = format!(
                "its files have {size} bytes, and a ConfigMap holds {MAX_OBJECT_BYTES}; spread \
                 them over sub-folders, each a ConfigMap of its own, or put what is large into an \
                 image for the nodes"
            );
            self.refuse_file(&whole, why);
        }
        self.folders.insert(folder.to_path_buf(), files);
    }

    /// Whether something in a folder is left out because a name on its path in the catalogue begins
    /// with a dot, which is noted. Such files (`.env`, `.netrc`, `.git`) seldom are scripts and often hold
    /// secrets, and whoever may view a namespace reads its `ConfigMaps`. Also where a link with another
    /// name leads to one.
    fn is_left_out(&mut self, path: &Path) -> bool {
        let is_dot = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(b".")
        };
        if self.wanted.dot_files {
            return false;
        }
        let real = fs::canonicalize(path);
        let real = real.as_deref().unwrap_or(path);
        // What leads out of the catalog is refused, whatever it is called.
        let inside = real.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let leads_to_dot = path.is_symlink() && inside.ancestors().any(is_dot);
        if !is_dot(path) && !leads_to_dot || self.holds_others(real) {
            return false;
        }
        let why = if is_dot(path) {
            "its name begins with a dot".to_owned()
        } else {
            format!(
                "it leads to {}, whose name begins with a dot",
                inside.display()
            )
        };
        self.notes.push(format!(
            "{} is left out: {why}. --include-dot-files takes such files in",
            path.display()
        ));
        true
    }

    /// What the chart's templates read.
    fn index(&mut self, found: &[Found]) -> Index {
        let service_names = SERVICE_NAMES.names(found.iter().map(|found| found.fqsn.as_str()));
        let mounts: Vec<Vec<(PathBuf, String)>> = found
            .iter()
            .map(|found| {
                let folder = found.folder.as_deref();
                let mounts = folder.map(|folder| self.mounts(folder)).unwrap_or_default();
                mounts
                    .into_iter()
                    .map(|(folder, path)| (folder.to_path_buf(), path.display().to_string()))
                    .collect()
            })
            .collect();
        let used: BTreeSet<PathBuf> = mounts
            .iter()
            .flatten()
            .map(|(path, _)| path.clone())
            .collect();
        let texts: Vec<String> = used.iter().map(|path| path.display().to_string()).collect();
        let folder_names = FOLDER_NAMES.names(texts.iter().map(String::as_str));
        let name_of = |names: &BTreeMap<String, String>, text: &str| {
            names.get(text).cloned().unwrap_or_default()
        };
        let services = found
            .iter()
            .zip(mounts)
            .map(|(found, mounts)| ServiceEntry {
                name: name_of(&service_names, &found.fqsn),
                fqsn: found.fqsn.clone(),
                description: found.service.desc.clone(),
                default_version: found.service.default_version.clone(),
                versions: found.versions(),
                scripts: mounts
                    .into_iter()
                    .map(|(folder, path)| Mount {
                        folder: name_of(&folder_names, &folder.display().to_string()),
                        path,
                    })
                    .collect(),
            })
            .collect();
        let folders = used
            .iter()
            .map(|path| FolderEntry {
                name: name_of(&folder_names, &path.display().to_string()),
                files: self.folders.remove(path).unwrap_or_default(),
            })
            .collect();
        Index { services, folders }
    }
}

impl Found {
    fn versions(&self) -> Vec<VersionEntry> {
        let default = self.service.default_version.as_ref();
        let entry = |(version, path): &(String, PathBuf)| VersionEntry {
            version: version.clone(),
            template: path.display().to_string(),
            // A catalogue says one date for all; it is that of the version it recommends.
            release: default
                .filter(|default| *default == version)
                .and(self.service.release.clone()),
        };
        self.templates.iter().map(entry).collect()
    }
}

/// Where a file of the catalogue stands in the chart.
fn in_chart(inside: &Path) -> PathBuf {
    Path::new("files/catalogue").join(inside)
}

/// A text in which nothing is known only later.
fn fixed(text: &EnvText) -> Option<String> {
    let parts = text.parts.iter().map(|part| match part {
        EnvPart::Literal(literal) => Some(literal.as_str()),
        EnvPart::Variable(_) | EnvPart::Home => None,
    });
    parts.collect()
}

/// A relative path without dots; none: it leads out of where it starts.
fn below(text: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// Whether a name may be a key of a ConfigMap, and a folder's name in a pod.
fn is_key(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=253).contains(&name.len())
        && name != "."
        && !name.starts_with("..")
        && name.bytes().all(allowed)
}

/// Whether bytes are a text that every YAML and JSON reader gives back as it is. Line ends other
/// than CR and LF are taken for line ends by some, and a byte order mark is dropped.
fn is_plain(content: &[u8]) -> bool {
    let is_harmless = |c: char| {
        matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{a0}'..)
            && !matches!(
                c,
                '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}'
            )
    };
    std::str::from_utf8(content).is_ok_and(|text| text.chars().all(is_harmless))
}

/// How names are made for objects: small letters, digits and `-`, beginning with a letter.
struct Naming {
    /// What stands between the segments of a text.
    separator: char,
    /// What stands between those of its name.
    joiner: &'static str,
    /// Most characters, before a piece of hash.
    longest: usize,
}

impl Naming {
    /// A name for each text, each another. A text that is alike to others but for what such names
    /// cannot tell gets a piece of its hash.
    fn names<'a>(&self, texts: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
        let slugs: Vec<(&str, String)> = texts.map(|text| (text, self.slug(text))).collect();
        let mut seen = BTreeMap::new();
        for (_, slug) in &slugs {
            *seen.entry(slug.clone()).or_insert(0_usize) += 1;
        }
        let named = slugs.into_iter().map(|(text, slug)| {
            let is_alone = seen.get(&slug) == Some(&1);
            let name = if is_alone && slug.len() <= self.longest {
                slug
            } else {
                let cut: String = slug.chars().take(self.longest).collect();
                format!("{}-{}", cut.trim_end_matches(['-', '.']), short_hash(text))
            };
            (text.to_owned(), name)
        });
        named.collect()
    }

    fn slug(&self, text: &str) -> String {
        let segments = text.split(self.separator).map(|segment| {
            let plain: String = segment
                .chars()
                .map(|c| match c.to_ascii_lowercase() {
                    c @ ('a'..='z' | '0'..='9') => c,
                    _ => '-',
                })
                .collect();
            match plain.trim_matches('-') {
                "" => "x".to_owned(),
                plain => plain.to_owned(),
            }
        });
        let slug = segments.collect::<Vec<_>>().join(self.joiner);
        if slug.starts_with(|c: char| c.is_ascii_digit()) {
            format!("x{}{slug}", self.joiner)
        } else {
            slug
        }
    }
}

fn short_hash(text: &str) -> String {
    let mut hash = String::new();
    for byte in Sha256::digest(text).iter().take(4) {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_are_valid_and_differ() {
        let texts = [
            "oracle.peo.cloud.vm_allocation",
            "a.b_c",
            "a.b-c",
            "a.b.c",
            "A._x_",
            "9.1",
            &format!("a.{}", "y".repeat(300)),
        ];
        let names = SERVICE_NAMES.names(texts.into_iter());
        let name = |text: &str| names.get(text).unwrap().as_str();
        assert_eq!(name(texts[0]), "oracle-peo-cloud-vm-allocation");
        assert_eq!((name("A._x_"), name("9.1")), ("a-x", "x-9-1"));
        let different: BTreeSet<&String> = names.values().collect();
        assert_eq!(different.len(), texts.len());
        for name in different {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.len() <= 63 && name.chars().all(allowed), "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_lowercase()));
            assert!(!name.ends_with('-'));
        }
        let alone = SERVICE_NAMES.names(["a.b_c"].into_iter());
        assert_eq!(alone.get("a.b_c").unwrap(), "a-b-c");
        let folder = FOLDER_NAMES.names(["a b/c_d"].into_iter());
        assert_eq!(folder.get("a b/c_d").unwrap(), "a-b.c-d");
    }

    #[test]
    fn paths_that_lead_out_are_seen() {
        assert_eq!(below("./a/../b").unwrap(), Path::new("b"));
        assert_eq!(below(".").unwrap(), Path::new(""));
        for out in ["..", "a/../../b", "../a", "/etc"] {
            assert_eq!(below(out), None, "{out}");
        }
    }

    #[test]
    fn only_plain_text_is_text() {
        assert!(is_plain("a\tb\r\nÜ 节\n".as_bytes()));
        for other in [
            &b"\xff"[..],
            b"\0",
            b"\x1b[1m",
            "\u{85}".as_bytes(),
            "\u{feff}a".as_bytes(),
        ] {
            assert!(!is_plain(other), "{other:?}");
        }
        assert!(
            is_key(".env") && is_key("a-b_c.sh") && !is_key("..a") && !is_key("a b") && !is_key("")
        );
    }
}
