//! HTTP/1.1 requests from a stream of bytes (RFC 9112), strictly: what two readers could take for different requests
//! is refused. Heads are parsed by `httparse`; framing of bodies is here.

use std::mem;

/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// A chunk's size line with its extensions, which are ignored.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// A head that comes in crumbs is parsed anew where it may have ended, and else only after so much more of it: to parse
/// all of it for every crumb would cost the square of its length.
const HEAD_STEP_BYTES: usize = 1024;
/// A body is not allocated before its bytes come.
const BODY_RESERVED_MAX: usize = 64 * 1024;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Request line and headers.
    pub head_bytes: usize,
    /// Body of one request.
    pub body_bytes: usize,
}

/// Why a request is refused; its connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP/1.1, or ambiguous.
    Malformed,
    /// Request line and headers are too large.
    HeadTooLarge,
    /// The body is too large, by its announcement or by its bytes.
    BodyTooLarge,
    /// The listener holds too many bytes of bodies.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// Request line and headers.
#[derive(Debug)]
pub struct Head {
    /// Method, as sent.
    pub method: String,
    /// Request target, as sent.
    pub target: Vec<u8>,
    /// Names in lower case, and values.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The connection may go on after the reply.
    pub keep_alive: bool,
    /// The client asks to change the protocol.
    pub upgrade: bool,
    expects_continue: bool,
    framing: Framing,
}

/// One whole request.
#[derive(Debug)]
pub struct Request {
    /// Its head.
    pub head: Head,
    /// Its body, unframed.
    pub body: Vec<u8>,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Step {
    /// More bytes are needed.
    Wait,
    /// More bytes are needed, and the client waits for leave to send them.
    WaitAfterContinue,
    /// A request is whole.
    Request(Box<Request>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size,
    Data(usize),
    End,
    Trailer(usize),
}

/// Reads the requests of one connection.
#[derive(Debug)]
pub struct Reader {
    limits: HttpLimits,
    bytes: Vec<u8>,
    /// Bytes of an unfinished head that were parsed.
    tried: usize,
    /// Bytes of an unfinished head, or line, in which its end was looked for.
    searched: usize,
    head: Option<Head>,
    body: Vec<u8>,
    chunk: Chunk,
}

impl Reader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new(limits: HttpLimits) -> Self {
        Self {
            limits,
            bytes: Vec::new(),
            tried: 0,
            searched: 0,
            head: None,
            body: Vec::new(),
            chunk: Chunk::Size,
        }
    }

    /// Allow bodies of another size from the next head on.
    pub fn allow(&mut self, body_bytes: usize) {
        self.limits.body_bytes = body_bytes;
    }

    /// Take bytes in.
    pub fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.bytes.len() + self.body.len()
    }

    /// Whatever follows the last request, for another protocol.
    pub fn take_rest(&mut self) -> Vec<u8> {
        mem::take(&mut self.bytes)
    }

    /// Go on with the bytes that are there.
    ///
    /// # Errors
    /// The request is refused; the reader must not be used any more.
    pub fn step(&mut self) -> Result<Step, Refusal> {
        let mut announced = false;
        if self.head.is_none() {
            let Some(head) = self.read_head()? else {
                return Ok(Step::Wait);
            };
            announced = head.expects_continue;
            self.chunk = Chunk::Size;
            self.head = Some(head);
        }
        let Some(head) = &self.head else {
            return Ok(Step::Wait);
        };
        let whole = match head.framing {
            Framing::Length(length) => self.read_length(length),
            Framing::Chunked => self.read_chunks()?,
        };
        match self.head.take_if(|_| whole) {
            Some(head) => {
                let body = mem::take(&mut self.body);
                Ok(Step::Request(Box::new(Request { head, body })))
            }
            None if announced => Ok(Step::WaitAfterContinue),
            None => Ok(Step::Wait),
        }
    }

    fn read_head(&mut self) -> Result<Option<Head>, Refusal> {
        // Empty lines before a request line are to be ignored (RFC 9112, 2.2).
        let blank = self
            .bytes
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        self.bytes.drain(..blank);
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let size = self.bytes.len();
        let due = self.tried == 0 || size >= self.tried + HEAD_STEP_BYTES || size > self.limits.head_bytes;
        let searched = mem::replace(&mut self.searched, size);
        if !due && !may_end_head(&self.bytes[searched.saturating_sub(2)..]) {
            return Ok(None);
        }
        self.tried = size;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let length = match parsed.parse(&self.bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.bytes.len() <= self.limits.head_bytes => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
            Err(_) => return Err(Refusal::Malformed),
        };
        if length > self.limits.head_bytes {
            return Err(Refusal::HeadTooLarge);
        }
        let head = head(&parsed, &self.limits)?;
        self.bytes.drain(..length);
        (self.tried, self.searched) = (0, 0);
        Ok(Some(head))
    }

    fn read_length(&mut self, length: usize) -> bool {
        if self.bytes.len() < length {
            self.bytes.reserve((length - self.bytes.len()).min(BODY_RESERVED_MAX));
            return false;
        }
        let rest = self.bytes.split_off(length);
        self.body = mem::replace(&mut self.bytes, rest);
        true
    }

    fn read_chunks(&mut self) -> Result<bool, Refusal> {
        let mut at = 0;
        let done = loop {
            let rest = &self.bytes[at..];
            match self.chunk {
                Chunk::Size => match line(rest, CHUNK_LINE_BYTES_MAX, &mut self.searched)? {
                    None => break false,
                    Some(text) => {
                        at += text.len() + 2;
                        let size = chunk_size(text)?;
                        if size > self.limits.body_bytes - self.body.len() {
                            return Err(Refusal::BodyTooLarge);
                        }
                        self.chunk = if size == 0 {
                            Chunk::Trailer(0)
                        } else {
                            Chunk::Data(size)
                        };
                    }
                },
                Chunk::Data(left) => {
                    let taken = left.min(rest.len());
                    self.body.extend_from_slice(&rest[..taken]);
                    at += taken;
                    if taken < left {
                        self.chunk = Chunk::Data(left - taken);
                        break false;
                    }
                    self.chunk = Chunk::End;
                }
                Chunk::End => {
                    if rest.len() < 2 {
                        break false;
                    }
                    if &rest[..2] != b"\r\n" {
                        return Err(Refusal::Malformed);
                    }
                    at += 2;
                    self.chunk = Chunk::Size;
                }
                Chunk::Trailer(seen) => match line(rest, self.limits.head_bytes, &mut self.searched)? {
                    None => break false,
                    Some([]) => {
                        at += 2;
                        break true;
                    }
                    Some(text) => {
                        at += text.len() + 2;
                        let seen = seen + text.len();
                        if seen > self.limits.head_bytes {
                            return Err(Refusal::HeadTooLarge);
                        }
                        self.chunk = Chunk::Trailer(seen);
                    }
                },
            }
        };
        self.bytes.drain(..at);
        Ok(done)
    }
}

/// Whether an empty line is in it: without one no head is whole.
fn may_end_head(bytes: &[u8]) -> bool {
    let mut after_line = false;
    bytes.iter().any(|byte| match byte {
        b'\n' => mem::replace(&mut after_line, true),
        b'\r' => false,
        _ => {
            after_line = false;
            false
        }
    })
}

/// The line before the next CRLF, or None while it is not whole. Whether a line is too long must not depend on how
/// much of it has come: it is when its CRLF is not within what the longest line takes. What was `searched` is not again.
fn line<'a>(bytes: &'a [u8], bytes_max: usize, searched: &mut usize) -> Result<Option<&'a [u8]>, Refusal> {
    let most = bytes.len().min(bytes_max + 2);
    let from = mem::replace(searched, 0).min(most);
    let ends = bytes[from..most].iter().position(|byte| *byte == b'\n');
    match ends.map(|at| from + at) {
        Some(end) if end > 0 && bytes[end - 1] == b'\r' => Ok(Some(&bytes[..end - 1])),
        Some(_) => Err(Refusal::Malformed),
        None if most == bytes_max + 2 => Err(Refusal::HeadTooLarge),
        None => {
            *searched = most;
            Ok(None)
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    let digits = line
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let text = str::from_utf8(digits).map_err(|_| Refusal::Malformed)?;
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Refusal::Malformed);
    }
    usize::from_str_radix(text, 16).map_err(|_| Refusal::Malformed)
}

fn tokens(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    value
        .split(|byte| *byte == b',')
        .map(|token| token.trim_ascii().to_ascii_lowercase())
}

fn head(parsed: &httparse::Request<'_, '_>, limits: &HttpLimits) -> Result<Head, Refusal> {
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::Malformed);
    };
    let headers: Vec<(Vec<u8>, Vec<u8>)> = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase().into_bytes(), header.value.to_vec()))
        .collect();
    let (mut length, mut chunked, mut upgrade_to) = (None, false, false);
    let (mut close, mut keep, mut upgrade, mut expects_continue) = (false, false, false, false);
    for (name, value) in &headers {
        match name.as_slice() {
            b"content-length" => {
                let text = str::from_utf8(value).map_err(|_| Refusal::Malformed)?;
                // Twice, or anything but digits: readers differ over which one counts.
                if length.is_some() || text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(Refusal::Malformed);
                }
                length = Some(text.parse::<usize>().unwrap_or(usize::MAX));
            }
            b"transfer-encoding" => {
                if chunked || version == 0 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Malformed);
                }
                chunked = true;
            }
            b"connection" => {
                for token in tokens(value) {
                    close |= token == b"close";
                    keep |= token == b"keep-alive";
                    upgrade |= token == b"upgrade";
                }
            }
            b"upgrade" => upgrade_to = true,
            b"expect" => expects_continue |= value.trim_ascii().eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
    }
    if chunked && length.is_some() {
        return Err(Refusal::Malformed);
    }
    let length = length.unwrap_or(0);
    if length > limits.body_bytes {
        return Err(Refusal::BodyTooLarge);
    }
    Ok(Head {
        method: method.to_owned(),
        target: target.as_bytes().to_vec(),
        keep_alive: if version == 0 { keep && !close } else { !close },
        upgrade: upgrade && upgrade_to,
        expects_continue,
        framing: if chunked {
            Framing::Chunked
        } else {
            Framing::Length(length)
        },
        headers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HttpLimits = HttpLimits {
        head_bytes: 400,
        body_bytes: 1000,
    };

    /// Every request of `wire`, given in pieces of `size` bytes.
    fn read(wire: &[u8], size: usize) -> Result<Vec<Request>, Refusal> {
        let (mut reader, mut found) = (Reader::new(LIMITS), Vec::new());
        for piece in wire.chunks(size) {
            reader.push(piece);
            while let Step::Request(request) = reader.step()? {
                found.push(*request);
            }
        }
        Ok(found)
    }

    #[test]
    fn requests_are_the_same_whatever_the_cut() {
        let wire = b"\r\nPOST / HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\n\r\nhelloGET /a?b HTTP/1.1\r\nConnection: close\r\n\r\n\
            POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0a\r\n0123456789\r\n0\r\nt: v\r\n\r\n\
            GET / HTTP/1.0\r\n\r\n";
        for size in 1..wire.len() {
            let found = read(wire, size).expect("well-formed");
            let seen: Vec<_> = found
                .iter()
                .map(|r| {
                    (
                        r.head.method.as_str(),
                        r.head.target.as_slice(),
                        r.body.as_slice(),
                        r.head.keep_alive,
                    )
                })
                .collect();
            assert_eq!(
                seen,
                [
                    ("POST", &b"/"[..], &b"hello"[..], true),
                    ("GET", b"/a?b", b"", false),
                    ("POST", b"/c", b"abc0123456789", true),
                    ("GET", b"/", b"", false),
                ],
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for head in [
            "content-length: 5\r\ncontent-length: 5",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "content-length: +5",
            "content-length: 0x5",
            "content-length: 5, 5",
            "content-length:",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding : chunked",
            "x: y\r\n folded",
        ] {
            let wire = format!("POST / HTTP/1.1\r\n{head}\r\n\r\n");
            assert_eq!(read(wire.as_bytes(), 7).expect_err(head), Refusal::Malformed, "{head}");
        }
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        for body in [
            "-1\r\n",
            "\r\n",
            "5 5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\nhelloX\r\n",
            "123456789\r\n",
        ] {
            assert_eq!(
                read(format!("{chunked}{body}").as_bytes(), 3).expect_err(body),
                Refusal::Malformed,
                "{body}"
            );
        }
        assert_eq!(
            read(b"GET / HTTP/2.0\r\n\r\n", 9).expect_err("version"),
            Refusal::Malformed
        );
        assert_eq!(
            read(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 9).expect_err("1.0"),
            Refusal::Malformed
        );
    }

    #[test]
    fn a_head_in_crumbs_is_not_parsed_for_each_of_them() {
        let limits = HttpLimits {
            head_bytes: 4000,
            body_bytes: 0,
        };
        let mut reader = Reader::new(limits);
        let (mut parses, mut tried) = (0, 0);
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(3900));
        let mut found = 0;
        for byte in head.as_bytes() {
            reader.push(&[*byte]);
            found += usize::from(matches!(reader.step(), Ok(Step::Request(_))));
            parses += usize::from(reader.tried != tried);
            tried = reader.tried;
        }
        assert_eq!(found, 1);
        assert!(parses < 20, "{parses} parses of {} bytes", head.len());
    }

    #[test]
    fn limits_hold() {
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(400));
        assert_eq!(read(head.as_bytes(), 50).expect_err("head"), Refusal::HeadTooLarge);
        assert_eq!(
            read(head.as_bytes(), 1000).expect_err("head at once"),
            Refusal::HeadTooLarge
        );
        let announced = b"POST / HTTP/1.1\r\ncontent-length: 1001\r\n\r\n";
        assert_eq!(read(announced, 1000).expect_err("length"), Refusal::BodyTooLarge);
        let endless = b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n";
        assert_eq!(read(endless, 1000).expect_err("length"), Refusal::BodyTooLarge);
        let chunks = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{}",
            "64\r\n".to_owned() + &"z".repeat(100) + "\r\n"
        );
        let many = chunks + &("64\r\n".to_owned() + &"z".repeat(100) + "\r\n").repeat(10);
        assert_eq!(read(many.as_bytes(), 33).expect_err("chunks"), Refusal::BodyTooLarge);
        let trailers = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{}",
            "t: vvvvvvvvvvvv\r\n".repeat(40)
        );
        assert_eq!(
            read(trailers.as_bytes(), 33).expect_err("trailers"),
            Refusal::HeadTooLarge
        );
    }

    #[test]
    fn the_longest_chunk_line_is_read_whatever_the_cut() {
        let wire = |bytes: usize| {
            let line = format!("0;{}", "x".repeat(bytes - 2));
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{line}\r\n\r\n").into_bytes()
        };
        let (longest, longer) = (wire(CHUNK_LINE_BYTES_MAX), wire(CHUNK_LINE_BYTES_MAX + 1));
        for size in 1..=longer.len() {
            assert_eq!(
                read(&longest, size).expect("at the limit").len(),
                1,
                "in pieces of {size}"
            );
            let refusal = read(&longer, size).expect_err("beyond it");
            assert_eq!(refusal, Refusal::HeadTooLarge, "in pieces of {size}");
        }
    }

    #[test]
    fn a_client_that_waits_for_leave_gets_it_once() {
        let mut reader = Reader::new(LIMITS);
        reader.push(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
        assert!(matches!(reader.step(), Ok(Step::WaitAfterContinue)));
        reader.push(b"o");
        assert!(matches!(reader.step(), Ok(Step::Wait)));
        reader.push(b"k");
        assert!(matches!(reader.step(), Ok(Step::Request(_))));
    }
}
