//! The interpreter as the parent prepares it, once: everything here is inherited by each call for nothing.
//!
//! May not import the user's code, but for the modules named to be preloaded. It holds on to the parts of the
//! standard library that a call needs, because user code may shadow or replace them.

use std::os::fd::AsFd;
use std::path::PathBuf;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyCFunction};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{child, os};

pub struct Interpreter<'py> {
    pub py: Python<'py>,
    pub version: String,
    pub executable: String,
    /// The limit that the parent was started with, and that calls get back.
    open_files: Rlimit,
    pub os: Bound<'py, PyModule>,
    pub sys: Bound<'py, PyModule>,
    pub function_type: Bound<'py, PyAny>,
    pub inspect: Bound<'py, PyModule>,
    pub traceback: Bound<'py, PyModule>,
    pub path_finder: Bound<'py, PyAny>,
    pub json_loads: Bound<'py, PyAny>,
    /// What `json_loads` comes down to for a text that is nothing but JSON: C code, where the rest is Python.
    pub json_scan: Option<Bound<'py, PyAny>>,
    /// The path hook that every path entry is offered to first, and that takes no folder.
    zip_hook: Bound<'py, PyAny>,
    pub json_encode: Bound<'py, PyAny>,
    fork: Bound<'py, PyAny>,
    exit: Bound<'py, PyAny>,
    threading: Bound<'py, PyModule>,
    atexit: Bound<'py, PyModule>,
    signal_mask: Bound<'py, PyAny>,
    unblock: Bound<'py, PyAny>,
    signals: Bound<'py, PyAny>,
}

impl<'py> Interpreter<'py> {
    pub fn prepare(py: Python<'py>, preload: &[String]) -> PyResult<Self> {
        let sys = py.import("sys")?;
        let os = py.import("os")?;
        let json = py.import("json")?;
        let signal = py.import("signal")?;
        py.import("importlib")?;
        let encoder = json.getattr("JSONEncoder")?.call(
            (),
            // ASCII, so that a lone surrogate survives; no NaN, because it is no JSON.
            Some(
                &[
                    (
                        "ensure_ascii",
                        true.into_pyobject(py)?.to_owned().into_any(),
                    ),
                    ("allow_nan", false.into_pyobject(py)?.to_owned().into_any()),
                    ("separators", (",", ":").into_pyobject(py)?.into_any()),
                ]
                .into_py_dict(py)?,
            ),
        )?;
        let version: String = sys.getattr("version")?.extract()?;
        let signals = ["SIGINT", "SIGTERM", "SIGHUP"]
            .map(|name| signal.getattr(name))
            .into_iter()
            .collect::<PyResult<Vec<_>>>()?;
        let this = Self {
            py,
            version: version
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            executable: sys.getattr("executable")?.extract().unwrap_or_default(),
            open_files: getrlimit(Resource::Nofile),
            function_type: py.import("types")?.getattr("FunctionType")?,
            inspect: py.import("inspect")?,
            traceback: py.import("traceback")?,
            path_finder: py.import("importlib.machinery")?.getattr("PathFinder")?,
            json_loads: json.getattr("loads")?,
            json_scan: json
                .getattr("JSONDecoder")?
                .call0()?
                .getattr("scan_once")
                .ok(),
            zip_hook: py.import("zipimport")?.getattr("zipimporter")?,
            json_encode: encoder.getattr("encode")?,
            fork: os.getattr("fork")?,
            exit: os.getattr("_exit")?,
            threading: py.import("threading")?,
            atexit: py.import("atexit")?,
            // Not that of `signal`, which makes enums of what it returns: a call does not look at it.
            signal_mask: py.import("_signal")?.getattr("pthread_sigmask")?,
            unblock: signal.getattr("SIG_UNBLOCK")?,
            signals: signals.into_pyobject(py)?.into_any(),
            sys,
            os,
        };
        this.preload(preload)?;
        this.streams()?;
        this.hooks()?;
        this.signals(&signal)?;
        this.limits()?;
        // What lives now lives on unchanged in every child: the collector need not touch (and so copy) it.
        let gc = py.import("gc")?;
        gc.call_method0("collect")?;
        gc.call_method0("freeze")?;
        Ok(this)
    }

    fn preload(&self, modules: &[String]) -> PyResult<()> {
        for name in modules {
            self.py.import(name.as_str()).map_err(|error| {
                PyRuntimeError::new_err(format!(
                    "the module to preload `{name}` does not import: {error}"
                ))
            })?;
        }
        Ok(())
    }

    /// Streams are set up here and not in each call: a call only puts other files under the same numbers.
    fn streams(&self) -> PyResult<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)?;
        rustix::stdio::dup2_stdin(null.as_fd()).map_err(std::io::Error::from)?;
        for name in ["stdout", "stderr"] {
            let stream = self.sys.getattr(name)?;
            // Lines show as they are printed, and no text that a program can hold makes a print fail.
            let how = [
                ("encoding", "utf-8".into_pyobject(self.py)?.into_any()),
                (
                    "errors",
                    "backslashreplace".into_pyobject(self.py)?.into_any(),
                ),
                (
                    "line_buffering",
                    true.into_pyobject(self.py)?.to_owned().into_any(),
                ),
            ];
            stream.call_method("reconfigure", (), Some(&how.into_py_dict(self.py)?))?;
            // What is left in a buffer would come out again in every child.
            stream.call_method0("flush")?;
        }
        os::flush_c_streams();
        Ok(())
    }

    fn hooks(&self) -> PyResult<()> {
        let hook = PyCFunction::new_closure(self.py, None, None, |_, _| child::forget_result())?;
        let when = [("after_in_child", hook)].into_py_dict(self.py)?;
        self.os.call_method("register_at_fork", (), Some(&when))?;
        Ok(())
    }

    /// The parent ends when the host is gone and for no other reason: signals wait, blocked, rather than
    /// being ignored, so that one which reaches a child in its first moment is not lost but delivered when
    /// the child unblocks it. The dispositions are those that calls start with.
    fn signals(&self, signal: &Bound<'py, PyModule>) -> PyResult<()> {
        let set = |name: &str, to: &str| {
            signal.call_method1("signal", (signal.getattr(name)?, signal.getattr(to)?))
        };
        set("SIGINT", "default_int_handler")?;
        set("SIGTERM", "SIG_DFL")?;
        // Inherited as ignored it would have the kernel reap children before their status is read.
        set("SIGCHLD", "SIG_DFL")?;
        self.signal_mask
            .call1((signal.getattr("SIG_BLOCK")?, &self.signals))?;
        Ok(())
    }

    /// A thousand calls are a thousand and some descriptors in the parent.
    fn limits(&self) -> PyResult<()> {
        let raised = Rlimit {
            current: self.open_files.maximum,
            maximum: self.open_files.maximum,
        };
        setrlimit(Resource::Nofile, raised).map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Forks by Python's own function, so that everything that wants to know of a fork does. 0 in the child.
    pub fn fork(&self) -> PyResult<i32> {
        self.fork.call0()?.extract()
    }

    /// In the child: undoes what was good for the parent alone.
    pub fn be_a_child(&self) -> PyResult<()> {
        setrlimit(Resource::Nofile, self.open_files).map_err(std::io::Error::from)?;
        // A signal that waited strikes here: by default action, or (SIGINT) as an exception.
        self.signal_mask.call1((&self.unblock, &self.signals))?;
        Ok(())
    }

    /// Makes a folder of the path known to the import system as such. It would find out by itself, but by way
    /// of an exception out of Python code.
    pub fn know_folder(&self, folder: &Bound<'py, PyAny>) -> PyResult<()> {
        let hooks = self.sys.getattr("path_hooks")?;
        if folder.extract::<PathBuf>()?.is_dir() && hooks.get_item(0)?.is(&self.zip_hook) {
            let known = self.sys.getattr("path_importer_cache")?;
            if !known.contains(folder)? {
                known.set_item(folder, hooks.get_item(1)?.call1((folder,))?)?;
            }
        }
        Ok(())
    }

    /// Ends the process the way an interpreter does, but for tearing itself down: the process goes anyway.
    pub fn exit(&self, status: i32) -> ! {
        // Waits for threads that are no daemons, as the end of a program does.
        if let Err(error) = self.threading.call_method0("_shutdown") {
            error.write_unraisable(self.py, None);
        }
        // An exit function that raises is reported by Python itself.
        let _ = self.atexit.call_method0("_run_exitfuncs");
        self.flush();
        let _ = self.exit.call1((status,));
        // Only if `os._exit` itself could not be called.
        std::process::abort()
    }

    pub fn flush(&self) {
        for name in ["stdout", "stderr", "__stdout__", "__stderr__"] {
            // The program may have closed or replaced them: that is not an error of ours to tell.
            let _ = self
                .sys
                .getattr(name)
                .and_then(|stream| stream.call_method0("flush"));
        }
        os::flush_c_streams();
    }
}
