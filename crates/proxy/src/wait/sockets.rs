//! Who else has TCP sockets in this network namespace, which is a Pod's: where there are none, its application has ended, or never spoke.

use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Of both families.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// As the kernel counts them.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// A socket of somebody else: its own port, and whether it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) port: u16,
    pub(super) listens: bool,
}

/// The first that is another user's than `own`.
pub(super) fn of_others(own: u32) -> io::Result<Option<Socket>> {
    for table in TABLES.map(Path::new) {
        let file = match std::fs::File::open(table) {
            Ok(file) => file,
            // A kernel without a family has no table of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = first(BufReader::new(file), own)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn first(table: impl BufRead, own: u32) -> io::Result<Option<Socket>> {
    for line in table.lines().skip(1) {
        if let Some(found) = socket(&line?, own) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// `sl local rem st queues timer retransmits uid timeout inode …`. What nobody has taken from a queue yet, or has closed, has no inode.
fn socket(line: &str, own: u32) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let (uid, inode) = (words.nth(3)?, words.nth(1)?);
    let state = u8::from_str_radix(state, 16).ok().filter(|state| [ESTABLISHED, LISTEN].contains(state))?;
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    let is_other = uid.parse::<u32>().is_ok_and(|uid| uid != own) && inode != "0";
    is_other.then_some(Socket { port, listens: state == LISTEN })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3AAD 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 91001 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:A2C4 06 00000000:00000000 03:00000F5C 00000000     0        0 0 3 0000000000000000
   2: 0100007F:1F91 0100007F:A2C5 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 4 0 10 -1
";
    const THEIRS: &str = "   3: 00000000:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 91002 1 0000000000000000 100 0 0 10 0\n";

    #[test]
    fn only_what_another_user_has_open_counts() {
        let found = |text: &str, own| first(text.as_bytes(), own).unwrap();
        assert_eq!(found(TABLE, 1337), None);
        let listens = Some(Socket { port: 0x1f92, listens: true });
        assert_eq!(found(&format!("{TABLE}{THEIRS}"), 1337), listens);
        let speaks = format!("{TABLE}{}", THEIRS.replace(" 0A ", " 01 "));
        assert_eq!(found(&speaks, 1337), Some(Socket { port: 0x1f92, listens: false }));
        let own = Some(Socket { port: 15021, listens: true });
        assert_eq!(found(TABLE, 0), own);
        assert_eq!(found("", 0), None);
        assert_eq!(found("head\nno table at all\n", 0), None);
    }

    #[test]
    fn the_kernel_s_own_tables_are_read() {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        // Nobody has this number, so every socket is another's; that of the test is one of them.
        let found = of_others(u32::MAX - 7).unwrap();
        assert!(found.is_some(), "{listener:?}");
    }
}
