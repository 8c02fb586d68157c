//! Buffers of the thread, borrowed while bytes are in flight, with what is in them.

use std::cell::RefCell;

/// Bytes of one read from a socket.
pub const READ_SIZE: usize = 32 * 1024;

/// Room for 64 KiB in records.
pub const WRITE_SIZE: usize = 65 * 1024;

/// Spare buffers of each size that a thread keeps.
const MAX_SPARE: usize = 16;

#[derive(Default)]
struct Spare {
    read: Vec<Box<[u8]>>,
    write: Vec<Box<[u8]>>,
}

impl Spare {
    fn of(&mut self, size: usize) -> Option<&mut Vec<Box<[u8]>>> {
        match size {
            READ_SIZE => Some(&mut self.read),
            WRITE_SIZE => Some(&mut self.write),
            _ => None,
        }
    }
}

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { read: Vec::new(), write: Vec::new() }) };
}

/// A buffer with bytes in its middle.
pub struct Region {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Region {
    /// An empty one with so much room; those of [`READ_SIZE`] and [`WRITE_SIZE`] are used again.
    pub fn borrow(size: usize) -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().of(size).and_then(Vec::pop)).ok().flatten();
        Self { buffer: spare.unwrap_or_else(|| vec![0; size].into_boxed_slice()), start: 0, end: 0 }
    }

    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// What is in it.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// The room behind it.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.end..]
    }

    /// So many bytes were written into the room.
    pub fn grew(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Writes behind what is in it; the caller knows that there is room.
    pub fn put(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Takes bytes from the front; says whether that was all.
    pub fn consume(&mut self, bytes: usize) -> bool {
        self.start += bytes;
        self.start >= self.end
    }

    /// Room for a read into a buffer of this size at least: a record that has begun is moved to the front before reads become
    /// small, and a buffer that is full all the same grows.
    pub fn make_room(&mut self, size: usize) {
        if self.start == 0 && self.end == self.buffer.len() {
            return self.reserve(self.buffer.len());
        }
        if self.buffer.len() < size {
            return self.reserve(0);
        }
        if self.start == 0 || self.end <= self.buffer.len() / 2 {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Room for so many bytes more.
    pub fn reserve(&mut self, bytes: usize) {
        let mut larger = Self::borrow((self.filled().len() + bytes).max(WRITE_SIZE));
        larger.put(self.filled());
        std::mem::swap(self, &mut larger);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // Without the pool (the thread is ending) it is simply freed.
        let _ = SPARE.try_with(|spare| {
            if let Some(spare) = spare.borrow_mut().of(buffer.len())
                && spare.len() < MAX_SPARE
            {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begun_record_moves_to_the_front_and_a_full_buffer_grows() {
        let mut region = Region::borrow(READ_SIZE);
        region.put(&[1; READ_SIZE]);
        assert!(!region.consume(READ_SIZE - 3));
        region.make_room(READ_SIZE);
        assert_eq!(region.filled(), &[1, 1, 1]);
        assert_eq!(region.room().len(), READ_SIZE - 3);
        region.put(&[2; READ_SIZE - 3]);
        region.make_room(READ_SIZE);
        assert!(region.room().len() >= READ_SIZE);
        assert_eq!((region.filled().len(), region.filled()[3]), (READ_SIZE, 2));
    }

    #[test]
    fn a_begun_record_keeps_no_reader_in_a_small_buffer() {
        let mut region = Region::borrow(READ_SIZE);
        region.put(&[1; READ_SIZE / 2 + 1]);
        assert!(!region.consume(READ_SIZE / 2));
        region.make_room(READ_SIZE);
        assert_eq!((region.filled().len(), region.room().len()), (1, READ_SIZE - 1));
        region.make_room(WRITE_SIZE);
        assert_eq!((region.filled().len(), region.room().len()), (1, WRITE_SIZE - 1));
    }

    #[test]
    fn buffers_are_used_again() {
        let address = {
            let mut region = Region::borrow(READ_SIZE);
            region.put(b"x");
            region.filled().as_ptr()
        };
        let again = Region::borrow(READ_SIZE);
        assert_eq!((again.filled().len(), again.filled().as_ptr()), (0, address));
    }
}
