//! What comes out of a call, as one JSON document: what the function returned, or what went wrong.
//!
//! May not let anything through that the host could not read: a document is valid JSON in ASCII, within the
//! caps on size and depth; what is not, becomes an exception that says so.

use std::fmt::Write as _;
use std::io::Write as _;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PySlice, PyString};

use crate::call::kind_of;
use crate::interpreter::Interpreter;
use crate::request::depth;

const SIZE_MAX: usize = 16 << 20;
/// The deepest document that `serde_json` reads without being told otherwise.
const DEPTH_MAX: usize = 127;
/// Characters of a message, which may quote data of any size.
const MESSAGE_MAX: isize = 64 << 10;

const CODE: &str = "return_code";
/// What a function may say beside its code.
const TOLD: [&str; 4] = ["output", "info", "err_msg", "err_code"];
const EXPECTED: &str = "expected 0, 1 or a dict with an int `return_code` (0 is success)";

#[derive(Clone, Copy)]
pub enum Kind {
    NotFound,
    Import,
    Signature,
    Raised,
    BadReturn,
    TooLarge,
    Request,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Import => "import",
            Self::Signature => "signature",
            Self::Raised => "raised",
            Self::BadReturn => "bad_return",
            Self::TooLarge => "too_large",
            Self::Request => "request",
        }
    }
}

/// Why there is nothing returned.
pub struct Failure {
    kind: Kind,
    what: What,
}

enum What {
    /// Told by us, in a sentence.
    Said(String),
    /// Raised by the user's code.
    Raised(PyErr),
}

impl Failure {
    pub fn said(kind: Kind, message: String) -> Self {
        Self {
            kind,
            what: What::Said(message),
        }
    }

    pub fn raised(kind: Kind, error: PyErr) -> Self {
        Self {
            kind,
            what: What::Raised(error),
        }
    }
}

/// The document of a call that went wrong; the whole traceback goes to the call's stderr.
pub fn exception(interpreter: &Interpreter<'_>, failure: &Failure) -> Vec<u8> {
    let py = interpreter.py;
    let message = match &failure.what {
        What::Said(message) => {
            tell(interpreter, message);
            PyString::new(py, message)
        }
        What::Raised(error) => {
            print_traceback(interpreter, error);
            last_line(error.value(py))
        }
    };
    let message = message
        .get_item(PySlice::new(py, 0, MESSAGE_MAX, 1))
        .unwrap_or_else(|_| message.into_any());
    let message = encode(interpreter, &message).unwrap_or_else(|_| "\"\"".to_owned());
    let kind = failure.kind.word();
    format!(
        "{{\"exception\":{{\"kind\":\"{kind}\",\"err_code\":\"apscli_run_py_func_exception\",\"err_msg\":{message}}}}}"
    )
    .into_bytes()
}

/// The document of what the function returned.
pub fn returned(
    interpreter: &Interpreter<'_>,
    target: &str,
    value: &Bound<'_, PyAny>,
) -> Result<Vec<u8>, Failure> {
    let bad = |what: String| {
        Failure::said(
            Kind::BadReturn,
            format!("`{target}` returned {what}; {EXPECTED}"),
        )
    };
    let mut document = String::from("{\"returned\":{");
    if let Ok(dict) = value.cast::<PyDict>() {
        let code = dict.get_item(CODE).ok().flatten();
        let code = code.ok_or_else(|| bad("a dict without `return_code`".to_owned()))?;
        let Some(number) = int(&code) else {
            return Err(bad(format!(
                "a dict whose `return_code` is {}",
                describe(&code)
            )));
        };
        let _ = write!(document, "\"return_code\":{number}");
        for key in TOLD {
            let Some(value) = dict.get_item(key).ok().flatten() else {
                continue;
            };
            let text = encode(interpreter, &value)
                .map_err(|error| unwritable(interpreter, target, key, error))?;
            let _ = write!(document, ",\"{key}\":{text}");
        }
        tell_dropped(interpreter, target, dict);
    } else if let Some(code @ (0 | 1)) = int(value) {
        document.push_str("\"return_code\":");
        document.push(if code == 0 { '0' } else { '1' });
    } else {
        return Err(bad(describe(value)));
    }
    document.push_str("}}");
    if document.len() > SIZE_MAX {
        let message = format!(
            "what `{target}` returned is {} bytes of JSON; {SIZE_MAX} is the limit",
            document.len()
        );
        return Err(Failure::said(Kind::TooLarge, message));
    }
    let deep = depth(document.as_bytes());
    if deep > DEPTH_MAX {
        let message = format!(
            "what `{target}` returned is nested {deep} deep in its document; {DEPTH_MAX} is the limit"
        );
        return Err(Failure::said(Kind::BadReturn, message));
    }
    Ok(document.into_bytes())
}

/// A whole number that is no truth value: in Python `True` is an int, but as a return code it could mean
/// either success or failure.
fn int(value: &Bound<'_, PyAny>) -> Option<i64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        return None;
    }
    value.extract().ok()
}

fn describe(value: &Bound<'_, PyAny>) -> String {
    if value.is_none() || value.is_instance_of::<PyBool>() {
        return value.to_string();
    }
    match int(value) {
        Some(number) => number.to_string(),
        None if value.is_instance_of::<PyInt>() => "an int of more than 64 bits".to_owned(),
        None => format!("a value {}", kind_of(value)),
    }
}

fn encode(interpreter: &Interpreter<'_>, value: &Bound<'_, PyAny>) -> PyResult<String> {
    interpreter.json_encode.call1((value,))?.extract()
}

fn unwritable(interpreter: &Interpreter<'_>, target: &str, key: &str, error: PyErr) -> Failure {
    if !error.is_instance_of::<PyException>(interpreter.py) {
        return Failure::raised(Kind::Raised, error);
    }
    let message = format!("`{key}` of what `{target}` returned cannot be written as JSON: {error}");
    Failure::said(Kind::BadReturn, message)
}

fn tell_dropped(interpreter: &Interpreter<'_>, target: &str, dict: &Bound<'_, PyDict>) {
    let unknown = |key: &Bound<'_, PyAny>| {
        !key.extract::<String>()
            .is_ok_and(|key| key == CODE || TOLD.contains(&&*key))
    };
    let dropped: Vec<String> = dict
        .keys()
        .iter()
        .filter(unknown)
        .map(|key| {
            key.repr().map_or_else(
                |_| "?".to_owned(),
                |text| text.to_string_lossy().into_owned(),
            )
        })
        .collect();
    if !dropped.is_empty() {
        let (dropped, known) = (dropped.join(", "), TOLD.join(", "));
        tell(
            interpreter,
            &format!(
                "`{target}` returned keys that are left out: {dropped} (known: {CODE}, {known})"
            ),
        );
    }
}

/// A line of our own in the call's log, after what the program has written so far.
fn tell(interpreter: &Interpreter<'_>, line: &str) {
    interpreter.flush();
    let _ = writeln!(std::io::stderr(), "apscli: {line}");
}

/// Only frames of the user's code are in it: ours are not Python's.
fn print_traceback(interpreter: &Interpreter<'_>, error: &PyErr) {
    let py = interpreter.py;
    let (kind, value) = (error.get_type(py), error.value(py));
    let printed = interpreter
        .traceback
        .call_method1("print_exception", (kind, value, error.traceback(py)));
    if printed.is_err() {
        tell(
            interpreter,
            &format!(
                "a traceback that cannot be printed: {}",
                last_line(value).to_string_lossy()
            ),
        );
    }
}

/// `ValueError: bad ip`, as the last entry of a traceback says it. Put together here rather than taken from the
/// printed text, whose last line may be the third of a message or a note.
fn last_line<'py>(error: &Bound<'py, PyAny>) -> Bound<'py, PyString> {
    let py = error.py();
    let kind = error.get_type();
    let name = kind
        .qualname()
        .map_or_else(|_| "exception".to_owned(), |name| name.to_string());
    let module = kind
        .module()
        .map_or_else(|_| String::new(), |module| module.to_string());
    let name = match module.as_str() {
        "" | "builtins" | "__main__" => name,
        module => format!("{module}.{name}"),
    };
    let Ok(text) = error.str() else {
        return PyString::new(py, &format!("{name}: <exception str() failed>"));
    };
    if text.is_empty().unwrap_or(false) {
        return PyString::new(py, &name);
    }
    // Joined by Python: the message may hold what is no Unicode text.
    let joined = PyString::new(py, &format!("{name}: ")).add(&text);
    joined
        .and_then(|joined| Ok(joined.cast_into::<PyString>()?))
        .unwrap_or(text)
}
