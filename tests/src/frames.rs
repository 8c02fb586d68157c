//! HTTP/2 frame by frame, for clients that no library would be.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of settings and pings.
const ACK: u8 = 1;

const CANCEL: u32 = 8;

/// The last entry of the header table, once [`entry`] has been sent.
pub const REFERENCE: u8 = 0x80 | 62;

/// A client's connection. It never opens a stream's window again.
pub struct Frames {
    to: Arc<Mutex<OwnedWriteHalf>>,
    from: Coming,
    next: u32,
}

/// What becomes of what the peer sends.
enum Coming {
    /// It is thrown away, but for what has to be answered.
    Read(JoinHandle<io::Result<()>>),
    /// It stays where it is.
    Unread { _half: OwnedReadHalf },
}

impl Frames {
    /// One that throws away whatever comes, or that does not even read it.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(address: SocketAddr, reads: bool) -> io::Result<Self> {
        let (from, mut to) = TcpStream::connect(address).await?.into_split();
        to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        to.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        to.write_all(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await?;
        let to = Arc::new(Mutex::new(to));
        let from = match reads {
            true => Coming::Read(tokio::spawn(read(from, to.clone()))),
            false => Coming::Unread { _half: from },
        };
        Ok(Self { to, from, next: 1 })
    }

    /// Opens a stream with this block of fields; its number.
    ///
    /// # Errors
    /// When the peer has closed the connection.
    pub async fn request(&mut self, block: &[u8], ends: bool) -> io::Result<u32> {
        let stream = self.next;
        self.next += 2;
        let flags = if ends { END_HEADERS | END_STREAM } else { END_HEADERS };
        self.send(&frame(HEADERS, flags, stream, block)).await?;
        Ok(stream)
    }

    /// Cancels a stream.
    ///
    /// # Errors
    /// When the peer has closed the connection.
    pub async fn cancel(&mut self, stream: u32) -> io::Result<()> {
        self.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())).await
    }

    async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.to.lock().await.write_all(frame).await
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // It has the other handle of the connection.
        if let Coming::Read(reading) = &self.from {
            reading.abort();
        }
    }
}

/// Acknowledges settings and answers pings, without which a peer goes away.
async fn read(from: OwnedReadHalf, to: Arc<Mutex<OwnedWriteHalf>>) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        from.read_exact(&mut payload).await?;
        let reply = match (kind, flags & ACK) {
            (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
            (PING, 0) => frame(PING, ACK, 0, &payload),
            _ => continue,
        };
        // Whoever writes may wait for this task to read on.
        let to = to.clone();
        tokio::spawn(async move { to.lock().await.write_all(&reply).await });
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
    let mut frame = length.to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The block of a request (RFC 7541) that leaves nothing in the header table.
pub fn block(is_post: bool, path: &str) -> Vec<u8> {
    // `:method` and `:scheme: http` are in the static table.
    let mut block = vec![if is_post { 0x83 } else { 0x82 }, 0x86];
    for (name, value) in [(4, path), (1, "catalog")] {
        block.push(name);
        text(&mut block, value.as_bytes());
    }
    block
}

/// A field `a` with a value of so many bytes, which the header table keeps.
pub fn entry(length: usize) -> Vec<u8> {
    let mut field = vec![0x40];
    text(&mut field, b"a");
    text(&mut field, &vec![b'b'; length]);
    field
}

/// A string without Huffman's code (RFC 7541, section 5.2).
fn text(block: &mut Vec<u8>, text: &[u8]) {
    match text.len().checked_sub(0x7f) {
        None => block.push(text.len() as u8),
        Some(mut left) => {
            block.push(0x7f);
            while left >= 0x80 {
                block.push((left % 0x80) as u8 | 0x80);
                left /= 0x80;
            }
            block.push(left as u8);
        }
    }
    block.extend(text);
}
