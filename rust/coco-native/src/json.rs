//! Objects of JSON-RPC, made without the interpreter: as bytes for what is long, as Python's objects for what is short.
//!
//! All texts are quantities, data and names of this module: nothing in them needs an escape.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString};

/// A value.
pub enum Json {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A text without quotes, backslashes and control characters.
    Plain(String),
    /// A list
    List(Vec<Json>),
    /// An object
    Object(Object),
}

/// An object; names are in the order in which they were set, and none is set twice.
#[derive(Default)]
pub struct Object(Vec<(&'static str, Json)>);

impl Object {
    /// Set one member.
    pub fn set(&mut self, name: &'static str, value: impl Into<Json>) {
        self.0.push((name, value.into()));
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            text(name, out);
            out.push(b':');
            value.write(out);
        }
        out.push(b'}');
    }

    /// The same as a `dict`.
    pub fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, value) in &self.0 {
            dict.set_item(name, value.to_python(py)?)?;
        }
        Ok(dict)
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    debug_assert!(text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\'));
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

impl Json {
    /// Append the value.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Plain(plain) => text(plain, out),
            Self::List(values) => list(values.iter(), out),
            Self::Object(object) => object.write(out),
        }
    }

    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            Self::Null => py.None().into_bound(py),
            Self::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
            Self::Plain(plain) => PyString::new(py, plain).into_any(),
            Self::List(values) => {
                let list = PyList::empty(py);
                for value in values {
                    list.append(value.to_python(py)?)?;
                }
                list.into_any()
            }
            Self::Object(object) => object.to_python(py)?.into_any(),
        })
    }
}

fn list<'a>(values: impl Iterator<Item = &'a Json>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        value.write(out);
    }
    out.push(b']');
}

/// The bytes of a list, of which only one object is in memory at a time.
pub fn list_of<E>(objects: impl Iterator<Item = Result<Object, E>>) -> Result<Vec<u8>, E> {
    let mut out = vec![b'['];
    for (index, object) in objects.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        object?.write(&mut out);
    }
    out.push(b']');
    Ok(out)
}

impl From<String> for Json {
    fn from(plain: String) -> Self {
        Self::Plain(plain)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Vec<Json>> for Json {
    fn from(values: Vec<Json>) -> Self {
        Self::List(values)
    }
}

impl From<Object> for Json {
    fn from(object: Object) -> Self {
        Self::Object(object)
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
