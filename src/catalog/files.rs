//! The catalogue on disk: `metadata/oracle/peo/cloud.json` holds the services
//! `oracle.peo.cloud.*`, each `{version, workflow_template_path, desc, release,
//! default_version}`; `workflow_template_path` is a path or `{version: path}`, relative to the
//! category file.
//!
//! Changes are atomic: the folder is locked, the new file is written beside the old one, forced
//! to the disk and renamed over it. Must not read templates.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::engine::name::Fqsn;
use crate::value::{Problems, Value};

use super::category::{self, ENDINGS, Entries};

/// A catalogue: the folder `metadata`.
#[derive(Clone, Debug)]
pub struct Catalogue {
    root: PathBuf,
}

/// A service in a catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The category file that it stands in.
    pub category: PathBuf,
    /// Its versions as they are written, each with its template.
    pub templates: BTreeMap<String, PathBuf>,
    /// The version that runs when none is asked for.
    pub default_version: Option<String>,
    /// What it is for.
    pub desc: Option<String>,
    /// When it was released.
    pub release: Option<String>,
}

/// What a new entry says of itself.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    /// The version of the template.
    pub version: String,
    /// The template.
    pub template: PathBuf,
    /// What the service is for.
    pub desc: Option<String>,
    /// When it was released.
    pub release: Option<String>,
    /// The version that runs when none is asked for.
    pub default_version: Option<String>,
}

/// Why a catalogue does not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The system refuses.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A category file cannot be read.
    #[error(transparent)]
    Category(#[from] Problems),
    /// There is no such service.
    #[error("there is no service {fqsn}: {why}")]
    NotFound {
        /// The name.
        fqsn: Fqsn,
        /// Where it was looked for and what is there.
        why: String,
    },
    /// The change would undo another.
    #[error("{fqsn}: {why}")]
    Refused {
        /// The name.
        fqsn: Fqsn,
        /// What stands in the way.
        why: String,
    },
}

impl Catalogue {
    /// The catalogue in a folder.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn category_stem(&self, fqsn: &Fqsn) -> PathBuf {
        fqsn.category
            .iter()
            .fold(self.root.clone(), |path, segment| path.join(segment))
    }

    /// The category file of a service, where there is one.
    fn category_file(&self, fqsn: &Fqsn) -> Result<Option<PathBuf>, CatalogueError> {
        let stem = self.category_stem(fqsn);
        let found: Vec<PathBuf> = ENDINGS
            .iter()
            .map(|ending| stem.with_extension(ending))
            .filter(|path| path.is_file())
            .collect();
        match found.as_slice() {
            [_, other, ..] => Err(CatalogueError::Refused {
                fqsn: fqsn.clone(),
                why: format!("its category stands in two files, {} too", other.display()),
            }),
            found => Ok(found.first().cloned()),
        }
    }

    /// A service by name.
    pub fn find(&self, fqsn: &Fqsn) -> Result<Service, CatalogueError> {
        let not_found = |why: String| CatalogueError::NotFound {
            fqsn: fqsn.clone(),
            why,
        };
        let Some(path) = self.category_file(fqsn)? else {
            let file = self.category_stem(fqsn).with_extension("json");
            return Err(not_found(format!(
                "there is no category file {}",
                file.display()
            )));
        };
        let entries = read_category(&path)?;
        let Some((_, entry)) = entries.iter().find(|(name, _)| *name == fqsn.service) else {
            let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
            return Err(not_found(format!(
                "{} has {}",
                path.display(),
                names.join(", ")
            )));
        };
        Ok(service(&path, &fqsn.service, entry)?)
    }

    /// All services, by name, and what is wrong with the files that could not be read.
    pub fn list(&self) -> Result<(BTreeMap<String, Service>, Vec<CatalogueError>), CatalogueError> {
        let mut services = BTreeMap::new();
        let mut unread = Vec::new();
        let mut folders = vec![(self.root.clone(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            let io_error = |source| CatalogueError::Io {
                path: folder.clone(),
                what: "cannot list the folder",
                source,
            };
            let files =
                fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            let files = match files {
                Ok(files) => files,
                // Without its root there is no catalogue; without one folder there is the rest.
                Err(source) if folder == self.root => return Err(io_error(source)),
                Err(source) => {
                    unread.push(io_error(source));
                    continue;
                }
            };
            for file in files {
                // Links to folders are not followed: they could lead round in circles.
                let is_folder = file.file_type().is_ok_and(|kind| kind.is_dir());
                let path = file.path();
                let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else {
                    continue;
                };
                let name = format!("{prefix}{stem}.");
                if is_folder {
                    folders.push((path, name));
                    continue;
                }
                let ending = path.extension().and_then(|ending| ending.to_str());
                // Templates and parameter files may lie beside; only category files are read.
                if ending.is_none_or(|ending| !ENDINGS.contains(&ending)) || stem.contains('.') {
                    continue;
                }
                let entries = match read_category(&path) {
                    Ok(entries) => entries,
                    Err(error) => {
                        unread.push(error);
                        continue;
                    }
                };
                for (entry, value) in entries {
                    match service(&path, &entry, &value) {
                        Ok(service) => {
                            services.insert(format!("{name}{entry}"), service);
                        }
                        Err(problems) => unread.push(problems.into()),
                    }
                }
            }
        }
        Ok((services, unread))
    }

    /// Adds a version of a service.
    pub fn register(&self, fqsn: &Fqsn, new: &Registration) -> Result<(), CatalogueError> {
        self.change(fqsn, true, |path, entries| {
            let folder = path.parent().unwrap_or(&self.root);
            let template = std::path::absolute(&new.template)
                .and_then(|template| Ok((template, std::path::absolute(folder)?)))
                .map(|(template, folder)| match template.strip_prefix(&folder) {
                    Ok(inside) => inside.to_path_buf(),
                    Err(_) => template,
                })
                .map_err(|source| CatalogueError::Io {
                    path: new.template.clone(),
                    what: "cannot find the template",
                    source,
                })?;
            let template = Value::from(template.to_string_lossy().into_owned());
            let refused = |why| CatalogueError::Refused {
                fqsn: fqsn.clone(),
                why,
            };
            if !entries.iter().any(|(name, _)| *name == fqsn.service) {
                entries.push((fqsn.service.clone(), Value::Map(Vec::new())));
            }
            let Some(Value::Map(entry)) = entries
                .iter_mut()
                .find(|(name, _)| *name == fqsn.service)
                .map(|(_, entry)| entry)
            else {
                return Err(refused("its entry is no object".to_owned()));
            };
            let is_registered = match entry
                .iter()
                .find(|(name, _)| name == "workflow_template_path")
            {
                Some((_, Value::Map(paths))) => {
                    paths.iter().any(|(version, _)| *version == new.version)
                }
                _ => false,
            };
            let known = entry
                .iter()
                .find(|(name, _)| name == "version")
                .map(|(_, version)| version.to_plain_text());
            let paths = entry
                .iter_mut()
                .find(|(name, _)| name == "workflow_template_path");
            match paths.map(|(_, paths)| paths) {
                None => {
                    let paths = Value::Map(vec![(new.version.clone(), template)]);
                    entry.push(("workflow_template_path".to_owned(), paths));
                }
                Some(Value::Map(paths)) => {
                    match paths.iter().find(|(version, _)| *version == new.version) {
                        None => paths.push((new.version.clone(), template)),
                        // Registered again, to change what is said of it.
                        Some((_, known)) if *known == template => {}
                        Some((version, known)) => {
                            let known = known.to_plain_text();
                            return Err(refused(format!(
                                "version {version} is registered already, with the template {known}"
                            )));
                        }
                    }
                }
                Some(single) => {
                    let old = known.unwrap_or_else(|| "1.0".to_owned());
                    if old == new.version {
                        return Err(refused(format!(
                            "version {} is registered already",
                            new.version
                        )));
                    }
                    *single =
                        Value::Map(vec![(old, single.clone()), (new.version.clone(), template)]);
                }
            }
            let mut set = |name: &str, value: Option<&String>| {
                let Some(value) = value else { return };
                let value = Value::from(value.as_str());
                match entry.iter_mut().find(|(known, _)| known == name) {
                    Some((_, old)) => *old = value,
                    None => entry.push((name.to_owned(), value)),
                }
            };
            if !is_registered {
                set("version", Some(&new.version));
            }
            set("desc", new.desc.as_ref());
            set("release", new.release.as_ref());
            set("default_version", new.default_version.as_ref());
            service(path, &fqsn.service, &Value::Map(entry.clone()))?.version(fqsn, None)?;
            Ok(())
        })
    }

    /// Takes a service out, or one version of it.
    pub fn unregister(&self, fqsn: &Fqsn, version: Option<&str>) -> Result<(), CatalogueError> {
        self.change(fqsn, false, |path, entries| {
            let not_found = |why: String| CatalogueError::NotFound {
                fqsn: fqsn.clone(),
                why,
            };
            let Some(index) = entries.iter().position(|(name, _)| *name == fqsn.service) else {
                return Err(not_found(format!("{} does not have it", path.display())));
            };
            let Some(version) = version else {
                entries.remove(index);
                return Ok(());
            };
            let Some((_, entry)) = entries.get_mut(index) else {
                return Ok(());
            };
            let found = service(path, &fqsn.service, entry)?;
            if !found.templates.contains_key(version) {
                return Err(not_found(format!("it has no version {version}")));
            }
            if found.templates.len() == 1 {
                entries.remove(index);
                return Ok(());
            }
            if found.default_version.as_deref() == Some(version) {
                return Err(CatalogueError::Refused {
                    fqsn: fqsn.clone(),
                    why: format!(
                        "version {version} is its default; register another default first"
                    ),
                });
            }
            if let Value::Map(fields) = entry {
                for (name, value) in fields {
                    if let ("workflow_template_path", Value::Map(paths)) = (name.as_str(), value) {
                        paths.retain(|(known, _)| known != version);
                    }
                }
            }
            Ok(())
        })
    }

    /// Changes a category file under its folder's lock.
    fn change(
        &self,
        fqsn: &Fqsn,
        create: bool,
        change: impl FnOnce(&Path, &mut Entries) -> Result<(), CatalogueError>,
    ) -> Result<(), CatalogueError> {
        let stem = self.category_stem(fqsn);
        let folder = stem.parent().unwrap_or(&self.root).to_path_buf();
        let io_error = |path: &Path, what| {
            let path = path.to_path_buf();
            move |source| CatalogueError::Io { path, what, source }
        };
        if create {
            fs::create_dir_all(&folder).map_err(io_error(&folder, "cannot make the folder"))?;
        }
        let lock = File::open(&folder).map_err(io_error(&folder, "cannot open the folder"))?;
        lock.lock()
            .map_err(io_error(&folder, "cannot lock the folder"))?;
        let path = match self.category_file(fqsn)? {
            Some(path) => path,
            None if create => stem.with_extension("json"),
            None => {
                return Err(CatalogueError::NotFound {
                    fqsn: fqsn.clone(),
                    why: format!(
                        "there is no category file {}",
                        stem.with_extension("json").display()
                    ),
                });
            }
        };
        if path.extension().is_none_or(|ending| ending != "json") {
            return Err(CatalogueError::Refused {
                fqsn: fqsn.clone(),
                why: format!("{} is YAML, which is changed by hand", path.display()),
            });
        }
        let mut entries = if path.is_file() {
            read_category(&path)?
        } else {
            Vec::new()
        };
        change(&path, &mut entries)?;
        let mut text = serde_json::to_string_pretty(&Value::Map(entries))
            .map_err(|error| io_error(&path, "cannot write the category file")(error.into()))?;
        text.push('\n');
        let temporary = path.with_extension(format!("json.new-{}", std::process::id()));
        // One that a kill left is replaced. Nothing is written through a link: who else may write the
        // folder could have put one there.
        let _ = fs::remove_file(&temporary);
        let written = File::create_new(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            lock.sync_all()
        });
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            io_error(&path, "cannot write the category file")(source)
        })
    }
}

impl Service {
    /// A version and its template: the one asked for, else the default.
    pub fn version(
        &self,
        fqsn: &Fqsn,
        asked: Option<&str>,
    ) -> Result<(&str, &Path), CatalogueError> {
        category::choose(&self.templates, self.default_version.as_deref(), asked)
            .map(|(version, path)| (version, path.as_path()))
            .map_err(|why| CatalogueError::NotFound {
                fqsn: fqsn.clone(),
                why,
            })
    }
}

fn read_category(path: &Path) -> Result<Entries, CatalogueError> {
    let text = fs::read_to_string(path).map_err(|source| CatalogueError::Io {
        path: path.to_path_buf(),
        what: "cannot read the category file",
        source,
    })?;
    Ok(category::parse(&path.display().to_string(), &text)?)
}

fn service(file: &Path, name: &str, entry: &Value) -> Result<Service, Problems> {
    let entry = category::entry(&file.display().to_string(), name, entry)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let templates = entry.templates.into_iter();
    Ok(Service {
        category: file.to_path_buf(),
        templates: templates
            .map(|(version, path)| (version, folder.join(path)))
            .collect(),
        default_version: entry.default_version,
        desc: entry.desc,
        release: entry.release,
    })
}
