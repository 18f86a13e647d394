//! Anti-replay (RFC 4303 §3.4.3 and Appendix A), as a ring of words in the manner of RFC 6479: moving the window clears words
//! and shifts nothing.

/// Largest window, in packets.
pub const MAX_WINDOW: u32 = 8192;

const WORD: u64 = 64;

/// Why the window refused a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It was accepted before.
    #[error("sequence number {sequence} was received before")]
    Replayed {
        /// Of the packet.
        sequence: u64,
    },
    /// It lies below the window.
    #[error("sequence number {sequence} is below the replay window, whose top is {top}")]
    TooOld {
        /// Of the packet; with ESN only its low half where the high half cannot be told.
        sequence: u64,
        /// Highest one accepted.
        top: u64,
    },
}

/// A sliding window of the last `size` sequence numbers. Number 0 counts as received: it is never sent.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    top: u64,
    size: u64,
    // One word more than the window needs, so that the words being cleared never hold bits of the window.
    words: Box<[u64]>,
}

impl ReplayWindow {
    /// A window of `size` packets, brought into 1 to [`MAX_WINDOW`].
    #[must_use]
    pub fn new(size: u32) -> Self {
        let size = u64::from(size.clamp(1, MAX_WINDOW));
        let mut words = vec![0; size.div_ceil(WORD) as usize + 1].into_boxed_slice();
        words[0] = 1;
        Self {
            top: 0,
            size,
            words,
        }
    }

    /// The window of a process that has ended, whose [`Self::words`] these are. `None`: no window of this size has them.
    #[must_use]
    pub fn resume(size: u32, top: u64, words: &[u64]) -> Option<Self> {
        let mut window = Self::new(size);
        if words.len() != window.words.len() {
            return None;
        }
        window.top = top;
        window.words.copy_from_slice(words);
        let (word, bit) = window.place(top);
        let up_to_top = bit | (bit - 1);
        let found = *words.get(word)?;
        // The top is what was accepted last; nothing above it was.
        (found & bit != 0 && found & !up_to_top == 0).then_some(window)
    }

    /// One bit per sequence number: that of `n` is bit `n % 64` of word `n / 64` modulo their count.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Highest sequence number accepted.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.top
    }

    /// Size in packets.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size as u32
    }

    /// Asks, and changes nothing.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn check(&self, sequence: u64) -> Result<(), ReplayError> {
        if sequence > self.top {
            return Ok(());
        }
        if self.top - sequence >= self.size {
            return Err(ReplayError::TooOld {
                sequence,
                top: self.top,
            });
        }
        let (word, bit) = self.place(sequence);
        if self.words[word] & bit != 0 {
            Err(ReplayError::Replayed { sequence })
        } else {
            Ok(())
        }
    }

    /// Marks a sequence number that was checked and whose packet is authentic.
    pub fn accept(&mut self, sequence: u64) {
        if sequence > self.top {
            self.advance(sequence);
        } else if self.top - sequence >= self.size {
            return;
        }
        let (word, bit) = self.place(sequence);
        self.words[word] |= bit;
    }

    /// The 64-bit sequence number that the low half on the wire stands for (RFC 4303 Appendix A2.2).
    ///
    /// # Errors
    /// [`ReplayError::TooOld`] when it would lie before the first packet or after the last possible one.
    pub fn recover(&self, low: u32) -> Result<u64, ReplayError> {
        let (top_high, top_low) = ((self.top >> 32) as u32, self.top as u32);
        let reach = (self.size - 1) as u32;
        let bottom_low = top_low.wrapping_sub(reach);
        let high = match (top_low >= reach, low >= bottom_low) {
            // The window lies within one subspace of 2^32: what is below its bottom belongs to the next one.
            (true, true) | (false, false) => Some(top_high),
            (true, false) => top_high.checked_add(1),
            // The window reaches back into the subspace before.
            (false, true) => top_high.checked_sub(1),
        };
        high.map(|high| u64::from(high) << 32 | u64::from(low))
            .ok_or(ReplayError::TooOld {
                sequence: low.into(),
                top: self.top,
            })
    }

    fn advance(&mut self, sequence: u64) {
        let words = self.words.len() as u64;
        let (from, to) = (self.top / WORD, sequence / WORD);
        for word in 1..=(to - from).min(words) {
            self.words[((from + word) % words) as usize] = 0;
        }
        self.top = sequence;
    }

    fn place(&self, sequence: u64) -> (usize, u64) {
        let word = sequence / WORD % self.words.len() as u64;
        (word as usize, 1 << (sequence % WORD))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn take(window: &mut ReplayWindow, sequence: u64) -> bool {
        let fresh = window.check(sequence).is_ok();
        if fresh {
            window.accept(sequence);
        }
        fresh
    }

    #[test]
    fn the_edges_of_the_window_are_exact() {
        for size in [1, 2, 63, 64, 65, 128, 1000, 4096, 8192] {
            let mut window = ReplayWindow::new(size);
            let (size, top) = (u64::from(size), 20_000);
            assert!(take(&mut window, top));
            assert!(
                take(&mut window, top - size + 1) || size == 1,
                "the oldest of {size}"
            );
            assert_eq!(
                window.check(top - size),
                Err(ReplayError::TooOld {
                    sequence: top - size,
                    top
                }),
                "one below the oldest of {size}"
            );
            assert_eq!(
                window.check(top),
                Err(ReplayError::Replayed { sequence: top })
            );
            assert_eq!(window.check(top + 1), Ok(()));
        }
    }

    #[test]
    fn sequence_number_zero_is_never_fresh() {
        assert_eq!(
            ReplayWindow::new(64).check(0),
            Err(ReplayError::Replayed { sequence: 0 })
        );
    }

    #[test]
    fn sizes_are_brought_into_range() {
        assert_eq!(ReplayWindow::new(0).size(), 1);
        assert_eq!(ReplayWindow::new(u32::MAX).size(), MAX_WINDOW);
    }

    #[test]
    fn asking_changes_nothing() {
        let window = ReplayWindow::new(64);
        assert_eq!(
            (window.check(1_000_000), window.check(1), window.top()),
            (Ok(()), Ok(()), 0)
        );
    }

    #[test]
    fn a_jump_over_the_whole_ring_forgets_all_old_bits() {
        let mut window = ReplayWindow::new(128);
        assert!((1..=128).all(|sequence| take(&mut window, sequence)));
        assert!(take(&mut window, 1 << 40));
        assert!((1..128).all(|back| take(&mut window, (1 << 40) - back)));
        assert!(take(&mut window, u64::MAX));
        assert!(!take(&mut window, u64::MAX));
    }

    #[test]
    fn the_high_half_is_recovered_as_in_appendix_a() {
        let mut window = ReplayWindow::new(64);
        assert_eq!(window.recover(5), Ok(5));
        assert_eq!(
            window.recover(u32::MAX),
            Err(ReplayError::TooOld {
                sequence: u32::MAX.into(),
                top: 0
            }),
            "before the first packet"
        );
        window.accept(7 << 32 | 1000);
        let cases = [(1001, 7), (937, 7), (936, 8), (0, 8), (u32::MAX, 7)];
        for (low, high) in cases {
            assert_eq!(
                window.recover(low),
                Ok(high << 32 | u64::from(low)),
                "case A, {low}"
            );
        }
        window.accept(8 << 32 | 10);
        let cases = [
            (11, 8),
            (10, 8),
            (0, 8),
            (u32::MAX, 7),
            (u32::MAX - 52, 7),
            (u32::MAX - 53, 8),
        ];
        for (low, high) in cases {
            assert_eq!(
                window.recover(low),
                Ok(high << 32 | u64::from(low)),
                "case B, {low}"
            );
        }
    }

    #[test]
    fn after_the_last_subspace_there_is_none() {
        let mut window = ReplayWindow::new(64);
        window.accept(u64::MAX - 5);
        assert!(matches!(window.recover(3), Err(ReplayError::TooOld { .. })));
        assert_eq!(window.recover(u32::MAX), Ok(u64::MAX));
    }

    #[test]
    fn words_that_no_window_has_are_refused() {
        let mut window = ReplayWindow::new(128);
        [3, 70, 500].into_iter().for_each(|n| window.accept(n));
        let (top, words) = (window.top(), window.words().to_vec());
        assert!(ReplayWindow::resume(128, top, &words).is_some());
        assert!(ReplayWindow::resume(192, top, &words).is_none(), "size");
        assert!(ReplayWindow::resume(128, top, &words[1..]).is_none());
        assert!(ReplayWindow::resume(128, top - 1, &words).is_none(), "top");
        assert!(ReplayWindow::resume(128, top + 1, &words).is_none(), "top");
        let mut above = words.clone();
        above[(top / WORD % 3) as usize] |= 1 << (top % WORD + 1);
        assert!(ReplayWindow::resume(128, top, &above).is_none(), "above it");
        let fresh = ReplayWindow::new(64);
        assert!(ReplayWindow::resume(64, 0, fresh.words()).is_some());
    }

    proptest! {
        #[test]
        fn a_resumed_window_decides_as_the_one_before(
            size in 1u32..300,
            before in prop::collection::vec(0u64..2000, 0..200),
            after in prop::collection::vec(0u64..3000, 0..200),
        ) {
            let mut window = ReplayWindow::new(size);
            for sequence in before {
                take(&mut window, sequence);
            }
            let mut next = ReplayWindow::resume(size, window.top(), window.words()).unwrap();
            for sequence in after {
                prop_assert_eq!(take(&mut next, sequence), take(&mut window, sequence));
            }
        }

        #[test]
        fn the_ring_agrees_with_a_plain_set(
            size in 1u32..300,
            start in prop_oneof![Just(0u64), Just((1u64 << 32) - 200), any::<u32>().prop_map(u64::from)],
            steps in prop::collection::vec((-400i64..400).prop_union(-3i64..200), 1..300),
        ) {
            let mut window = ReplayWindow::new(size);
            let (mut seen, mut top) = (BTreeSet::from([0]), 0);
            let mut sequence = start;
            for step in steps {
                sequence = sequence.saturating_add_signed(step);
                let expected = !seen.contains(&sequence) && (sequence > top || top - sequence < u64::from(size));
                prop_assert_eq!(take(&mut window, sequence), expected, "{} with top {}", sequence, top);
                if expected {
                    seen.insert(sequence);
                    top = top.max(sequence);
                }
            }
        }

        #[test]
        fn a_low_half_within_reach_is_always_recovered(
            top in 0u64..1 << 40, size in 1u32..=MAX_WINDOW, ahead in 0u64..1 << 31, back in 0u64..u64::from(MAX_WINDOW),
        ) {
            let mut window = ReplayWindow::new(size);
            window.accept(top);
            let next = top + ahead;
            prop_assert_eq!(window.recover(next as u32), Ok(next));
            if let Some(old) = top.checked_sub(back % u64::from(size)) {
                prop_assert_eq!(window.recover(old as u32), Ok(old));
            }
        }
    }
}
