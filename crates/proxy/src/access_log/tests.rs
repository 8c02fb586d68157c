use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// Hands every flushed piece to the test.
struct Pipe(Sender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pipe() -> (Box<Pipe>, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    (Box::new(Pipe(sender)), receiver)
}

#[test]
fn lines_arrive_in_order() {
    let (output, written) = pipe();
    let sink = Sink::writer(output, Format::Text).unwrap();
    for line in ["a\n", "b\n", "c\n"] {
        sink.write(line.into());
    }
    drop(sink);
    // The writer ends with the last sink, and with it the channel.
    let all: Vec<u8> = written.iter().flatten().collect();
    assert_eq!(all, b"a\nb\nc\n");
}

/// Blocks in the first write until told.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn slow_writer_costs_lines_and_counts_them() {
    let (release, held) = channel();
    let sink = Sink::writer(Box::new(Stuck(held)), Format::Text).unwrap();
    let line = vec![b'x'; 70 * 1024]; // larger than the writer's buffer: the first one is stuck at once
    for _ in 0..QUEUE + 100 {
        sink.write(line[..1].to_vec());
        sink.write(line.clone());
        if sink.dropped() > 0 {
            break;
        }
    }
    assert!(sink.dropped() > 0);
    drop(release);
}

#[test]
fn without_a_log_nothing_is_on() {
    assert!(!Sink::off().is_on());
}
