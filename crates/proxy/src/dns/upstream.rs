//! What is not the mesh's goes to the resolvers that the host had, as it came: only the id is another one.
//!
//! Every query has a socket of its own, and so a source port that nobody can know (RFC 5452); an answer counts only if it
//! comes from whom was asked, with the id and the question that were sent.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use aws_lc_rs::rand;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::message::{Query, Reply, Transport, question_end};

/// For all resolvers together; the C library asks anew after the same time.
const LIMIT: Duration = Duration::from_secs(5);
/// Queries on their way at once.
const MOST_IN_FLIGHT: usize = 512;
/// The low half of the flags' second byte.
const CODE: u8 = 0x0f;

/// The resolvers.
pub(crate) struct Upstreams {
    list: Vec<SocketAddr>,
    /// Who is asked first: the one that answered last when another did not.
    first: AtomicUsize,
    permits: Semaphore,
}

impl Upstreams {
    pub(crate) fn new(list: Vec<SocketAddr>) -> Self {
        Self { list, first: AtomicUsize::new(0), permits: Semaphore::new(MOST_IN_FLIGHT) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whom it asks.
    pub(crate) fn list(&self) -> &[SocketAddr] {
        &self.list
    }

    /// The answer to a query, ready for the client; `None` if nobody gives one in time, or too many are waited for.
    pub(crate) async fn forward(&self, query: &Query, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.permits.try_acquire().ok()?;
        let deadline = Instant::now() + LIMIT;
        let first = self.first.load(Relaxed);
        let mut fallback = None;
        let mut failed = false;
        for n in 0..self.list.len() {
            let index = (first + n) % self.list.len();
            let address = self.list.get(index)?;
            // Who comes later must have time as well.
            let share = deadline.saturating_duration_since(Instant::now()) / (self.list.len() - n) as u32;
            match timeout(share, exchange(*address, query, bytes, transport)).await {
                Ok(Ok(answer)) => {
                    if failed {
                        self.first.store(index, Relaxed);
                    }
                    if !is_unwilling(&answer) {
                        return Some(returned(query, bytes, answer, transport));
                    }
                    fallback = Some(answer);
                }
                Ok(Err(error)) => {
                    failed = true;
                    tracing::debug!(%address, %error, "an upstream resolver cannot be asked");
                }
                Err(_) => {
                    failed = true;
                    tracing::debug!(%address, ?share, "an upstream resolver does not answer");
                }
            }
        }
        fallback.map(|answer| returned(query, bytes, answer, transport))
    }
}

/// Whether another resolver may know better: the server failed, cannot, or will not.
fn is_unwilling(answer: &[u8]) -> bool {
    matches!(answer.get(3).map(|flags| flags & CODE), Some(2 | 4 | 5))
}

async fn exchange(
    address: SocketAddr,
    query: &Query,
    bytes: &[u8],
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    rand::fill(&mut id).map_err(|_| io::Error::other("there is no randomness"))?;
    let sent = with_id(bytes, id);
    match transport {
        Transport::Udp => over_udp(address, &sent, query).await,
        Transport::Tcp => over_tcp(address, &sent, query).await,
    }
}

async fn over_udp(address: SocketAddr, sent: &[u8], query: &Query) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(sent).await?;
    // One more than is allowed shows that it was too long.
    let mut received = vec![0; query.limit(Transport::Udp) + 1];
    loop {
        let length = receive(&socket, &mut received).await?;
        if is_answer(sent, query.question_end(), received.get(..length).unwrap_or_default()) {
            received.truncate(length);
            return Ok(received);
        }
    }
}

/// What comes, or that nobody listens there: the kernel reports an ICMP error as an event of its own, for which `recv` would
/// not wake.
async fn receive(socket: &UdpSocket, into: &mut [u8]) -> io::Result<usize> {
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // Looked at: the next is news again.
            let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        match socket.try_recv(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

async fn over_tcp(address: SocketAddr, sent: &[u8], query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let length = u16::try_from(sent.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], sent].concat()).await?;
    loop {
        let mut received = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut received).await?;
        if is_answer(sent, query.question_end(), &received) {
            return Ok(received);
        }
    }
}

fn with_id(bytes: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.splice(..2, id);
    bytes
}

/// Whether these bytes answer what was sent. Some servers change the letter case of the question.
pub(super) fn is_answer(sent: &[u8], end: usize, received: &[u8]) -> bool {
    received.get(..2) == sent.get(..2)
        && received.get(2).is_some_and(|flags| flags & 0xf8 == 0x80)
        && question_end(received) == Some(end)
        && match (sent.get(12..end), received.get(12..end)) {
            // The type and class are below any letter that has a case, or compare as they are.
            (Some(asked), Some(answered)) => {
                let (name, rest) = asked.split_at(asked.len() - 4);
                let (other_name, other_rest) = answered.split_at(answered.len() - 4);
                name.eq_ignore_ascii_case(other_name) && rest == other_rest
            }
            _ => false,
        }
}

/// The answer as the client may have it: its own id, the question as it wrote it, and no longer than it takes.
pub(super) fn returned(query: &Query, asked: &[u8], answer: Vec<u8>, transport: Transport) -> Vec<u8> {
    if answer.len() > query.limit(transport) {
        let code = answer.get(3).map_or(0, |flags| flags & CODE);
        return query.write(&Reply::truncated(ResponseCode::from(0, code)), transport);
    }
    let mut answer = answer;
    let end = query.question_end();
    if let (Some(id), Some(question)) = (asked.get(..2), asked.get(12..end)) {
        answer.splice(..2, id.iter().copied());
        answer.splice(12..end, question.iter().copied());
    }
    answer
}
