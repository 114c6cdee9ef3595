//! From names to a returned value: import the module, find the function, see that the parameters fit, call.
//!
//! May not judge what is returned (`outcome` does). Each thing that can go wrong before the function runs is
//! a kind of its own, so that a typing mistake in a template is not taken for an error of the function.

use pyo3::exceptions::{PyAttributeError, PyException, PyModuleNotFoundError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyList, PyTuple};

use crate::interpreter::Interpreter;
use crate::outcome::{Failure, Kind};
use crate::request::Request;

/// Names listed in a message before it is cut.
const NAMES_MAX: usize = 20;

pub fn call<'py>(
    interpreter: &Interpreter<'py>,
    request: &Request<'py>,
) -> Result<Bound<'py, PyAny>, Failure> {
    make_way(interpreter, request).map_err(|e| Failure::raised(Kind::Import, e))?;
    let module = import(interpreter, request)?;
    let function = find(request, &module)?;
    check_parameters(interpreter, request, &function)?;
    function
        .call((), Some(&request.param))
        .map_err(|e| Failure::raised(Kind::Raised, e))
}

/// The parent has imported parts of the standard library (and what was preloaded). A module of the same
/// name in the call's own path comes first for a program that starts afresh, so it does here.
fn make_way(interpreter: &Interpreter<'_>, request: &Request<'_>) -> PyResult<()> {
    let top = request.module.split('.').next().unwrap_or_default();
    let modules = interpreter.sys.getattr("modules")?.cast_into::<PyDict>()?;
    let Some(loaded) = modules.get_item(top)? else {
        return Ok(());
    };
    let origin =
        |spec: &Bound<'_, PyAny>| -> Option<String> { spec.getattr("origin").ok()?.extract().ok() };
    let loaded = loaded.getattr("__spec__").ok().as_ref().and_then(origin);
    // Built in and frozen modules come before any path in every program.
    if loaded
        .as_deref()
        .is_none_or(|from| from == "built-in" || from == "frozen")
    {
        return Ok(());
    }
    let spec = interpreter
        .path_finder
        .call_method1("find_spec", (top, &request.path))?;
    let Some(found) = origin(&spec) else {
        return Ok(());
    };
    if loaded.as_deref() != Some(&*found) {
        let below = format!("{top}.");
        for name in modules.keys() {
            if name
                .extract::<String>()
                .is_ok_and(|name| name == top || name.starts_with(&below))
            {
                modules.del_item(name)?;
            }
        }
    }
    Ok(())
}

fn import<'py>(
    interpreter: &Interpreter<'py>,
    request: &Request<'py>,
) -> Result<Bound<'py, PyModule>, Failure> {
    let py = interpreter.py;
    let name = request.module.as_str();
    if name.is_empty() || name.starts_with('.') || name.contains('\0') {
        let message = format!("`{name}` cannot be the name of a module");
        return Err(Failure::said(Kind::NotFound, message));
    }
    py.import(name).map_err(|error| {
        if is_missing(py, name, &error) {
            let message = format!(
                "there is no module `{name}` ({}); searched: {}",
                error.value(py),
                searched(interpreter)
            );
            Failure::said(Kind::NotFound, message)
        } else {
            Failure::raised(Kind::Import, error)
        }
    })
}

/// Is it the module itself that is missing, and not something that it imports?
fn is_missing(py: Python<'_>, name: &str, error: &PyErr) -> bool {
    let missing = error.value(py).getattr("name");
    let missing = missing
        .and_then(|name| name.extract::<String>())
        .unwrap_or_default();
    let itself = name == missing
        || name
            .strip_prefix(&missing)
            .is_some_and(|rest| rest.starts_with('.'));
    // A traceback has no frame when no code of a module ran (Python takes those of the import system out).
    itself && error.is_instance_of::<PyModuleNotFoundError>(py) && error.traceback(py).is_none()
}

fn searched(interpreter: &Interpreter<'_>) -> String {
    let path = interpreter.sys.getattr("path").ok();
    let path = path.and_then(|path| path.cast_into::<PyList>().ok());
    path.map_or_else(String::new, |path| {
        path.iter()
            .map(|entry| entry.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    })
}

fn find<'py>(
    request: &Request<'py>,
    module: &Bound<'py, PyModule>,
) -> Result<Bound<'py, PyAny>, Failure> {
    let py = module.py();
    let mut found = module.clone().into_any();
    for part in request.function.split('.') {
        found = found.getattr(part).map_err(|error| {
            if error.is_instance_of::<PyAttributeError>(py) {
                Failure::said(Kind::NotFound, no_function(request, module))
            } else {
                Failure::raised(Kind::Import, error)
            }
        })?;
    }
    if !found.is_callable() {
        let message = format!(
            "`{}` is no function but {}",
            request.target(),
            kind_of(&found)
        );
        return Err(Failure::said(Kind::NotFound, message));
    }
    Ok(found)
}

fn no_function(request: &Request<'_>, module: &Bound<'_, PyModule>) -> String {
    let file = module
        .getattr("__file__")
        .map_or_else(|_| String::new(), |file| format!(" ({file})"));
    let names: Vec<String> = module
        .dict()
        .iter()
        .filter(|(_, value)| value.is_callable())
        .filter_map(|(name, _)| name.extract::<String>().ok())
        .filter(|name| !name.starts_with('_'))
        .take(NAMES_MAX)
        .collect();
    let has = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    format!(
        "the module `{}`{file} has no function `{}`; it has: {has}",
        request.module, request.function
    )
}

/// Looks whether the parameters fit before the function runs: a `TypeError` out of the function itself would
/// look the same afterwards.
fn check_parameters<'py>(
    interpreter: &Interpreter<'py>,
    request: &Request<'py>,
    function: &Bound<'py, PyAny>,
) -> Result<(), Failure> {
    let py = interpreter.py;
    if surely_fit(interpreter, request, function).unwrap_or(false) {
        return Ok(());
    }
    // A decorator decides what it takes, not what it wraps: it may add parameters of its own.
    let signature = [("follow_wrapped", false)]
        .into_py_dict(py)
        .and_then(|how| {
            interpreter
                .inspect
                .call_method("signature", (function,), Some(&how))
        });
    // Functions of C code may have none: then the call itself shows.
    let Ok(signature) = signature else {
        return Ok(());
    };
    let Err(error) = signature.call_method("bind", (), Some(&request.param)) else {
        return Ok(());
    };
    if !error.is_instance_of::<PyException>(py) {
        return Err(Failure::raised(Kind::Raised, error));
    }
    let given: Vec<String> = request
        .param
        .keys()
        .iter()
        .map(|key| key.to_string())
        .collect();
    let given = if given.is_empty() {
        "nothing".to_owned()
    } else {
        given.join(", ")
    };
    let message = format!(
        "`{}` expects {signature} and was given {given}: {}",
        request.target(),
        error.value(py)
    );
    Err(Failure::said(Kind::Signature, message))
}

/// The same for the plainest of functions, which most are, and without `inspect`: that is so much Python code
/// that running it (and so copying the memory that it touches) would cost half as much as the fork. It only
/// ever says yes; whether and why parameters do not fit is for `inspect` to say.
fn surely_fit<'py>(
    interpreter: &Interpreter<'py>,
    request: &Request<'py>,
    function: &Bound<'py, PyAny>,
) -> PyResult<bool> {
    const TAKES_ANY_KEYWORD: u32 = 8; // CO_VARKEYWORDS
    let param = &request.param;
    if !function.get_type().is(&interpreter.function_type)
        || !function.getattr("__dict__")?.is_empty()?
    {
        return Ok(false);
    }
    let code = function.getattr("__code__")?;
    let count = |name: &str| -> PyResult<usize> { code.getattr(name)?.extract() };
    let (positional, keyword_only) = (count("co_argcount")?, count("co_kwonlyargcount")?);
    if count("co_posonlyargcount")? > 0 {
        return Ok(false);
    }
    let defaults = function.getattr("__defaults__")?;
    let defaults = if defaults.is_none() {
        0
    } else {
        defaults.len()?
    };
    let keyword_defaults = function.getattr("__kwdefaults__")?;
    let names = code.getattr("co_varnames")?.cast_into::<PyTuple>()?;
    let mut taken = 0;
    for (place, name) in names.iter().take(positional + keyword_only).enumerate() {
        if param.contains(&name)? {
            taken += 1;
        } else if place < positional {
            if place + defaults < positional {
                return Ok(false);
            }
        } else if keyword_defaults.is_none() || !keyword_defaults.contains(&name)? {
            return Ok(false);
        }
    }
    let any = code.getattr("co_flags")?.extract::<u32>()? & TAKES_ANY_KEYWORD != 0;
    Ok(any || taken == param.len())
}

/// The type of a value, for messages.
pub fn kind_of(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().qualname();
    name.map_or_else(
        |_| "something else".to_owned(),
        |name| format!("of type {name}"),
    )
}
