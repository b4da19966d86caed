//! Choosing among nodes that are all fit. One file an algorithm.

mod power_of_two;

pub use power_of_two::power_of_two;

use std::time::Duration;

use crate::cluster::NodeId;

/// How busy a node is, as the proxy knows it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Statements that run on it now.
    pub in_flight: u32,
    /// Peak-sensitive moving average of the time to the first byte of an answer; zero while unknown.
    pub latency: Duration,
}

/// A node that may take the statement.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// How busy it is.
    pub load: Load,
    /// Its lag as a share of `max_lag`, 0 for the primary.
    pub lag_share: f64,
    /// Its configured weight, above 0.
    pub weight: u32,
}

impl Candidate {
    /// What it would cost to send one more statement there: the expected wait, scaled by lag and weight. Lower is better.
    pub fn cost(&self) -> f64 {
        let latency = self.load.latency.as_secs_f64().max(50e-6);
        f64::from(self.load.in_flight + 1) * latency * (1.0 + self.lag_share) / f64::from(self.weight)
    }
}
