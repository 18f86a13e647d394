use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

/// How many are remembered. What installs a key twice is a call that is repeated, or an agent that has lost its place: both within
/// the key's life, which is a day (the default hard lifetime). 5,000 peers that rekey each hour need half of this in a day.
const REMEMBERED: usize = 1 << 19;

/// The last 524,288 different ones: keys and SPIs that were used, for as long as somebody could use them again (S3, S4). Takes three
/// to four times their size, and grows with negotiated SAs only.
#[derive(Debug)]
pub struct Recent<T> {
    known: HashSet<T>,
    order: VecDeque<T>,
    most: usize,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            most: REMEMBERED,
        }
    }
}

impl<T: Copy + Eq + Hash> Recent<T> {
    /// Whether it is remembered.
    pub fn contains(&self, one: &T) -> bool {
        self.known.contains(one)
    }

    /// Remembers one, in place of the oldest if there are too many; whether it is new.
    pub fn insert(&mut self, one: T) -> bool {
        if !self.known.insert(one) {
            return false;
        }
        // First one out: a queue of just this length need not grow.
        if self.order.len() == self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(one);
        true
    }

    /// All that are remembered, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.order.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many() {
        let mut recent = Recent {
            most: 3,
            ..Recent::default()
        };
        assert!([1, 2, 3].iter().all(|one| recent.insert(*one)));
        assert!(!recent.insert(1), "known, and no younger by that");
        assert!(recent.insert(4));
        assert!(!recent.contains(&1) && recent.contains(&2));
        assert!(recent.iter().eq(&[2, 3, 4]));
        assert_eq!(recent.known.len(), 3);
    }
}
