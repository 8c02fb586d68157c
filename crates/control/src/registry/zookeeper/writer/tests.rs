use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::wire::{In, xid};
use super::*;
use crate::instance::{Protocol, sample};

/// What a ZooKeeper of the test is asked, in words, and what it answers: a code, and a body.
type Play = Box<dyn FnMut(i32, &str) -> (i32, Out) + Send>;

/// A ZooKeeper whose answers are those of `play`; what it was asked.
async fn played(mut play: Play) -> (ZooKeeperWriter, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = ZooKeeperSettings {
        endpoints: vec![listener.local_addr().unwrap().to_string()],
        ..Default::default()
    };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut is_new = true;
            while let Ok(length) = stream.read_u32().await {
                let mut frame = vec![0; length as usize];
                stream.read_exact(&mut frame).await.unwrap();
                let answer = if std::mem::take(&mut is_new) {
                    // Protocol, the last change that was seen, a time, and the session.
                    let session = i64::from_be_bytes(frame[16..24].try_into().unwrap());
                    all.lock().unwrap().extend((session != 0).then(|| format!("session {session}")));
                    let (time, session) = if session == 0 { (30_000, 77) } else { (0, 0) };
                    Out::bare().int(0).int(time).long(session).buffer(&[0; 16]).bare_frame().split_off(4)
                } else {
                    let mut body = In(frame.into());
                    let (number, what) = (body.int().unwrap(), body.int().unwrap());
                    // Of a multi the first step's head.
                    if what == op::MULTI {
                        body.0 = body.0.split_off(9);
                    }
                    let path = if number == xid::PING { String::new() } else { body.text().unwrap() };
                    if number != xid::PING {
                        all.lock().unwrap().push(format!("{what} {path}"));
                    }
                    let (answered, body) = play(what, &path);
                    let head = Out::bare().int(number).long(1).int(answered).bare_frame();
                    [&head[4..], &body.bare_frame()[4..]].concat()
                };
                stream.write_u32(answer.len() as u32).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    let mut writer = ZooKeeperWriter::new(settings, "us".into());
    writer.open().await.unwrap();
    (writer, asked)
}

fn web() -> Instance {
    Instance { namespace: "default".into(), ..sample("w1", "web", "v1", "127.0.0.5", 80, Protocol::Http) }
}

fn none() -> Out {
    Out::bare()
}

/// A node of that owner.
fn owned(owner: i64) -> Out {
    (0..44).fold(Out::bare(), |out, _| out.flag(false)).long(owner).int(0).int(0).long(1)
}

/// Steps that failed so.
fn failed(codes: &[i32]) -> Out {
    codes
        .iter()
        .fold(Out::bare(), |out, code| out.int(-1).flag(false).int(*code).int(*code))
        .int(-1)
        .flag(true)
        .int(-1)
}

fn wanted(instance: &Instance) -> Wanted {
    Wanted::from([(instance.id.clone(), Arc::new(instance.clone()))])
}

#[tokio::test]
async fn an_exchange_that_failed_is_none_and_is_done_anew() {
    let mut gone = false;
    // Who had the node ends between the question and the exchange.
    let play = move |what: i32, _: &str| match what {
        op::EXISTS if gone => (code::NO_NODE, none()),
        op::EXISTS => (code::OK, owned(76)),
        op::MULTI => {
            gone = true;
            (code::OK, failed(&[code::NO_NODE, -2]))
        }
        _ => (code::OK, none()),
    };
    let (mut writer, asked) = played(Box::new(play)).await;
    writer.put(&web()).await.unwrap();
    let path = "/services/web/w1@us";
    let of = |what: i32| format!("{what} {path}");
    let all = [op::EXISTS, op::MULTI, op::SYNC, op::EXISTS, op::CREATE].map(of);
    assert_eq!(*asked.lock().unwrap(), all);
    assert_eq!((writer.written(&wanted(&web())), writer.trouble()), (1, None));
}

#[tokio::test]
async fn what_is_refused_is_told_and_not_counted_and_tried_at_each_beat() {
    let permitted = Arc::new(Mutex::new(false));
    let is = permitted.clone();
    let play = move |what: i32, _: &str| match (what, *is.lock().unwrap()) {
        (op::EXISTS, _) => (code::OK, owned(0)),
        (op::MULTI, false) => (code::OK, failed(&[0, code::NO_AUTH])),
        (op::MULTI, true) => {
            let done = Out::bare().int(op::DELETE).flag(false).int(0).int(op::CREATE).flag(false).int(0);
            (code::OK, done.text("/services/web/w1@us").int(-1).flag(true).int(-1))
        }
        _ => (code::OK, none()),
    };
    let (mut writer, _) = played(Box::new(play)).await;
    let mut all = wanted(&web());
    let maintained = Instance { id: "w2".into(), state: State::Maintenance, ..web() };
    let far = Instance { id: "w3".into(), namespace: "far".into(), ..web() };
    for one in [&maintained, &far] {
        all.insert(one.id.clone(), Arc::new(one.clone()));
    }
    for one in all.values() {
        writer.put(one).await.unwrap();
    }
    let why = writer.trouble().unwrap().to_owned();
    assert!(why.contains("/services/web/w1@us") && why.contains("not permitted"), "{why}");
    assert_eq!(writer.written(&all), 0, "one is refused, one is out, one is of another namespace");
    *permitted.lock().unwrap() = true;
    writer.beat(&all).await.unwrap();
    assert_eq!((writer.written(&all), writer.trouble()), (1, None));
}

#[tokio::test]
async fn a_session_that_expired_is_begun_anew_and_all_is_put_again() {
    let play = |what: i32, _: &str| match what {
        op::EXISTS => (code::NO_NODE, none()),
        _ => (code::OK, none()),
    };
    let (mut writer, asked) = played(Box::new(play)).await;
    writer.put(&web()).await.unwrap();
    let first = std::mem::take(&mut *asked.lock().unwrap());
    // Another connection: the session of before is known no more there.
    writer.open().await.unwrap();
    writer.put(&web()).await.unwrap();
    let again = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(again.first().map(String::as_str), Some("session 77"));
    assert_eq!(again[1..], first);
    assert_eq!((writer.written(&wanted(&web())), writer.trouble()), (1, None));
}

#[tokio::test]
async fn what_may_not_be_deleted_is_told_and_holds_up_nobody() {
    let mut asked_before = false;
    let play = move |what: i32, _: &str| match what {
        op::DELETE if !std::mem::replace(&mut asked_before, true) => (code::NO_AUTH, none()),
        op::EXISTS => (code::NO_NODE, none()),
        _ => (code::OK, none()),
    };
    let (mut writer, _) = played(Box::new(play)).await;
    writer.remove(&web()).await.unwrap();
    assert!(writer.trouble().unwrap().contains("deleting"), "{:?}", writer.trouble());
    writer.beat(&Wanted::new()).await.unwrap();
    assert_eq!(writer.trouble(), None);
}

#[tokio::test]
async fn parents_are_made_where_they_are_not_and_one_error_of_the_session_ends_it() {
    let mut made = 0;
    let play = move |what: i32, path: &str| match (what, path) {
        (op::EXISTS, "/services") => (code::OK, owned(i64::MIN)),
        (op::EXISTS, _) => (code::NO_NODE, none()),
        (op::CREATE, _) => {
            made += 1;
            (if made == 1 { code::NO_NODE } else { code::OK }, none())
        }
        _ => (code::OK, none()),
    };
    let (mut writer, asked) = played(Box::new(play)).await;
    writer.put(&web()).await.unwrap();
    let made = |path: &str| asked.lock().unwrap().iter().filter(|one| **one == format!("1 {path}")).count();
    assert_eq!((made("/services"), made("/services/web"), made("/services/web/w1@us")), (0, 1, 2));

    let play = |what: i32, _: &str| match what {
        op::EXISTS => (code::NO_NODE, none()),
        _ => (-112, none()),
    };
    let (mut writer, _) = played(Box::new(play)).await;
    assert!(writer.put(&web()).await.unwrap_err().text().contains("expired"));
}
