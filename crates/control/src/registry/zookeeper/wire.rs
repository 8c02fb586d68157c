//! ZooKeeper's wire: frames of a length and of values in big endian (`zookeeper.jute`, `org.apache.zookeeper.ZooDefs`).
//!
//! Only what is asked here. The crates that speak all of it bring a reactor and TLS of their own, and take frames of any length.

use bytes::{Buf, Bytes};

/// The longest frame that is taken: a list of 200,000 children. A server takes 1 MiB itself unless it is told otherwise.
pub(super) const MAX_FRAME: usize = 16 << 20;

/// What is asked.
pub(super) mod op {
    pub(in super::super) const CREATE: i32 = 1;
    pub(in super::super) const DELETE: i32 = 2;
    pub(in super::super) const EXISTS: i32 = 3;
    pub(in super::super) const GET_DATA: i32 = 4;
    pub(in super::super) const SET_DATA: i32 = 5;
    pub(in super::super) const SYNC: i32 = 9;
    pub(in super::super) const PING: i32 = 11;
    pub(in super::super) const GET_CHILDREN: i32 = 12;
    pub(in super::super) const MULTI: i32 = 14;
    pub(in super::super) const AUTH: i32 = 100;
    /// Of a step of [`MULTI`], in its answer.
    pub(super) const ERROR: i32 = -1;
}

/// What is answered.
pub(super) mod code {
    pub(in super::super) const OK: i32 = 0;
    pub(in super::super) const NO_NODE: i32 = -101;
    pub(in super::super) const NO_AUTH: i32 = -102;
    pub(in super::super) const NODE_EXISTS: i32 = -110;
    pub(super) const INCONSISTENT: i32 = -2;
    const BAD_ARGUMENTS: i32 = -8;
    const NO_CHILDREN: i32 = -108;
    const NOT_EMPTY: i32 = -111;
    const QUOTA: i32 = -125;

    /// Whether it says something of one node, and nothing of the session.
    pub(in super::super) fn is_of_a_node(code: i32) -> bool {
        matches!(code, NO_NODE | NO_AUTH | NODE_EXISTS | BAD_ARGUMENTS | NO_CHILDREN | NOT_EMPTY | QUOTA)
    }
}

/// Answers that belong to no question have these numbers.
pub(super) mod xid {
    pub(in super::super) const EVENT: i32 = -1;
    pub(in super::super) const PING: i32 = -2;
    pub(in super::super) const AUTH: i32 = -4;
}

/// What has happened to a node that is watched.
pub(super) mod event {
    pub(in super::super) const CREATED: i32 = 1;
    pub(in super::super) const DELETED: i32 = 2;
    pub(in super::super) const DATA: i32 = 3;
    pub(in super::super) const CHILDREN: i32 = 4;
}

/// What a code means.
pub(super) fn meaning(code: i32) -> &'static str {
    match code {
        -2 => "data inconsistency",
        -4 => "connection lost",
        -5 => "marshalling error",
        -6 => "not implemented there",
        -7 => "operation timed out",
        -8 => "bad arguments",
        -101 => "no such node",
        -102 => "not permitted",
        -103 => "another version",
        -108 => "an ephemeral node has no children",
        -110 => "the node exists",
        -111 => "the node has children",
        -112 => "the session has expired",
        -114 => "invalid ACL",
        -115 => "authentication failed",
        -118 => "the session has moved",
        -125 => "the quota is used up",
        -119 => "it is read-only",
        -127 => "throttled",
        _ => "an error of its own",
    }
}

/// What an event says (`WatcherEvent`): what has happened, and to which node.
pub(super) fn happened(body: &mut In) -> Result<(i32, String), String> {
    let (kind, _state) = (body.int()?, body.int()?);
    Ok((kind, body.text()?))
}

/// What became of a multi (`MultiResponse`): one that failed is answered 0, too, and says in its body which step did.
pub(super) fn exchanged(body: &mut In) -> Result<i32, String> {
    let mut failed = None;
    loop {
        let (what, is_end, _) = (body.int()?, body.flag()?, body.int()?);
        if is_end {
            return Ok(failed.unwrap_or(code::OK));
        }
        match what {
            op::CREATE => drop(body.text()?),
            op::DELETE => {}
            // The steps before the one that failed have 0, those after it "inconsistent".
            op::ERROR => {
                let said = body.int()?;
                failed = match failed {
                    None | Some(code::INCONSISTENT) => {
                        Some(if said == code::OK { code::INCONSISTENT } else { said })
                    }
                    first => first,
                };
            }
            other => return Err(format!("an answer has a step of the kind {other}")),
        }
    }
}

/// A frame that is being written.
pub(super) struct Out(Vec<u8>);

impl Out {
    /// What it asks is put in by [`Out::frame`].
    pub(super) fn new() -> Self {
        Self(vec![0; 12])
    }

    /// Without a head: a connect.
    pub(super) fn bare() -> Self {
        Self(vec![0; 4])
    }

    pub(super) fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn flag(mut self, value: bool) -> Self {
        self.0.push(value.into());
        self
    }

    pub(super) fn buffer(mut self, value: &[u8]) -> Self {
        self = self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.0.extend(value);
        self
    }

    pub(super) fn text(self, value: &str) -> Self {
        self.buffer(value.as_bytes())
    }

    /// The whole frame, with its length, its number and what it asks.
    pub(super) fn frame(mut self, xid: i32, op: i32) -> Vec<u8> {
        self.0[4..8].copy_from_slice(&xid.to_be_bytes());
        self.0[8..12].copy_from_slice(&op.to_be_bytes());
        self.bare_frame()
    }

    pub(super) fn bare_frame(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// What is read of a frame.
pub(super) struct In(pub(super) Bytes);

fn short<E>(_: E) -> String {
    "an answer is too short".to_owned()
}

impl In {
    pub(super) fn int(&mut self) -> Result<i32, String> {
        self.0.try_get_i32().map_err(short)
    }

    pub(super) fn flag(&mut self) -> Result<bool, String> {
        self.0.try_get_u8().map(|flag| flag != 0).map_err(short)
    }

    pub(super) fn long(&mut self) -> Result<i64, String> {
        self.0.try_get_i64().map_err(short)
    }

    /// Absent is empty.
    pub(super) fn buffer(&mut self) -> Result<Bytes, String> {
        let length = usize::try_from(self.int()?.max(0)).map_err(short)?;
        if length > self.0.len() {
            return Err(short(()));
        }
        Ok(self.0.split_to(length))
    }

    pub(super) fn text(&mut self) -> Result<String, String> {
        String::from_utf8(self.buffer()?.to_vec())
            .map_err(|_| "an answer has a name that is no UTF-8".to_owned())
    }

    pub(super) fn texts(&mut self) -> Result<Vec<String>, String> {
        // Each takes four bytes at least: a count alone gets no memory.
        (0..self.int()?.max(0)).map(|_| self.text()).collect()
    }

    /// Of a node's `Stat`, which of the sessions it ends with, or another word of how it ends: see [`is_ephemeral`].
    pub(super) fn owner(&mut self) -> Result<i64, String> {
        // czxid, mzxid, ctime, mtime, version, cversion, aversion.
        if self.0.len() < 44 {
            return Err(short(()));
        }
        self.0.advance(44);
        self.long()
    }
}

/// Whether a node of that owner ends with a session, and so has none below it (`EphemeralType`). Not so are containers, and nodes with a TTL:
/// their owner's first byte is that of no session, unless extended types are off and a server is number 255.
pub(super) fn is_ephemeral(owner: i64) -> bool {
    owner != 0 && owner != i64::MIN && owner >> 56 != -1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_length_and_a_bad_one_is_told() {
        let frame = Out::new().text("/a").flag(true).frame(7, op::GET_DATA);
        assert_eq!(frame, [0, 0, 0, 15, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 2, b'/', b'a', 1]);
        let read = |bytes: &'static [u8]| In(Bytes::from_static(bytes)).texts();
        assert_eq!(read(&[0, 0, 0, 1, 0, 0, 0, 1, b'x']).unwrap(), ["x"]);
        assert_eq!(read(&[255, 255, 255, 255]).unwrap(), [""; 0]);
        for bad in
            [&[0, 0][..], &[0, 0, 0, 1], &[127, 255, 255, 255, 0, 0, 0, 0], &[0, 0, 0, 1, 0, 0, 0, 9, 1]]
        {
            let bad = In(Bytes::copy_from_slice(bad)).texts();
            assert!(bad.unwrap_err().contains("too short"));
        }
        assert!(read(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff]).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn a_multi_that_failed_says_so_in_its_body() {
        let end = |out: Out| In(Bytes::from(out.int(-1).flag(true).int(-1).bare_frame()).slice(4..));
        let failed = |codes: &[i32]| {
            end(codes.iter().fold(Out::bare(), |out, code| out.int(-1).flag(false).int(*code).int(*code)))
        };
        let well = Out::bare().int(op::DELETE).flag(false).int(0);
        let well = well.int(op::CREATE).flag(false).int(0).text("/services/web/w1");
        assert_eq!(exchanged(&mut end(well)), Ok(code::OK));
        assert_eq!(exchanged(&mut failed(&[code::NO_NODE, -2])), Ok(code::NO_NODE));
        assert_eq!(exchanged(&mut failed(&[0, code::NO_AUTH])), Ok(code::NO_AUTH));
        assert_eq!(exchanged(&mut failed(&[0, 0])), Ok(-2), "whatever it was, nothing was done");
        assert!(exchanged(&mut end(Out::bare().int(77).flag(false).int(0))).unwrap_err().contains("77"));
        assert!(exchanged(&mut In(Bytes::new())).unwrap_err().contains("too short"));
    }

    #[test]
    fn containers_and_nodes_with_a_ttl_are_not_ephemeral() {
        let ttl = i64::from_be_bytes([0xff, 0, 0, 0, 0, 0, 0xea, 0x60]);
        let session_of_server_200 = i64::from_be_bytes([200, 1, 2, 3, 4, 5, 6, 7]);
        assert!(!is_ephemeral(0) && !is_ephemeral(i64::MIN) && !is_ephemeral(ttl));
        assert!(is_ephemeral(0x0100_0000_0000_0001) && is_ephemeral(session_of_server_200));
    }
}
