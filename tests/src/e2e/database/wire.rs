//! Clients of PostgreSQL and Redis, as small as the ledger needs: one statement, one answer.
//!
//! Own ones, since what counts here is the difference between "answered", "refused before it was
//! sent" and "sent, no answer", which libraries fold into one error. Formats: PostgreSQL's
//! "Frontend/Backend Protocol" (simple query), Redis's RESP2.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest answer in bytes that is believed; beyond it we have lost our place in the stream.
const MAX_ANSWER_BYTES: usize = 256 << 20;

fn open(address: SocketAddr, limit: Duration) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(BufReader::new(stream))
}

fn bad(words: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, words.into())
}

fn believe(length: i64) -> Result<usize> {
    let length = usize::try_from(length).map_err(|_| bad("a negative length"))?;
    if length > MAX_ANSWER_BYTES { Err(bad(format!("{length} bytes"))) } else { Ok(length) }
}

/// A connection to a PostgreSQL server that trusts us.
#[derive(Debug)]
pub struct Postgres(BufReader<TcpStream>);

/// One row's columns as text; NULL is empty.
pub type Row = Vec<String>;

impl Postgres {
    /// Connects as user and to database `postgres`.
    ///
    /// # Errors
    /// Nobody there, or the server refuses: it starts up or shuts down.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        let mut this = Self(open(address, limit)?);
        let words = b"user\0postgres\0database\0postgres\0\0";
        let mut message = Vec::new();
        message.extend(u32::try_from(8 + words.len()).map_err(|_| bad("too long"))?.to_be_bytes());
        message.extend(196_608u32.to_be_bytes()); // protocol 3.0
        message.extend(words);
        this.0.get_mut().write_all(&message)?;
        this.until_ready()?;
        Ok(this)
    }

    /// Runs one statement, which is its own transaction, and returns its rows.
    ///
    /// # Errors
    /// The server's words, or that there was no answer: it may have been done or not.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        let mut message = vec![b'Q'];
        message.extend(u32::try_from(sql.len() + 5).map_err(|_| bad("too long"))?.to_be_bytes());
        message.extend(sql.as_bytes());
        message.push(0);
        self.0.get_mut().write_all(&message)?;
        self.until_ready()
    }

    /// Reads messages until the server waits for the next statement.
    fn until_ready(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = i64::from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])) - 4;
            let mut body = vec![0; believe(length)?];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'D' => rows.push(columns(&body)?),
                b'E' => {
                    let words = error_words(&body);
                    // After FATAL and PANIC nothing more comes.
                    if words.starts_with("FATAL") || words.starts_with("PANIC") {
                        return Err(Error::other(words));
                    }
                    failed = Some(words);
                }
                b'R' if body != [0; 4] => return Err(bad("the server wants a password")),
                b'Z' => return failed.map_or(Ok(rows), |words| Err(Error::other(words))),
                _ => {}
            }
        }
    }
}

fn columns(body: &[u8]) -> Result<Row> {
    let short = || bad("a short row");
    let mut at = 2;
    let mut row = Vec::new();
    while at < body.len() {
        let length: [u8; 4] =
            body.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(short)?;
        at += 4;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(0);
        let bytes = body.get(at..at + length).ok_or_else(short)?;
        row.push(String::from_utf8_lossy(bytes).into_owned());
        at += length;
    }
    Ok(row)
}

/// `FATAL: 57P03: the database system is starting up` of an ErrorResponse's fields.
fn error_words(body: &[u8]) -> String {
    let field = |wanted: u8| {
        body.split(|b| *b == 0)
            .find(|field| field.first() == Some(&wanted))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    format!("{}: {}: {}", field(b'V'), field(b'C'), field(b'M'))
}

/// A connection to a Redis server.
#[derive(Debug)]
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    /// Connects.
    ///
    /// # Errors
    /// Nobody there.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        Ok(Self(open(address, limit)?))
    }

    /// Sends one command and returns its answer's strings (one, or those of an array).
    ///
    /// # Errors
    /// The server's words, or that there was no answer: it may have been done or not.
    pub fn command(&mut self, words: &[&str]) -> Result<Vec<String>> {
        let mut message = format!("*{}\r\n", words.len());
        for word in words {
            message.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(message.as_bytes())?;
        let mut found = Vec::new();
        let mut left = 1i64;
        while left > 0 {
            left -= 1;
            let line = self.line()?;
            let (kind, rest) = line.split_at_checked(1).ok_or_else(|| bad("an empty line"))?;
            let number = || rest.parse::<i64>().map_err(|_| bad(format!("no number: {line}")));
            match kind {
                "+" | ":" => found.push(rest.to_owned()),
                "-" => return Err(Error::other(rest.to_owned())),
                "*" => left += number()?,
                "$" if rest == "-1" => found.push(String::new()),
                "$" => {
                    let mut bytes = vec![0; believe(number()?)? + 2];
                    self.0.read_exact(&mut bytes)?;
                    bytes.truncate(bytes.len() - 2);
                    found.push(String::from_utf8_lossy(&bytes).into_owned());
                }
                _ => return Err(bad(format!("no answer of RESP: {line}"))),
            }
        }
        Ok(found)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_of_postgresql_are_read() {
        let row = [0, 2, 0, 0, 0, 1, b'7', 0xff, 0xff, 0xff, 0xff];
        assert_eq!(columns(&row).unwrap(), ["7", ""]);
        assert!(columns(&[0, 1, 0, 0, 0, 9, b'7']).is_err());
        let words = error_words(b"SFATAL\0VFATAL\0C57P03\0Mstarting up\0\0");
        assert_eq!(words, "FATAL: 57P03: starting up");
    }
}
