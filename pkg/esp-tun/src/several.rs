/// One or more: what the threads of a direction have, each its own.
#[derive(Debug)]
pub struct Several<T> {
    first: T,
    more: Vec<T>,
}

impl<T> Several<T> {
    /// A single one.
    pub fn one(first: T) -> Self {
        Self {
            first,
            more: Vec::new(),
        }
    }

    /// All of these; `None` when there is none.
    pub fn of(all: impl IntoIterator<Item = T>) -> Option<Self> {
        let mut all = all.into_iter();
        let first = all.next()?;
        let more = all.collect();
        Some(Self { first, more })
    }

    /// This one and those.
    pub(crate) fn first_of(first: T, more: Vec<T>) -> Self {
        Self { first, more }
    }

    /// How many, at least one.
    pub fn count(&self) -> usize {
        1 + self.more.len()
    }

    /// The first one.
    pub fn first(&self) -> &T {
        &self.first
    }

    /// The first one alone.
    pub(crate) fn into_first(self) -> T {
        self.first
    }

    /// That of a thread; threads share them where there are more threads than these.
    pub fn get(&self, thread: usize) -> &T {
        let at = thread % self.count();
        at.checked_sub(1)
            .and_then(|at| self.more.get(at))
            .unwrap_or(&self.first)
    }

    /// Each one, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// Something else beside each one.
    pub(crate) fn make_each<U>(&self, mut make: impl FnMut(&T) -> U) -> Several<U> {
        Several {
            first: make(&self.first),
            more: self.more.iter().map(make).collect(),
        }
    }

    /// Something else made of each one.
    pub fn map<U>(self, mut make: impl FnMut(T) -> U) -> Several<U> {
        Several {
            first: make(self.first),
            more: self.more.into_iter().map(make).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_there_are_share_them() {
        let three = Several::of([7, 8, 9]).unwrap();
        let of_threads: Vec<_> = (0..7).map(|thread| *three.get(thread)).collect();
        assert_eq!(of_threads, [7, 8, 9, 7, 8, 9, 7]);
        assert_eq!((three.count(), *three.first()), (3, 7));
        let twice: Vec<_> = three.map(|n| 2 * n).iter().copied().collect();
        assert_eq!(twice, [14, 16, 18]);
        assert_eq!(Several::one(5).get(3), &5);
        assert!(Several::<u8>::of([]).is_none());
    }
}
