//! A token bucket: so many at once, so many a second in the long run.
//!
//! Used by `server::wanted` (a proxy's messages) and `server::session` (log lines about refused callers).

use std::time::Duration;

use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Budget {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// A full one.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Budget { rate: per_second.into(), burst: burst.into(), tokens: burst.into(), at: now }
    }

    /// From when on one may be spent.
    pub fn ready_at(&mut self, now: Instant) -> Instant {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        (self.tokens, self.at) = ((self.tokens + earned).min(self.burst), now);
        match self.tokens >= 1.0 {
            true => now,
            false => now + Duration::from_secs_f64((1.0 - self.tokens) / self.rate),
        }
    }

    /// One is spent.
    pub fn spend(&mut self) {
        self.tokens -= 1.0;
    }

    /// Spends one, if one is there.
    pub fn try_spend(&mut self, now: Instant) -> bool {
        let ready = self.ready_at(now) <= now;
        if ready {
            self.spend();
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_allows_its_burst_and_then_its_rate() {
        let mut budget = Budget::new(10, 3, Instant::now());
        let spent = |budget: &mut Budget| (0..100).filter(|_| budget.try_spend(Instant::now())).count();
        assert_eq!(spent(&mut budget), 3);
        tokio::time::advance(Duration::from_millis(201)).await;
        assert_eq!(spent(&mut budget), 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(spent(&mut budget), 3, "nothing is saved up beyond the burst");
    }
}
