//! Where a statement goes. Pure: a want, what the session needs to see and one snapshot of the routing table go in, a [`Route`] with its
//! reason comes out.
//!
//! [`decide`](decide::decide) filters hard first (role, health, freshness), [`balancer`] then chooses among the nodes that are left,
//! [`consistency`] says what is fresh enough.

pub mod balancer;
pub mod consistency;
pub mod decide;
pub mod reason;

pub use decide::{Decision, Route, Target, Want, age_limit, decide, usable_lag};
pub use reason::RouteReason;
