//! The record layer of TLS 1.3 (RFC 8446, section 5), for a session whose handshake rustls has finished.
//!
//! What rustls keeps of a session, its structures, queues and the peer's certificates, is several times what encryption needs, and
//! its records pass through buffers of their own. Here a record is opened into the reader's buffer and sealed into the
//! socket's. Keys and sequence numbers are rustls's; tickets are of no use to us, as nothing is ever resumed.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use outrigger_identity::handover::{Secret, TrafficSecrets};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, HandshakeType,
    PeerMisbehaved, Side,
};

use super::{Advance, Job, Out, room_for};
use crate::stream::region::Region;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

const HEADER: usize = 5;
const TAG: usize = 16;
/// Of the plain text of one record.
const MOST: usize = 16 * 1024;
/// What may come on top of it.
const MOST_OVERHEAD: usize = 256;

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const DATA: u8 = 23;

/// Records under one key: half of what RFC 8446, section 5.5, allows for AES-GCM.
const REFRESH_AFTER: u64 = 1 << 23;
/// Records without data that a peer may send in a row.
const MOST_QUIET: u8 = 64;
/// Of a handshake message in pieces: a ticket.
const MOST_MESSAGE: usize = 64 * 1024;

/// Both directions of a session.
pub struct Records {
    open: Direction,
    seal: Direction,
    /// The beginning of a handshake message.
    partial: Vec<u8>,
    /// Records without data since the last with some.
    quiet: u8,
    /// The peer has asked for new keys of ours; they come with the next record, however often it asks until then.
    owes_update: bool,
    side: Side,
}

struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    secret: Secret,
}

impl Records {
    /// Takes over from rustls.
    ///
    /// # Errors
    /// A cipher that is not one of TLS 1.3.
    pub fn new(extracted: ExtractedSecrets, secrets: TrafficSecrets, side: Side) -> Result<Self, Error> {
        let TrafficSecrets { client, server } = secrets;
        let (ours, theirs) = if side == Side::Client { (client, server) } else { (server, client) };
        Ok(Self {
            open: Direction::new(extracted.rx, theirs)?,
            seal: Direction::new(extracted.tx, ours)?,
            partial: Vec::new(),
            quiet: 0,
            owes_update: false,
            side,
        })
    }

    /// Does the job, or else opens one record; answers with what of `records` is used up, too.
    pub fn turn(&mut self, records: &mut [u8], out: &mut Out<'_, '_>) -> (usize, Result<Advance, Error>) {
        let done = match out.job {
            Job::Nothing => return self.open(records, out),
            Job::Encrypt(data) => self.seal(DATA, data, out.outgoing),
            Job::Close => self.alert(1, AlertDescription::CloseNotify, out.outgoing),
        };
        (0, done.map(|()| Advance::Done))
    }

    /// Says what was wrong with what the peer sent.
    pub fn tell(&mut self, error: &Error, outgoing: &mut Option<Region>) {
        let description = match error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::AlertReceived(_) => return,
            _ => AlertDescription::UnexpectedMessage,
        };
        // The connection ends whether it can be told or not.
        let _ = self.alert(2, description, outgoing);
    }

    fn alert(
        &mut self,
        level: u8,
        description: AlertDescription,
        outgoing: &mut Option<Region>,
    ) -> Result<(), Error> {
        self.seal(ALERT, &[level, description.into()], outgoing)
    }

    fn seal(&mut self, kind: u8, data: &[u8], outgoing: &mut Option<Region>) -> Result<(), Error> {
        let pieces = data.len().div_ceil(MOST).max(1);
        let update = key_update();
        let region = room_for(outgoing, data.len() + update.len() + (pieces + 1) * (HEADER + 1 + TAG));
        for piece in data.chunks(MOST) {
            // One update serves both reasons, and there is room for one.
            if std::mem::take(&mut self.owes_update) || self.seal.sequence >= REFRESH_AFTER {
                self.seal.seal(HANDSHAKE, &update, region)?;
                self.seal.refresh()?;
            }
            self.seal.seal(kind, piece, region)?;
        }
        Ok(())
    }

    fn open(&mut self, records: &mut [u8], out: &mut Out<'_, '_>) -> (usize, Result<Advance, Error>) {
        let Some((header, rest)) = records.split_first_chunk_mut::<HEADER>() else {
            return (0, Ok(Advance::Starved));
        };
        let [kind, _, _, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != DATA {
            let got_type = ContentType::from(kind);
            let expect_types = vec![ContentType::ApplicationData];
            return (0, Err(Error::InappropriateMessage { expect_types, got_type }));
        }
        if length > MOST + MOST_OVERHEAD {
            return (0, Err(Error::PeerSentOversizedRecord));
        }
        if length <= TAG {
            return (0, Err(Error::DecryptError));
        }
        let Some(body) = rest.get_mut(..length) else { return (0, Ok(Advance::Starved)) };
        (HEADER + length, self.open_record(*header, body, out))
    }

    fn open_record(
        &mut self,
        header: [u8; HEADER],
        body: &mut [u8],
        out: &mut Out<'_, '_>,
    ) -> Result<Advance, Error> {
        let length = body.len() - TAG;
        let nonce = self.open.nonce();
        let (kind, length) = match &mut out.reader {
            // Straight to where it is wanted.
            Some(reader) if reader.remaining() >= length => {
                let (ciphertext, tag) = body.split_at(length);
                let plain = reader.initialize_unfilled_to(length);
                let key = &self.open.key;
                let opened = key.open_separate_gather(nonce, Aad::from(header), ciphertext, tag, plain);
                opened.map_err(|_| Error::DecryptError)?;
                let (kind, length) = self.inner(plain)?;
                if kind == DATA {
                    reader.advance(length);
                } else {
                    body[..length].copy_from_slice(&plain[..length]);
                }
                (kind, length)
            }
            reader => {
                let opened = self.open.key.open_in_place(nonce, Aad::from(header), body);
                let (kind, length) = self.inner(opened.map_err(|_| Error::DecryptError)?)?;
                if kind == DATA {
                    let now = reader.as_ref().map_or(0, |reader| reader.remaining().min(length));
                    let (now, later) = body[..length].split_at(now);
                    if let Some(reader) = reader {
                        reader.put_slice(now);
                    }
                    out.plain.extend_from_slice(later);
                }
                (kind, length)
            }
        };
        if kind == DATA && length > 0 {
            self.quiet = 0;
            return Ok(Advance::Plain);
        }
        self.quiet += 1;
        if self.quiet > MOST_QUIET {
            let data = kind == DATA;
            let what = if data {
                PeerMisbehaved::TooManyEmptyFragments
            } else {
                PeerMisbehaved::TooManyKeyUpdateRequests
            };
            return Err(what.into());
        }
        match kind {
            DATA => Ok(Advance::Again),
            ALERT => alert(&body[..length]),
            HANDSHAKE => self.handshake(&body[..length]).map(|()| Advance::Again),
            _ => Err(unexpected(kind)),
        }
    }

    /// Type and length of what is inside: it ends with its type and any number of zeros.
    fn inner(&self, plain: &[u8]) -> Result<(u8, usize), Error> {
        let Some(at) = plain.iter().rposition(|byte| *byte != 0) else {
            return Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        };
        match plain[at] {
            _ if at > MOST => Err(Error::PeerSentOversizedRecord),
            // Nothing comes between the pieces of a message.
            kind if kind != HANDSHAKE && !self.partial.is_empty() => Err(unexpected(kind)),
            kind => Ok((kind, at)),
        }
    }

    /// What a peer may say once the handshake is over: new keys, and tickets.
    fn handshake(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut joined = std::mem::take(&mut self.partial);
        let mut bytes = bytes;
        if !joined.is_empty() {
            joined.extend_from_slice(bytes);
            bytes = &joined;
        }
        while let [kind, length @ ..] = bytes {
            let message = length.split_first_chunk::<3>().and_then(|(length, rest)| {
                let [high, middle, low] = *length;
                rest.split_at_checked(u32::from_be_bytes([0, high, middle, low]) as usize)
            });
            let Some((message, rest)) = message else {
                if bytes.len() > MOST_MESSAGE {
                    return Err(unexpected(HANDSHAKE));
                }
                self.partial = bytes.to_vec();
                return Ok(());
            };
            match HandshakeType::from(*kind) {
                HandshakeType::KeyUpdate => self.key_update(message, rest)?,
                HandshakeType::NewSessionTicket if self.side == Side::Client => {}
                got_type => {
                    let expect_types = vec![HandshakeType::KeyUpdate, HandshakeType::NewSessionTicket];
                    return Err(Error::InappropriateHandshakeMessage { expect_types, got_type });
                }
            }
            bytes = rest;
        }
        Ok(())
    }

    fn key_update(&mut self, message: &[u8], rest: &[u8]) -> Result<(), Error> {
        if !rest.is_empty() {
            return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
        }
        self.owes_update |= match message {
            [0] => false,
            [1] => true,
            _ => return Err(unexpected(HANDSHAKE)),
        };
        self.open.refresh()
    }
}

impl Direction {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets), secret: Secret) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(no_cipher()),
        };
        let made = keys(&secret, algorithm)?;
        // Others have been changed since, or are another session's.
        if (key.as_ref(), iv.as_ref()) != (&made.0[..algorithm.key_len()], &made.1[..]) {
            return Err(no_cipher());
        }
        Ok(Self { key: key_of(algorithm, key.as_ref())?, iv: made.1, sequence, secret })
    }

    /// RFC 8446, section 5.3. Each sequence number is used once; keys are exchanged long before they run out.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Writes a record behind what is in `region`, which has the room.
    fn seal(&mut self, kind: u8, data: &[u8], region: &mut Region) -> Result<(), Error> {
        let length = data.len() + 1 + TAG;
        let [high, low] = u16::try_from(length).map_err(|_| Error::EncryptError)?.to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let nonce = self.nonce();
        let (room, rest) = region.room().split_at_mut(HEADER);
        room.copy_from_slice(&header);
        let (ciphertext, rest) = rest.split_at_mut(data.len());
        let (end, _) = rest.split_at_mut(1 + TAG);
        let sealed =
            self.key.seal_out_of_place_scatter(nonce, Aad::from(header), data, ciphertext, &[kind], end);
        sealed.map_err(|_| Error::EncryptError)?;
        region.grew(HEADER + length);
        Ok(())
    }

    /// The next keys: RFC 8446, section 7.2.
    fn refresh(&mut self) -> Result<(), Error> {
        let (algorithm, hash) = (self.key.algorithm(), self.secret.as_ref().len());
        let mut secret = [0; 48];
        expand(&self.secret, "traffic upd", &mut secret[..hash])?;
        self.secret = Secret::from(&secret[..hash]);
        let (key, iv) = keys(&self.secret, algorithm)?;
        self.key = key_of(algorithm, &key[..algorithm.key_len()])?;
        (self.iv, self.sequence) = (iv, 0);
        Ok(())
    }
}

/// Key and IV of a secret: RFC 8446, section 7.3.
fn keys(secret: &Secret, algorithm: &Algorithm) -> Result<([u8; 32], [u8; 12]), Error> {
    let (mut key, mut iv) = ([0; 32], [0; 12]);
    expand(secret, "key", &mut key[..algorithm.key_len()])?;
    expand(secret, "iv", &mut iv)?;
    Ok((key, iv))
}

fn key_of(algorithm: &'static Algorithm, key: &[u8]) -> Result<LessSafeKey, Error> {
    UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(|_| no_cipher())
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The data that is in the first record at most, if all of it is there.
pub fn whole(records: &[u8]) -> Option<usize> {
    let (&[.., high, low], rest) = records.split_first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    (rest.len() >= length).then(|| length.saturating_sub(1 + TAG))
}

/// Where the first record of a handshake ends, if all of it is there; what cannot be one ends nowhere but with everything.
pub fn end_of_first(records: &[u8]) -> Option<usize> {
    let (&[kind, major, _, high, low], _) = records.split_first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=DATA).contains(&kind) || major != 3 || length > MOST + 2 * 1024 {
        return Some(records.len());
    }
    (records.len() >= HEADER + length).then_some(HEADER + length)
}

/// HKDF-Expand-Label without context: RFC 8446, section 7.1.
fn expand(secret: &Secret, label: &str, to: &mut [u8]) -> Result<(), Error> {
    let secret = secret.as_ref();
    let hash = if secret.len() == 48 { HKDF_SHA384 } else { HKDF_SHA256 };
    let lengths = [0, to.len() as u8, 6 + label.len() as u8];
    let info = [&lengths[..], b"tls13 ", label.as_bytes(), &[0]];
    let filled =
        Prk::new_less_safe(hash, secret).expand(&info, Length(to.len())).and_then(|key| key.fill(to));
    filled.map_err(|_| no_cipher())
}

/// Ours never ask for an answer.
fn key_update() -> [u8; 5] {
    [HandshakeType::KeyUpdate.into(), 0, 0, 1, 0]
}

fn alert(bytes: &[u8]) -> Result<Advance, Error> {
    let &[_, description] = bytes else { return Err(unexpected(ALERT)) };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Advance::PeerClosed),
        AlertDescription::UserCanceled => Ok(Advance::Again),
        other => Err(Error::AlertReceived(other)),
    }
}

fn unexpected(kind: u8) -> Error {
    let expect_types = vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert];
    Error::InappropriateMessage { expect_types, got_type: ContentType::from(kind) }
}

fn no_cipher() -> Error {
    Error::General("a TLS session with keys that are not of TLS 1.3".into())
}

#[cfg(test)]
mod tests;
