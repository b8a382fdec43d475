//! A token bucket: so many at once, so many a second in the long run; and one for each of many names.
//!
//! Used by `server::wanted` (a proxy's messages), `server::session` (log lines about refused callers) and `server::registry`
//! (streams of a pod).

use std::collections::HashMap;
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

    fn is_full(&mut self, now: Instant) -> bool {
        self.ready_at(now);
        self.tokens >= self.burst
    }
}

/// Names kept before it is looked for those that can be forgotten.
const FEW: usize = 1024;

/// A budget for each name. A full budget is the same as none, and is forgotten: only names that spent something lately are kept.
#[derive(Debug)]
pub struct Budgets {
    per_second: u32,
    burst: u32,
    each: HashMap<String, Budget>,
    look_at: usize,
}

impl Budgets {
    /// All full.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Budgets { per_second, burst, each: HashMap::new(), look_at: FEW }
    }

    /// Spends one of `name`'s, if one is there.
    pub fn try_spend(&mut self, name: &str, now: Instant) -> bool {
        if self.each.len() >= self.look_at {
            self.each.retain(|_, budget| !budget.is_full(now));
            self.look_at = (2 * self.each.len()).max(FEW);
        }
        let fresh = || Budget::new(self.per_second, self.burst, now);
        self.each.entry(name.to_owned()).or_insert_with(fresh).try_spend(now)
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

    #[tokio::test(start_paused = true)]
    async fn each_name_has_its_own_budget_and_the_idle_are_forgotten() {
        let mut budgets = Budgets::new(1, 2);
        let mut spend = |name: &str| budgets.try_spend(name, Instant::now());
        assert_eq!((0..10).filter(|_| spend("a")).count(), 2);
        assert!(spend("b"));
        tokio::time::advance(Duration::from_secs(2)).await;
        for n in 0..FEW {
            assert!(budgets.try_spend(&n.to_string(), Instant::now()));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(budgets.try_spend("last", Instant::now()));
        assert!(budgets.each.len() <= FEW + 1, "{}", budgets.each.len());
        assert!(!budgets.each.contains_key("a"), "idle for long");
    }
}
