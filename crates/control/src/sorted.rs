//! A map in order of its keys, of which a copy costs nothing, and a change of a copy a few small nodes that are copied.
//!
//! A tree of broad nodes. One of single entries has two allocations and some hundred bytes around each of them, this has next to
//! nothing; and the world holds several for every instance of a mesh.

use std::borrow::Borrow;
use std::sync::Arc;

/// Entries of a leaf, and children of a branch.
const MOST: usize = 32;
/// By so many a leaf grows.
const STEP: usize = 4;

/// The map.
#[derive(Debug)]
pub struct Sorted<K, V> {
    root: Option<Arc<Node<K, V>>>,
    len: usize,
}

/// Never empty; all leaves are equally deep.
#[derive(Debug, Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    Branch(Vec<Arc<Self>>),
}

impl<K, V> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K, V> Sorted<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { branches: Vec::new(), leaf: [].iter() };
        self.root.iter().for_each(|root| iter.descend(root));
        iter
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Sorted<K, V> {
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
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Branch(children) => node = &children[child(children, key)],
                Node::Leaf(entries) => {
                    let (key, value) = &entries[place(entries, key).ok()?];
                    return Some((key, value));
                }
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> Sorted<K, V> {
    /// The value of a key, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let mut node = Arc::make_mut(self.root.as_mut()?);
        loop {
            match node {
                Node::Branch(children) => {
                    let at = child(children, key);
                    node = Arc::make_mut(&mut children[at]);
                }
                Node::Leaf(entries) => {
                    let at = place(entries, key).ok()?;
                    return Some(&mut entries[at].1);
                }
            }
        }
    }

    /// Puts a value in; yields the one that was there. Of a key that was there the old one stays.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(root) = &mut self.root else {
            (self.root, self.len) = (Some(Arc::new(Node::Leaf(vec![(key, value)]))), 1);
            return None;
        };
        let before = match Arc::make_mut(root).insert(key, value) {
            Inserted::Instead(before) => return Some(before),
            Inserted::There => None,
            Inserted::Split(more) => Some(more),
        };
        self.len += 1;
        if let Some(more) = before {
            *root = Arc::new(Node::Branch(vec![root.clone(), Arc::new(more)]));
        }
        None
    }

    /// Takes a value out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let root = self.root.as_mut()?;
        let value = Arc::make_mut(root).remove(key);
        self.len -= 1;
        if self.len == 0 {
            self.root = None;
        } else if let Node::Branch(children) = &**root
            && let [only] = children.as_slice()
        {
            self.root = Some(only.clone());
        }
        value
    }
}

/// What became of an entry.
enum Inserted<K, V> {
    /// It took the place of this.
    Instead(V),
    There,
    /// There was no room: what comes after the node is this.
    Split(Node<K, V>),
}

impl<K: Ord, V> Node<K, V> {
    fn least(&self) -> &K {
        let mut node = self;
        loop {
            match node {
                Self::Branch(children) => node = &children[0],
                Self::Leaf(entries) => return &entries[0].0,
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Branch(children) => children.len(),
            Self::Leaf(entries) => entries.len(),
        }
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn insert(&mut self, key: K, value: V) -> Inserted<K, V> {
        match self {
            Self::Branch(children) => {
                let at = child(children, &key);
                match Arc::make_mut(&mut children[at]).insert(key, value) {
                    Inserted::Split(more) => match put(children, at + 1, Arc::new(more)) {
                        Some(rest) => Inserted::Split(Self::Branch(rest)),
                        None => Inserted::There,
                    },
                    other => other,
                }
            }
            Self::Leaf(entries) => match place(entries, &key) {
                Ok(place) => Inserted::Instead(std::mem::replace(&mut entries[place].1, value)),
                Err(place) => match put(entries, place, (key, value)) {
                    Some(rest) => Inserted::Split(Self::Leaf(rest)),
                    None => Inserted::There,
                },
            },
        }
    }

    /// Of a key that is there. What is left may be empty.
    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Branch(children) => {
                let at = child(children, key);
                let value = Arc::make_mut(&mut children[at]).remove(key);
                tidy(children, at);
                value
            }
            Self::Leaf(entries) => Some(entries.remove(place(entries, key).ok()?).1),
        }
    }

    fn append(&mut self, next: &Self) {
        match (self, next) {
            (Self::Branch(children), Self::Branch(more)) => children.extend_from_slice(more),
            (Self::Leaf(entries), Self::Leaf(more)) => entries.extend_from_slice(more),
            // Children of one branch are equally deep.
            _ => {}
        }
    }
}

/// Puts a thing among others; yields those behind the first when there are too many.
fn put<T>(all: &mut Vec<T>, at: usize, thing: T) -> Option<Vec<T>> {
    if all.len() < MOST {
        // By a little: a mesh that stands still has no room that nobody needs.
        if all.len() == all.capacity() {
            all.reserve_exact(STEP);
        }
        all.insert(at, thing);
        return None;
    }
    // What comes in order fills one after the other.
    let middle = if at == MOST { MOST } else { MOST / 2 };
    let mut rest = Vec::with_capacity(MOST - middle + 1);
    rest.extend(all.drain(middle..));
    match at.checked_sub(middle).filter(|_| at > middle || middle == MOST) {
        Some(at) => rest.insert(at, thing),
        None => all.insert(at, thing),
    }
    all.shrink_to_fit();
    Some(rest)
}

/// A child has become smaller: it goes if nothing is left, or is joined with the one behind or before it.
fn tidy<K: Ord + Clone, V: Clone>(children: &mut Vec<Arc<Node<K, V>>>, at: usize) {
    if children[at].len() == 0 {
        children.remove(at);
        return;
    }
    let joined = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|first| {
        children.get(first + 1).is_some_and(|next| children[*first].len() + next.len() <= MOST / 2)
    });
    if let Some(first) = joined {
        let next = children.remove(first + 1);
        Arc::make_mut(&mut children[first]).append(&next);
    }
}

/// The child in which a key is, if it is anywhere.
fn child<K: Borrow<Q> + Ord, V, Q: Ord + ?Sized>(children: &[Arc<Node<K, V>>], key: &Q) -> usize {
    children[1..].partition_point(|child| child.least().borrow() <= key)
}

/// Where a key is in a leaf, or would be.
fn place<K: Borrow<Q>, V, Q: Ord + ?Sized>(entries: &[(K, V)], key: &Q) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

/// The entries of a map, in order.
#[derive(Debug)]
pub struct Iter<'m, K, V> {
    branches: Vec<std::slice::Iter<'m, Arc<Node<K, V>>>>,
    leaf: std::slice::Iter<'m, (K, V)>,
}

impl<'m, K, V> Iter<'m, K, V> {
    fn descend(&mut self, node: &'m Node<K, V>) {
        let mut node = node;
        loop {
            match node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return;
                }
                Node::Branch(children) => {
                    let mut children = children.iter();
                    let Some(first) = children.next() else { return };
                    self.branches.push(children);
                    node = first;
                }
            }
        }
    }
}

impl<'m, K, V> Iterator for Iter<'m, K, V> {
    type Item = (&'m K, &'m V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            match self.branches.last_mut()?.next() {
                Some(node) => self.descend(node),
                None => drop(self.branches.pop()),
            }
        }
    }
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

    /// How many leaves there are; all are equally deep, and no node is empty or too large.
    fn leaves<K: Ord, V>(map: &Sorted<K, V>) -> usize {
        fn of<K: Ord, V>(node: &Node<K, V>) -> (usize, usize) {
            assert!((1..=MOST).contains(&node.len()));
            match node {
                Node::Leaf(_) => (1, 0),
                Node::Branch(children) => {
                    let below: Vec<_> = children.iter().map(|child| of(child)).collect();
                    assert!(below.iter().all(|(_, depth)| *depth == below[0].1));
                    (below.iter().map(|(leaves, _)| leaves).sum(), below[0].1 + 1)
                }
            }
        }
        map.root.as_deref().map_or(0, |root| of(root).0)
    }

    #[test]
    fn whatever_is_done_to_it_is_as_it_is_done_to_a_map_of_the_library() {
        let mut rng = fastrand::Rng::with_seed(7);
        for keys in [50, 5_000] {
            let (mut map, mut known) = (Sorted::default(), BTreeMap::new());
            for step in 0..45_000_u32 {
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
                    let (leaves, fewest) = (leaves(&map), map.len() / MOST);
                    assert!(leaves <= 4 * fewest + 2, "{leaves} leaves of {}", map.len());
                }
            }
            for key in 0..keys {
                assert_eq!(map.remove(&key), known.remove(&key));
            }
            assert!(map.is_empty() && map.root.is_none());
        }
    }

    #[test]
    fn a_copy_stays_as_it_was_and_shares_what_did_not_change() {
        let map: Sorted<u32, u32> = (0..3_000).map(|n| (n, n)).collect();
        assert_eq!(leaves(&map), 3_000_usize.div_ceil(MOST), "in order they fill their leaves");
        let mut other = map.clone();
        other.insert(512, 7);
        *other.get_mut(&513).unwrap() = 8;
        assert_eq!(other.remove(&514), Some(514));
        assert_eq!([512, 513, 514].map(|n| map.get(&n).copied()), [Some(512), Some(513), Some(514)]);
        assert_eq!([512, 513, 514].map(|n| other.get(&n).copied()), [Some(7), Some(8), None]);
        assert_eq!((map.len(), other.len(), map.values().count()), (3_000, 2_999, 3_000));
        let shared = |one: &Sorted<u32, u32>, other: &Sorted<u32, u32>| match (&one.root, &other.root) {
            (Some(one), Some(other)) => match (&**one, &**other) {
                (Node::Branch(one), Node::Branch(other)) => {
                    one.iter().zip(other).filter(|(one, other)| Arc::ptr_eq(one, other)).count()
                }
                _ => 0,
            },
            _ => 0,
        };
        let Some(Node::Branch(children)) = map.root.as_deref() else { panic!("no branch") };
        assert_eq!(shared(&map, &other), children.len() - 1);
    }
}
