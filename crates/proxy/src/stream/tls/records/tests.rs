use tokio::io::ReadBuf;

use super::*;

fn ends() -> (Records, Records) {
    fuzzing::ends().unwrap()
}

fn with<'o, 'b>(job: Job<'o>, plain: &'o mut Vec<u8>, outgoing: &'o mut Option<Region>) -> Out<'o, 'b> {
    Out { reader: None, plain, outgoing, job }
}

/// What an end sends for a job.
fn sent(end: &mut Records, job: Job<'_>) -> Vec<u8> {
    let (mut plain, mut outgoing) = (Vec::new(), None);
    let (used, turn) = end.turn(&mut [], &mut with(job, &mut plain, &mut outgoing));
    assert!(used == 0 && turn == Ok(Advance::Done));
    outgoing.take().unwrap().filled().to_vec()
}

/// One record with this inside, type and padding included.
fn record(end: &mut Records, inside: &[u8]) -> Vec<u8> {
    let mut outgoing = None;
    let kind = *inside.last().unwrap();
    let region = room_for(&mut outgoing, inside.len() + 100);
    end.seal.seal(kind, &inside[..inside.len() - 1], region).unwrap();
    region.filled().to_vec()
}

/// What a record is taken for, and the plain text in it.
fn opened(end: &mut Records, bytes: &[u8]) -> (Result<Advance, Error>, Vec<u8>, Option<Region>) {
    let (mut bytes, mut plain, mut outgoing) = (bytes.to_vec(), Vec::new(), None);
    let (_, turn) = end.turn(&mut bytes, &mut with(Job::Nothing, &mut plain, &mut outgoing));
    (turn, plain, outgoing)
}

#[test]
fn text_is_cut_into_records_and_joined_again_whatever_the_readers_room() {
    let text: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
    for room in [1, 100, MOST, MOST + 1, 60_000] {
        let (mut near, mut far) = ends();
        let mut bytes = sent(&mut near, Job::Encrypt(&text));
        assert_eq!(bytes.len(), text.len() + 4 * (HEADER + 1 + TAG));
        let (mut at, mut got) = (0, Vec::new());
        while at < bytes.len() {
            let (mut space, mut plain, mut outgoing) = (vec![0; room], Vec::new(), None);
            let mut reader = ReadBuf::new(&mut space);
            let mut out = with(Job::Nothing, &mut plain, &mut outgoing);
            out.reader = Some(&mut reader);
            let (used, turn) = far.turn(&mut bytes[at..], &mut out);
            assert_eq!(turn, Ok(Advance::Plain));
            at += used;
            got.extend_from_slice(reader.filled());
            got.extend(plain);
        }
        assert_eq!(got, text);
    }
}

#[test]
fn a_full_record_fits_where_its_data_does() {
    let (mut near, _) = ends();
    let bytes = sent(&mut near, Job::Encrypt(&[7; MOST]));
    assert_eq!(whole(&bytes), Some(MOST));
    assert_eq!(whole(&bytes[..bytes.len() - 1]), None);
}

#[test]
fn a_record_that_is_not_whole_waits_and_one_that_was_touched_is_refused() {
    let (mut near, mut far) = ends();
    let bytes = sent(&mut near, Job::Encrypt(b"text"));
    for end in 0..bytes.len() {
        assert_eq!(opened(&mut far, &bytes[..end]).0, Ok(Advance::Starved), "{end} bytes");
    }
    for at in 0..bytes.len() {
        let mut touched = bytes.clone();
        touched[at] ^= 1;
        let (mut end, _) = ends();
        let (turn, plain, _) = opened(&mut end, &touched);
        // A longer length waits for bytes that never come.
        assert!(matches!(turn, Err(_) | Ok(Advance::Starved)), "byte {at}");
        assert!(plain.is_empty());
    }
    assert_eq!(opened(&mut far, &bytes).1, b"text");
    assert_eq!(opened(&mut far, &bytes).0, Err(Error::DecryptError), "a record that came twice");
}

#[test]
fn what_no_peer_may_send_is_refused_with_the_alert_for_it() {
    let sealed = |inside: &[u8]| record(&mut ends().0, inside);
    let plain_alert = vec![ALERT, 3, 3, 0, 2, 1, 0];
    let oversized = [&[DATA, 3, 3, 0x41, 1][..], &[0; 0x4101]].concat();
    let too_long = sealed(&[&vec![1; MOST + 1][..], &[DATA]].concat());
    let cases = [
        (plain_alert, AlertDescription::UnexpectedMessage),
        (vec![DATA, 3, 3, 0, 16], AlertDescription::BadRecordMac),
        (oversized, AlertDescription::RecordOverflow),
        (too_long, AlertDescription::RecordOverflow),
        (sealed(&[0, 0, 0, 0]), AlertDescription::UnexpectedMessage),
        (sealed(&[1, 20]), AlertDescription::UnexpectedMessage),
        (sealed(&[1, ALERT]), AlertDescription::UnexpectedMessage),
        // A ClientHello; a key update of unknown kind; one that is followed by something.
        (sealed(&[1, 0, 0, 1, 0, HANDSHAKE]), AlertDescription::UnexpectedMessage),
        (sealed(&[24, 0, 0, 1, 2, HANDSHAKE]), AlertDescription::UnexpectedMessage),
        (sealed(&[24, 0, 0, 1, 0, 24, HANDSHAKE]), AlertDescription::UnexpectedMessage),
    ];
    for (bytes, description) in cases {
        let (mut near, mut far) = ends();
        let error = opened(&mut far, &bytes).0.unwrap_err();
        let mut outgoing = None;
        far.tell(&error, &mut outgoing);
        let told = opened(&mut near, outgoing.unwrap().filled()).0;
        assert_eq!(told, Err(Error::AlertReceived(description)), "{error}");
    }
}

#[test]
fn padding_is_dropped_and_farewells_are_heard() {
    let (mut near, mut far) = ends();
    // Sealed as data of type 0, the padding's last byte.
    let padded = record(&mut near, &[b't', b'x', DATA, 0, 0, 0]);
    assert_eq!(opened(&mut far, &padded).1, b"tx");
    let cancelled = record(&mut near, &[1, 90, ALERT]);
    let (turn, ..) = opened(&mut far, &cancelled);
    assert_eq!(turn, Ok(Advance::Again));
    let bytes = sent(&mut near, Job::Close);
    assert_eq!(opened(&mut far, &bytes).0, Ok(Advance::PeerClosed));
}

#[test]
fn keys_change_on_request_in_time_and_in_pieces() {
    let (mut near, mut far) = ends();
    // A request in two pieces, and another; both are answered once, with the next record.
    let pieces = [record(&mut near, &[24, 0, HANDSHAKE]), record(&mut near, &[0, 1, 1, HANDSHAKE])];
    assert_eq!(opened(&mut far, &pieces[0]).0, Ok(Advance::Again));
    assert_eq!(opened(&mut far, &pieces[1]).0, Ok(Advance::Again));
    near.seal.refresh().unwrap();
    let another = record(&mut near, &[24, 0, 0, 1, 1, HANDSHAKE]);
    assert_eq!(opened(&mut far, &another).0, Ok(Advance::Again));
    near.seal.refresh().unwrap();
    let update = HEADER + 5 + 1 + TAG;
    let bytes = sent(&mut far, Job::Encrypt(b"answer"));
    assert_eq!(bytes.len(), update + HEADER + 6 + 1 + TAG);
    assert_eq!(opened(&mut near, &bytes[..update]).0, Ok(Advance::Again));
    assert_eq!(opened(&mut near, &bytes[update..]).1, b"answer");
    for _ in 0..2 {
        let bytes = sent(&mut near, Job::Encrypt(b"new keys"));
        assert_eq!(opened(&mut far, &bytes).1, b"new keys");
        // By itself after so many records.
        (near.seal.sequence, far.open.sequence) = (REFRESH_AFTER, REFRESH_AFTER);
        let bytes = sent(&mut near, Job::Encrypt(b"newer keys"));
        assert_eq!(opened(&mut far, &bytes[..update]).0, Ok(Advance::Again));
        assert_eq!(opened(&mut far, &bytes[update..]).1, b"newer keys");
        assert_eq!((near.seal.sequence, far.open.sequence), (1, 1));
        std::mem::swap(&mut near, &mut far);
    }
}

/// Both reasons for new keys at once, in writes of every size around that of a buffer.
#[test]
fn an_update_that_is_due_and_owed_fits_in_front_of_a_write_of_any_size() {
    let text = vec![b'x'; 33_000];
    for size in 32_600..text.len() {
        let (mut near, mut far) = ends();
        (near.seal.sequence, far.open.sequence) = (REFRESH_AFTER, REFRESH_AFTER);
        near.owes_update = true;
        let bytes = sent(&mut near, Job::Encrypt(&text[..size]));
        let update = HEADER + 5 + 1 + TAG;
        let pieces = size.div_ceil(MOST);
        assert_eq!(bytes.len(), update + size + pieces * (HEADER + 1 + TAG), "one update");
        assert_eq!(opened(&mut far, &bytes[..update]).0, Ok(Advance::Again));
        assert_eq!(opened(&mut far, &bytes[update..]).1, text[..MOST]);
    }
}

#[test]
fn data_in_mid_message_and_records_without_end_are_refused() {
    let (mut near, mut far) = ends();
    let piece = record(&mut near, &[4, 0, HANDSHAKE]);
    assert_eq!(opened(&mut far, &piece).0, Ok(Advance::Again));
    let bytes = sent(&mut near, Job::Encrypt(b"x"));
    assert!(opened(&mut far, &bytes).0.is_err());

    let (mut near, mut far) = ends();
    let mut taken = 0;
    while opened(&mut far, &record(&mut near, &[DATA])).0.is_ok() {
        taken += 1;
    }
    assert_eq!(taken, MOST_QUIET);

    let (mut near, mut far) = ends();
    let endless = [&[4, 0xff, 0xff, 0xff][..], &[0; MOST - 4], &[HANDSHAKE]].concat();
    let mut taken = 0;
    while opened(&mut far, &record(&mut near, &endless)).0.is_ok() {
        taken += 1;
    }
    assert_eq!(taken, MOST_MESSAGE / MOST);
}

#[test]
fn arbitrary_insides_and_arbitrary_bytes_harm_nothing() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20_000 {
        let mut data = Vec::new();
        for _ in 0..random.u8(1..8) {
            let kind = [DATA, DATA, DATA, HANDSHAKE, HANDSHAKE, ALERT, 0][random.usize(0..7)];
            let known: [&[u8]; 5] =
                [&[24, 0, 0, 1, 1], &[24, 0, 0, 1, 0], &[4, 0, 0, 2, 9, 9], &[1, 90], &[23, 3, 3, 0, 30]];
            let inside = match random.u8(0..3) {
                0 => known[random.usize(0..5)].to_vec(),
                _ => (0..random.u8(..)).map(|_| random.u8(..)).collect(),
            };
            data.extend([kind, inside.len() as u8]);
            data.extend(inside);
        }
        fuzzing::fuzz_records(&data);
    }
}
