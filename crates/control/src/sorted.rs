//! A map in order of its keys, of which a copy costs nothing, and a change of a copy a few KiB that are copied.
//!
//! The entries are in pieces one after the other, each in one block of memory. Where a tree of single entries has two allocations
//! and some hundred bytes around each of them, this has next to nothing; and the world holds several for every instance of a mesh.

use std::borrow::Borrow;
use std::sync::Arc;

/// Entries of a piece.
const MOST: usize = 64;
/// By so many it grows.
const STEP: usize = 8;

/// A piece, never empty.
type Piece<K, V> = Vec<(K, V)>;

/// The map.
#[derive(Debug)]
pub struct Sorted<K, V> {
    pieces: Arc<Vec<Arc<Piece<K, V>>>>,
    len: usize,
}

impl<K, V> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), len: self.len }
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { pieces: Arc::default(), len: 0 }
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The same, with the key as it is here.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let piece = self.pieces.get(self.piece_of(key))?;
        let (key, value) = &piece[place(piece, key).ok()?];
        Some((key, value))
    }

    /// The piece in which a key is, if it is anywhere.
    fn piece_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.pieces.partition_point(|piece| piece[0].0.borrow() <= key).saturating_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone> Sorted<K, V> {
    /// Puts a value in; yields the one that was there. Of a key that was there the old one stays.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.piece_of(&key);
        let pieces = Arc::make_mut(&mut self.pieces);
        let Some(piece) = pieces.get_mut(at).map(Arc::make_mut) else {
            pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let place = match place(piece, &key) {
            Ok(place) => return Some(std::mem::replace(&mut piece[place].1, value)),
            Err(place) => place,
        };
        self.len += 1;
        if piece.len() < MOST {
            grow(piece);
            piece.insert(place, (key, value));
            return None;
        }
        // What comes in order fills one piece after the other.
        let middle = if place == MOST { MOST } else { MOST / 2 };
        let mut rest = piece.split_off(middle);
        let (into, place) =
            if place < middle { (&mut *piece, place) } else { (&mut rest, place - middle) };
        grow(into);
        into.insert(place, (key, value));
        piece.shrink_to(middle + STEP);
        pieces.insert(at + 1, Arc::new(rest));
        None
    }

    /// The value of a key, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let at = self.piece_of(key);
        let place = place(self.pieces.get(at)?, key).ok()?;
        let piece = Arc::make_mut(&mut self.pieces).get_mut(at).map(Arc::make_mut)?;
        Some(&mut piece[place].1)
    }

    /// Takes a value out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.piece_of(key);
        let place = place(self.pieces.get(at)?, key).ok()?;
        let pieces = Arc::make_mut(&mut self.pieces);
        let piece = Arc::make_mut(&mut pieces[at]);
        let (_, value) = piece.remove(place);
        self.len -= 1;
        if piece.is_empty() {
            pieces.remove(at);
        } else {
            // With the one behind it, or the one before.
            let joined = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|first| {
                pieces.get(first + 1).is_some_and(|next| pieces[*first].len() + next.len() <= MOST / 2)
            });
            if let Some(first) = joined {
                let next = pieces.remove(first + 1);
                Arc::make_mut(&mut pieces[first]).extend(next.iter().cloned());
            }
        }
        Some(value)
    }
}

/// By a little: the pieces of a mesh that stands still are as long as what is in them.
fn grow<T>(piece: &mut Vec<T>) {
    if piece.len() == piece.capacity() {
        piece.reserve_exact(STEP);
    }
}

/// Where a key is in a piece, or would be.
fn place<K: Borrow<Q>, V, Q: Ord + ?Sized>(piece: &Piece<K, V>, key: &Q) -> Result<usize, usize> {
    piece.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        let mut map = Self::default();
        all.into_iter().for_each(|(key, value)| drop(map.insert(key, value)));
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn whatever_is_done_to_it_is_as_it_is_done_to_a_map_of_the_library() {
        let mut rng = fastrand::Rng::with_seed(7);
        for keys in [50, 5_000] {
            let (mut map, mut known) = (Sorted::default(), BTreeMap::new());
            for step in 0..40_000_u32 {
                let key = rng.u32(..keys);
                // It grows, it stays as it is, it shrinks.
                let take = [1, 3, 5][step as usize / 15_000];
                match rng.u32(..6) < take {
                    true => assert_eq!(map.remove(&key), known.remove(&key)),
                    false => assert_eq!(map.insert(key, step), known.insert(key, step)),
                }
                assert_eq!((map.len(), map.get(&key)), (known.len(), known.get(&key)));
                if step % 1_000 == 0 {
                    assert!(map.iter().eq(known.iter()), "{step}");
                }
                assert!(map.pieces.iter().all(|piece| (1..=MOST).contains(&piece.len())), "{step}");
            }
            let pieces = map.pieces.len();
            assert!(pieces <= 1 + 4 * map.len() / MOST + 1, "{pieces} pieces of {}", map.len());
        }
    }

    #[test]
    fn a_copy_stays_as_it_was_and_shares_what_did_not_change() {
        let map: Sorted<u32, u32> = (0..1_000).map(|n| (n, n)).collect();
        assert_eq!(map.pieces.len(), 1_000_usize.div_ceil(MOST), "in order they fill their pieces");
        let mut other = map.clone();
        other.insert(500, 7);
        assert_eq!(other.remove(&501), Some(501));
        assert_eq!((map.get(&500), map.get(&501), map.len()), (Some(&500), Some(&501), 1_000));
        assert_eq!((other.get(&500), other.get(&501), other.len()), (Some(&7), None, 999));
        let same = map.pieces.iter().zip(other.pieces.iter()).filter(|(one, other)| Arc::ptr_eq(one, other));
        assert_eq!(same.count(), map.pieces.len() - 1);
    }
}
