//! Calls of JSON-RPC that hand in one transaction, checked on the door's thread while their request is read: so the
//! owner's thread, which decides, has neither to read them nor to wait for their signatures.
//!
//! Only what is plain is read here: one object, each of its known names once, a text without escapes, one parameter of
//! hexadecimal digits. Whatever else may be right too goes to the owner as it came, who reads all of JSON.

use std::sync::Arc;

use crate::evm::transaction::{Recovered, TransactionError};

/// A checked transaction, or what is wrong with it.
pub type Checked = Result<Arc<Recovered>, TransactionError>;
/// Makes the checks that need no state.
pub type Check = Box<dyn Fn(&[u8]) -> Checked + Send>;

const ID_BYTES_MAX: usize = 64;
/// Integers beyond are not the same in every reader of JSON.
const ID_DIGITS_MAX: usize = 15;

/// One plain call.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The caller's name for the call, as JSON: an integer, a text, or null.
    pub id: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// The bytes of its one parameter.
    pub raw: Vec<u8>,
}

/// Read a plain call; `None` for whatever is not one.
#[must_use]
pub fn read(body: &[u8]) -> Option<Call<'_>> {
    let mut rest = Rest(body);
    let (mut version, mut id, mut method, mut raw) = (None, None, None, None);
    rest.sign(b'{')?;
    loop {
        let name = rest.text()?;
        rest.sign(b':')?;
        match name {
            b"jsonrpc" if version.is_none() => version = Some(rest.text()?),
            b"id" if id.is_none() => id = Some(rest.id()?),
            b"method" if method.is_none() => method = Some(rest.text()?),
            b"params" if raw.is_none() => raw = Some(rest.bytes()?),
            _ => return None,
        }
        if rest.sign(b',').is_none() {
            break;
        }
    }
    rest.sign(b'}')?;
    rest.space();
    rest.0.is_empty().then_some(())?;
    Some(Call {
        id: id.unwrap_or(b"null"),
        method: method?,
        raw: raw?,
    })
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn sign(&mut self, wanted: u8) -> Option<()> {
        self.space();
        let (first, rest) = self.0.split_first()?;
        (*first == wanted).then(|| self.0 = rest)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    /// A text of printable ASCII, without its quotes.
    fn text(&mut self) -> Option<&'a [u8]> {
        self.sign(b'"')?;
        let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        let count = self.0.iter().take_while(|byte| plain(byte)).count();
        let text = self.take(count);
        matches!(self.0, [b'"', ..]).then(|| {
            self.take(1);
            text
        })
    }

    fn id(&mut self) -> Option<&'a [u8]> {
        self.space();
        let from = self.0;
        match from.first()? {
            b'"' => _ = self.text()?,
            b'0' => _ = self.take(1),
            b'1'..=b'9' => {
                let count = from.iter().take_while(|byte| byte.is_ascii_digit()).count();
                (count <= ID_DIGITS_MAX).then(|| self.take(count))?;
            }
            b'n' if from.starts_with(b"null") => _ = self.take(4),
            _ => return None,
        }
        let id = &from[..from.len() - self.0.len()];
        (id.len() <= ID_BYTES_MAX).then_some(id)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        self.sign(b'[')?;
        let digits = self.text()?.strip_prefix(b"0x")?;
        self.sign(b']')?;
        // The decoder takes another prefix.
        let plain = digits.iter().all(u8::is_ascii_hexdigit);
        plain.then(|| alloy_primitives::hex::decode(digits).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(text: &str) -> Option<(String, String, Vec<u8>)> {
        let text_of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        read(text.as_bytes()).map(|call| (text_of(call.id), text_of(call.method), call.raw))
    }

    fn is_read(text: &str, id: &str) {
        let wanted = (id.to_owned(), "m".to_owned(), vec![1, 0xab]);
        assert_eq!(call(text), Some(wanted), "{text}");
    }

    #[test]
    fn what_is_plain_is_read() {
        is_read(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":["0x01ab"]}"#, "1");
        is_read(
            r#" { "params" : [ "0x01aB" ] , "method" : "m" , "id" : "a b" } "#,
            r#""a b""#,
        );
        is_read(r#"{"method":"m","params":["0x01ab"],"id":null}"#, "null");
        is_read(r#"{"method":"m","params":["0x01ab"]}"#, "null");
        is_read(
            r#"{"method":"m","params":["0x01ab"],"id":999999999999999}"#,
            "999999999999999",
        );
        is_read(r#"{"method":"m","params":["0x01ab"],"id":0}"#, "0");
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_owner() {
        for text in [
            "",
            "{}",
            "[]",
            r#"[{"method":"m","params":["0x01ab"]}]"#,
            r#"{"method":"m","params":["0x01ab"]}x"#,
            r#"{"method":"m","params":["0x01ab"],}"#,
            r#"{"method":"m","params":["0x01ab"]"#,
            r#"{"method":"m","method":"m","params":["0x01ab"]}"#,
            r#"{"method":"m","params":["0x01ab"],"more":1}"#,
            r#"{"method":"m","params":["0x01ab","latest"]}"#,
            r#"{"method":"m","params":["01ab"]}"#,
            r#"{"method":"m","params":["0x1ab"]}"#,
            r#"{"method":"m","params":["0x0x01ab"]}"#,
            r#"{"method":"m","params":["0x01 ab"]}"#,
            r#"{"method":"m","params":"0x01ab"}"#,
            r#"{"method":"m","params":{"raw":"0x01ab"}}"#,
            r#"{"method":"\u006d","params":["0x01ab"]}"#,
            r#"{"method":"m","params":["0x01ab"],"id":01}"#,
            r#"{"method":"m","params":["0x01ab"],"id":-1}"#,
            r#"{"method":"m","params":["0x01ab"],"id":1.0}"#,
            r#"{"method":"m","params":["0x01ab"],"id":1e3}"#,
            r#"{"method":"m","params":["0x01ab"],"id":1000000000000000}"#,
            r#"{"method":"m","params":["0x01ab"],"id":true}"#,
            r#"{"method":"m","params":["0x01ab"],"id":"\n"}"#,
            "{\"method\":\"m\",\"params\":[\"0x01ab\"],\"id\":\"\u{e9}\"}",
        ] {
            assert_eq!(call(text), None, "{text}");
        }
    }
}
