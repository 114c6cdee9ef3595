//! What a call is to do: read from its pipe, checked, and put in place (environment, folder, path).
//!
//! May not trust the request beyond what is checked here, and may not import anything of the user's.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::interpreter::Interpreter;
use crate::outcome::{Failure, Kind};

const SIZE_MAX: usize = 64 << 20;
const DEPTH_MAX: usize = 128;

pub struct Request<'py> {
    pub module: String,
    pub function: String,
    pub path: Bound<'py, PyList>,
    pub param: Bound<'py, PyDict>,
}

impl Request<'_> {
    /// The function's name as messages give it.
    pub fn target(&self) -> String {
        format!("{}.{}", self.module, self.function)
    }
}

pub fn read<'py>(interpreter: &Interpreter<'py>, pipe: OwnedFd) -> Result<Request<'py>, Failure> {
    let py = interpreter.py;
    let text = py.detach(|| {
        let mut text = Vec::new();
        let limit = SIZE_MAX as u64 + 1;
        File::from(pipe)
            .take(limit)
            .read_to_end(&mut text)
            .map(|_| text)
    });
    let text = text.map_err(|e| bad(format!("the request cannot be read: {e}")))?;
    if text.len() > SIZE_MAX {
        return Err(bad(format!("the request is over {SIZE_MAX} bytes")));
    }
    let deep = depth(&text);
    if deep > DEPTH_MAX {
        return Err(bad(format!(
            "the request is nested {deep} deep; {DEPTH_MAX} is the limit"
        )));
    }
    let wrong = |error: PyErr| bad(format!("the request is not what it should be: {error}"));
    let request = match scanned(interpreter, &text) {
        Some(request) => request,
        None => interpreter
            .json_loads
            .call1((PyBytes::new(py, &text),))
            .map_err(|error| bad(format!("the request is not JSON: {error}")))?,
    };
    drop(text);
    let request = request
        .cast_into::<PyDict>()
        .map_err(|error| wrong(error.into()))?;
    let parsed = parse(&request).map_err(wrong)?;
    apply(interpreter, &request, &parsed).map_err(|error| bad(error.to_string()))?;
    Ok(parsed)
}

/// Reads a text that is JSON from its first character to its last; what else it may be, or what is wrong
/// with it, is for Python's own code to say.
fn scanned<'py>(interpreter: &Interpreter<'py>, text: &[u8]) -> Option<Bound<'py, PyAny>> {
    let text = std::str::from_utf8(text).ok()?;
    let scanned = interpreter.json_scan.as_ref()?.call1((text, 0)).ok()?;
    let (value, end) = scanned.extract::<(_, usize)>().ok()?;
    (end == text.chars().count()).then_some(value)
}

fn bad(message: String) -> Failure {
    Failure::said(Kind::Request, message)
}

fn parse<'py>(request: &Bound<'py, PyDict>) -> PyResult<Request<'py>> {
    let py = request.py();
    let text = |key: &str| -> PyResult<String> { request.as_any().get_item(key)?.extract() };
    Ok(Request {
        module: text("module")?,
        function: text("function")?,
        path: match request.get_item("path")? {
            Some(path) => path.cast_into()?,
            None => PyList::empty(py),
        },
        param: match request.get_item("param")? {
            Some(param) => param.cast_into()?,
            None => PyDict::new(py),
        },
    })
}

fn apply<'py>(
    interpreter: &Interpreter<'py>,
    request: &Bound<'py, PyDict>,
    parsed: &Request<'py>,
) -> PyResult<()> {
    if let Some(env) = request.get_item("env")?.filter(|env| !env.is_none()) {
        let environ = interpreter.os.getattr("environ")?;
        // One by one: `update` first asks the abstract base classes what it was given, which costs more.
        for (name, value) in env.cast::<PyDict>()? {
            environ.set_item(name, value)?;
        }
        if env.contains("TZ")? {
            // A process started with it would have it; one that runs already must be told.
            interpreter.py.import("time")?.call_method0("tzset")?;
        }
    }
    if let Some(cwd) = request.get_item("cwd")?.filter(|cwd| !cwd.is_none()) {
        interpreter.os.call_method1("chdir", (cwd,))?;
    }
    for entry in parsed.path.iter() {
        // Whatever is wrong with it, the import itself will say.
        let _ = interpreter.know_folder(&entry);
    }
    let path = interpreter.sys.getattr("path")?.cast_into::<PyList>()?;
    path.set_slice(0, 0, &parsed.path)
}

/// How deep lists and objects of a JSON text are nested. Of a text that is no JSON it gives some number.
pub fn depth(text: &[u8]) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                now += 1;
                most = most.max(now);
            }
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}
