//! How many threads work in each direction.

use std::num::NonZero;
use std::str::FromStr;
use std::thread::available_parallelism;

/// Most that can be told: all descriptors go to another program in one message.
const MOST: usize = 64;
/// Most that is chosen without being told.
const MOST_BY_ITSELF: usize = 8;

/// Queues of the TUN device, and sockets of the UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queues {
    /// As the processors are.
    Auto,
    /// So many, from 1 to [`MOST`].
    Number(usize),
}

/// It is neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoQueues;

impl std::fmt::Display for NoQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expected auto or a number from 1 to {MOST}")
    }
}

impl std::error::Error for NoQueues {}

impl FromStr for Queues {
    type Err = NoQueues;

    fn from_str(text: &str) -> Result<Self, NoQueues> {
        match text.parse() {
            Ok(number @ 1..=MOST) => Ok(Self::Number(number)),
            Err(_) if text == "auto" => Ok(Self::Auto),
            _ => Err(NoQueues),
        }
    }
}

impl Queues {
    /// How many, on this machine and with what this process may use of it.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Number(number) => number,
            Self::Auto => by_processors(available_parallelism().map_or(1, NonZero::get)),
        }
    }
}

/// Pods need processors, too. With three or fewer, the threads of one queue have enough of them.
fn by_processors(processors: usize) -> usize {
    match processors {
        ..=3 => 1,
        more => (more / 2).min(MOST_BY_ITSELF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded() {
        assert_eq!("auto".parse(), Ok(Queues::Auto));
        assert_eq!("1".parse(), Ok(Queues::Number(1)));
        assert_eq!("64".parse(), Ok(Queues::Number(64)));
        for wrong in ["0", "65", "-1", "", "two", "Auto"] {
            assert_eq!(wrong.parse::<Queues>(), Err(NoQueues), "{wrong}");
        }
    }

    #[test]
    fn half_of_the_processors_and_eight_at_most() {
        let chosen = [1, 2, 3, 4, 5, 8, 15, 16, 64].map(by_processors);
        assert_eq!(chosen, [1, 1, 1, 2, 2, 4, 7, 8, 8]);
        assert_eq!(Queues::Number(3).count(), 3);
    }
}
