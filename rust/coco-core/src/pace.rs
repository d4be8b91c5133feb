//! What somebody may have now and what is saved for later, as time: no queue, no clock of its own.

use std::time::{Duration, Instant};

/// Reads that carry so little that only their number counts.
#[derive(Clone, Copy, Debug)]
pub struct CrumbLimits {
    /// A read of fewer bytes is one.
    pub bytes: usize,
    /// At once.
    pub most: u32,
    /// In which one more is earned, and for which nothing is read once there were too many.
    pub rest: Duration,
}

/// What one answer earns: a request may come in so many crumbs for nothing.
const CRUMBS_PER_ANSWER: u32 = 3;

/// A token bucket, kept as the moment at which everything that was spent is earned.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    earned: Instant,
    saved: Duration,
}

impl Allowance {
    /// A full one, which holds what is earned in the time `saved`.
    #[must_use]
    pub fn new(saved: Duration, now: Instant) -> Self {
        Self {
            earned: now.checked_sub(saved).unwrap_or(now),
            saved,
        }
    }

    /// Spend what is earned in `time`, into debt if need be.
    pub fn spend(&mut self, time: Duration, now: Instant) {
        let full = now.checked_sub(self.saved).unwrap_or(now);
        self.earned = self.earned.max(full) + time;
    }

    /// Give back what was spent for nothing.
    pub fn give_back(&mut self, time: Duration) {
        self.earned = self.earned.checked_sub(time).unwrap_or(self.earned);
    }

    /// When it is out of debt.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.earned
    }

    /// Whether it is in debt.
    #[must_use]
    pub fn is_spent(&self, now: Instant) -> bool {
        self.earned > now
    }
}

/// Counts the crumbs of one connection: a few are what clients send, more of them have to come together.
#[derive(Clone, Copy, Debug)]
pub struct Crumbs {
    limits: CrumbLimits,
    allowance: Allowance,
}

impl Crumbs {
    /// Of a new connection.
    #[must_use]
    pub fn new(limits: CrumbLimits, now: Instant) -> Self {
        let allowance = Allowance::new(limits.rest * limits.most, now);
        Self { limits, allowance }
    }

    /// So many bytes were read; whether nothing more is to be read before a rest.
    pub fn read(&mut self, bytes: usize, now: Instant) -> bool {
        if bytes >= self.limits.bytes {
            return false;
        }
        self.allowance.spend(self.limits.rest, now);
        self.allowance.is_spent(now)
    }

    /// They had so many answers.
    pub fn answered(&mut self, answers: u32) {
        self.allowance
            .give_back(self.limits.rest * CRUMBS_PER_ANSWER.saturating_mul(answers));
    }

    /// For how long nothing is read.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.limits.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CrumbLimits = CrumbLimits {
        bytes: 100,
        most: 4,
        rest: Duration::from_millis(20),
    };

    #[test]
    fn an_allowance_saves_so_much_and_no_more() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Duration::from_secs(1), now);
        let later = now + Duration::from_secs(60);
        for _ in 0..10 {
            assert!(!allowance.is_spent(later));
            allowance.spend(Duration::from_millis(101), later);
        }
        assert!(allowance.is_spent(later));
        assert_eq!(allowance.due() - later, Duration::from_millis(10));
        allowance.give_back(Duration::from_millis(10));
        assert!(!allowance.is_spent(later));
        // What is given back to a full one is not saved on top.
        allowance.give_back(Duration::from_secs(9));
        allowance.spend(Duration::from_millis(1001), later);
        assert!(allowance.is_spent(later));
    }

    #[test]
    fn crumbs_rest_and_what_is_answered_does_not() {
        let mut now = Instant::now();
        let mut crumbs = Crumbs::new(LIMITS, now);
        let rests: Vec<bool> = (0..6).map(|_| crumbs.read(3, now)).collect();
        assert_eq!(rests, [false, false, false, false, true, true]);
        assert!(!crumbs.read(100, now), "no crumb");
        now += Duration::from_secs(1);
        let mut crumbs = Crumbs::new(LIMITS, now);
        for _ in 0..1000 {
            for _ in 0..CRUMBS_PER_ANSWER {
                assert!(!crumbs.read(60, now));
            }
            crumbs.answered(1);
        }
        // Answers to much that was no crumb are not saved either.
        for _ in 0..1000 {
            crumbs.answered(1);
        }
        let rests: Vec<bool> = (0..5).map(|_| crumbs.read(3, now)).collect();
        assert_eq!(rests, [false, false, false, false, true]);
    }
}
