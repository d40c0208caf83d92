//! A small HTTP/1.1 server for the peers that need one: a folder, ranges (many in one request), connections kept open; and
//! every byte of every connection counted, heads included.
//!
//! It is a process of its own, so that its processor time can be told, started from this executable. `COUNT / HTTP/1.1` answers
//! with the bytes so far, and is not counted itself. Not for a network: it trusts who asks to be a tool under test.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use super::super::process::Server;

/// The word by which this executable becomes the server.
const SERVE: &str = "serve-http";

/// Bytes of a request's head: zchunk asks for some hundred ranges at once.
const HEAD_MAX: u64 = 64 << 10;

/// The server, from outside.
#[derive(Debug)]
pub struct Http {
    server: Server,
    port: u16,
}

/// Bytes over all connections so far, from the server's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests.
    pub received: u64,
    /// Answers.
    pub sent: u64,
}

impl Http {
    /// Serves `folder` on loopback.
    pub fn start(folder: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start the HTTP server")?;
        let stdout = child.stdout.take();
        let server = Server(child);
        let mut line = String::new();
        BufReader::new(stdout.context("the HTTP server's output")?).read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("the HTTP server said {line:?}, not its port"))?;
        Ok(Self { server, port })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// The address of something published.
    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    /// Bytes so far.
    pub fn counted(&self) -> Result<Counted> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(b"COUNT / HTTP/1.1\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        ensure!(numbers.len() == 2, "the HTTP server counted {text:?}");
        Ok(Counted { received: numbers[0], sent: numbers[1] })
    }
}

/// If this process was started as the server, be it.
pub fn be_one() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != SERVE {
        return None;
    }
    let served = args.next().context("a folder").and_then(|folder| serve(PathBuf::from(folder)));
    Some(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

#[derive(Debug, Default)]
struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

/// Until it is killed.
fn serve(folder: PathBuf) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let (folder, counts) = (Arc::new(folder), Arc::new(Counts::default()));
    for stream in listener.incoming() {
        let (stream, folder, counts) = (stream?, folder.clone(), counts.clone());
        // A client that breaks off is no trouble of the server's.
        std::thread::spawn(move || connection(&stream, &folder, &counts));
    }
    Ok(())
}

fn connection(stream: &TcpStream, folder: &Path, counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream);
    while let Some(request) = Request::read(&mut requests)? {
        if request.method == "COUNT" {
            let (received, sent) = (&counts.received, &counts.sent);
            return write!(&mut &*stream, "{} {}", received.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
        }
        counts.received.fetch_add(request.bytes, Ordering::SeqCst);
        let mut answer = BufWriter::with_capacity(64 << 10, Counting { stream, sent: &counts.sent });
        request.answer(folder, &mut answer)?;
        answer.flush()?;
        if request.last {
            break;
        }
    }
    Ok(())
}

/// Counts what goes out before it goes: a client that has all of it finds it counted.
struct Counting<'a> {
    stream: &'a TcpStream,
    sent: &'a AtomicU64,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        let written = (&mut &*self.stream).write(bytes);
        let rest = bytes.len() - *written.as_ref().unwrap_or(&0);
        self.sent.fetch_sub(rest as u64, Ordering::SeqCst);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    last: bool,
    bytes: u64,
}

impl Request {
    /// The next one, or `None` when the client is done.
    fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let (mut head, mut request) = (stream.take(HEAD_MAX), Self::default());
        let mut line = String::new();
        request.bytes += head.read_line(&mut line)? as u64;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
        (request.method, request.path) = (method, path);
        // Clients of the old version read to the end of the connection.
        request.last = words.next().is_none_or(|version| version == "HTTP/1.0");
        loop {
            line.clear();
            let read = head.read_line(&mut line)?;
            request.bytes += read as u64;
            if line.trim_end().is_empty() {
                return if read > 0 { Ok(Some(request)) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "range" => request.range = Some(value.trim().to_owned()),
                "connection" => request.last |= value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
    }

    fn answer(&self, folder: &Path, out: &mut impl Write) -> io::Result<()> {
        let Some(mut file) = open(folder, &self.path) else {
            return write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let size = file.metadata()?.len();
        let body = self.method == "GET";
        match self.range.as_deref().and_then(|text| ranges(text, size)).as_deref() {
            None => {
                write!(out, "HTTP/1.1 200 OK\r\n{COMMON}Content-Length: {size}\r\n\r\n")?;
                if body { send(&mut file, &(0..size), out) } else { Ok(()) }
            }
            Some([]) => write!(
                out,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
            ),
            Some([range]) => {
                let (length, of) = (range.end - range.start, content_range(range, size));
                write!(out, "HTTP/1.1 206 Partial Content\r\n{COMMON}{of}Content-Length: {length}\r\n\r\n")?;
                if body { send(&mut file, range, out) } else { Ok(()) }
            }
            Some(many) => multipart(&mut file, many, size, body, out),
        }
    }
}

const COMMON: &str = "Server: compare\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n";
const BOUNDARY: &str = "0123456789abcdef0123";

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("Content-Range: bytes {}-{}/{size}\r\n", range.start, range.end - 1)
}

fn multipart(file: &mut File, ranges: &[Range<u64>], size: u64, body: bool, out: &mut impl Write) -> io::Result<()> {
    let head = |range: &Range<u64>| {
        let of = content_range(range, size);
        format!("\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n{of}\r\n")
    };
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let length: u64 = ranges.iter().map(|range| head(range).len() as u64 + range.end - range.start).sum();
    let length = length + tail.len() as u64;
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nServer: compare\r\nAccept-Ranges: bytes\r\n\
         Content-Type: multipart/byteranges; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    if !body {
        return Ok(());
    }
    for range in ranges {
        out.write_all(head(range).as_bytes())?;
        send(file, range, out)?;
    }
    out.write_all(tail.as_bytes())
}

fn send(file: &mut File, range: &Range<u64>, out: &mut impl Write) -> io::Result<()> {
    file.seek(SeekFrom::Start(range.start))?;
    let length = range.end - range.start;
    // What the head promised cannot be taken back: a file that shrank ends the connection.
    if io::copy(&mut file.take(length), out)? == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A file beneath `folder`, and only there.
fn open(folder: &Path, path: &str) -> Option<File> {
    let name = Path::new(path.trim_start_matches('/'));
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let file = plain.then(|| File::open(folder.join(name)).ok()).flatten()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// `bytes=0-99,200-,-5` of a file of `size` bytes: what of it there is. `None` if it is no such thing, which asks for the whole.
fn ranges(text: &str, size: u64) -> Option<Vec<Range<u64>>> {
    let one = |part: &str| -> Option<Range<u64>> {
        let (from, to) = part.trim().split_once('-')?;
        Some(match (from, to) {
            ("", last) => size.saturating_sub(last.parse().ok()?)..size,
            (from, "") => from.parse().ok()?..size,
            (from, to) => from.parse().ok()?..to.parse::<u64>().ok()?.saturating_add(1).min(size),
        })
    };
    let all: Vec<_> = text.strip_prefix("bytes=")?.split(',').map(one).collect::<Option<_>>()?;
    Some(all.into_iter().filter(|range| range.start < range.end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_the_file_has_of_them() {
        let of = |text| ranges(text, 100);
        assert_eq!(of("bytes=0-9, 50-,-5"), Some(vec![0..10, 50..100, 95..100]));
        assert_eq!(of("bytes=90-1000"), Some(std::iter::once(90..100).collect()));
        assert_eq!(of("bytes=100-200"), Some(vec![]));
        for text in ["", "bytes=", "bytes=a-b", "items=0-1", "bytes=1"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    fn answer(folder: &Path, request: &str) -> (u64, String) {
        let request = Request::read(&mut request.as_bytes()).unwrap().unwrap();
        let mut out = Vec::new();
        request.answer(folder, &mut out).unwrap();
        (request.bytes, String::from_utf8(out).unwrap())
    }

    #[test]
    fn files_are_served_whole_in_part_and_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f"), "0123456789").unwrap();
        let get = |path: &str, range: &str| answer(folder.path(), &format!("GET {path} HTTP/1.1\r\n{range}\r\n"));
        let (bytes, whole) = get("/f", "");
        assert_eq!(bytes, "GET /f HTTP/1.1\r\n\r\n".len() as u64);
        assert!(
            whole.starts_with("HTTP/1.1 200") && whole.ends_with("Content-Length: 10\r\n\r\n0123456789"),
            "{whole}"
        );
        let (_, part) = get("/f", "Range: bytes=2-3\r\n");
        assert!(part.contains("206") && part.contains("bytes 2-3/10") && part.ends_with("\r\n\r\n23"), "{part}");
        let (_, parts) = get("/f", "range: bytes=0-0,8-\r\n");
        let body = parts.split_once("\r\n\r\n").unwrap();
        assert!(body.0.contains(&format!("Content-Length: {}", body.1.len())), "{parts}");
        assert!(body.1.contains("bytes 8-9/10\r\n\r\n89\r\n--"), "{parts}");
        assert!(get("/f", "Range: bytes=50-60\r\n").1.contains("416"));
        for path in ["/none", "/../f", "/"] {
            assert!(get(path, "").1.contains("404"), "{path}");
        }
    }

    #[test]
    fn a_connection_ends_where_its_client_expects_it_to() {
        let last = |text: &str| Request::read(&mut text.as_bytes()).unwrap().unwrap().last;
        assert!(!last("GET /f HTTP/1.1\r\n\r\n"));
        assert!(last("GET /f HTTP/1.1\r\nConnection: close\r\n\r\n"));
        assert!(last("GET /f HTTP/1.0\r\n\r\n") && last("GET /f\r\n\r\n"));
    }

    #[test]
    fn a_head_that_never_ends_is_an_error() {
        let long = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(20_000));
        assert!(Request::read(&mut long.as_bytes()).is_err());
        assert_eq!(Request::read(&mut &b""[..]).unwrap(), None);
    }
}
