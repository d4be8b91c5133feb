//! What strangers may cost the thread of a door: nobody can be told before a handshake, and what comes after it takes
//! time before it is a request that has a price of its own.
//!
//! Two gates, so that neither keeps the other's out: of handshakes that begin, and of reads. Costs are those of this
//! code, in time of one core, with what the host does for the same; a gate lets through what its share of the time pays,
//! in the order of arrival, and what does not get through stays in the kernel, where it grows together and presses back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::pace::Allowance;

/// A connection that comes: a key agreement and a signature on P-384, and what the kernel, the host and the owner do.
pub(super) const HANDSHAKE: Duration = Duration::from_micros(800);
const READ: Duration = Duration::from_micros(10);
const RECORD: Duration = Duration::from_micros(2);
const KIBIBYTE: Duration = Duration::from_micros(1);
const RECORD_HEADER_BYTES: usize = 5;

/// What a read costs.
pub(super) fn read_cost(bytes: usize, records: usize) -> Duration {
    // A read has at most some thousand of either.
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    READ + RECORD * count(records) + KIBIBYTE * count(bytes / 1024)
}

/// Counts the TLS records that begin in what comes, however it is cut.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; RECORD_HEADER_BYTES],
    has: usize,
    /// Bytes of the record under way that are still to come.
    skip: usize,
}

impl Records {
    pub(super) fn count(&mut self, mut data: &[u8]) -> usize {
        let mut records = 0;
        while !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = &data[skipped..];
            let taken = (RECORD_HEADER_BYTES - self.has).min(data.len());
            self.header[self.has..self.has + taken].copy_from_slice(&data[..taken]);
            self.has += taken;
            data = &data[taken..];
            if self.has == RECORD_HEADER_BYTES {
                self.has = 0;
                self.skip = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                records += 1;
            }
        }
        records
    }
}

/// Lets strangers through as far as their share of the time goes.
pub(super) struct Gate {
    allowance: Allowance,
    us_per_second: u32,
    waiting: VecDeque<usize>,
}

impl Gate {
    pub(super) fn new(us_per_second: u32, us_most: u32, now: Instant) -> Self {
        let us_per_second = us_per_second.max(1);
        let most = Duration::from_micros(u64::from(us_most));
        Self {
            allowance: Allowance::new(earned_in(most, us_per_second), now),
            us_per_second,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn spend(&mut self, cost: Duration, now: Instant) {
        self.allowance.spend(earned_in(cost, self.us_per_second), now);
    }

    pub(super) fn give_back(&mut self, cost: Duration) {
        self.allowance.give_back(earned_in(cost, self.us_per_second));
    }

    /// Whether somebody may pass at once: nobody waits who came before.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.waiting.is_empty() && !self.allowance.is_spent(now)
    }

    pub(super) fn wait(&mut self, index: usize) {
        self.waiting.push_back(index);
    }

    /// Whose turn it is, if there is something to spend.
    pub(super) fn next(&mut self, now: Instant) -> Option<usize> {
        if self.allowance.is_spent(now) {
            return None;
        }
        self.waiting.pop_front()
    }

    /// When the next of those who wait may pass.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.allowance.due())
    }
}

/// In what time a piece of work is earned.
fn earned_in(cost: Duration, us_per_second: u32) -> Duration {
    cost * 1_000_000 / us_per_second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_whatever_the_cut() {
        let mut wire = Vec::new();
        for size in [0_u16, 1, 17, 300, 0, 16_401] {
            wire.extend_from_slice(&[23, 3, 3]);
            wire.extend_from_slice(&size.to_be_bytes());
            wire.extend(std::iter::repeat_n(7, usize::from(size)));
        }
        for size in [1, 2, 3, 4, 5, 6, 7, 100, 16_384, wire.len()] {
            let mut records = Records::default();
            let counted: usize = wire.chunks(size).map(|piece| records.count(piece)).sum();
            assert_eq!(counted, 6, "in pieces of {size}");
        }
    }

    #[test]
    fn a_gate_lets_through_its_share_in_order() {
        let now = Instant::now();
        let mut gate = Gate::new(100_000, 100_000, now);
        let through = (0..1000)
            .take_while(|_| {
                let open = gate.is_open(now);
                gate.spend(HANDSHAKE, now);
                open
            })
            .count();
        assert_eq!(through, 126, "what is saved is 0.1 s of handshakes");
        gate.wait(7);
        gate.wait(8);
        assert_eq!(gate.next(now), None);
        let mut later = now;
        let mut passed = Vec::new();
        while let Some(due) = gate.due() {
            later = due;
            assert!(!gate.is_open(later), "who waits is before who comes");
            passed.extend(gate.next(later));
            gate.spend(HANDSHAKE, later);
        }
        assert_eq!(passed, [7, 8]);
        assert!(later - now <= HANDSHAKE * 30);
    }
}
