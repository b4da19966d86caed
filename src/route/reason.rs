//! Why a statement went where it went: a closed set, which is the label of `pgsluice_routing_decisions_total`.

/// The reason of one routing decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteReason {
    /// It may write, or its class keeps it from standbys; the class has the details.
    NeedsPrimary,
    /// It may read anywhere, and a standby was fit.
    Read,
    /// A comment in the statement asked for a standby.
    HintStandby,
    /// A comment in the statement asked for the primary.
    HintPrimary,
    /// A read, but no standby is up and within `max_lag`.
    NoStandby,
    /// A read, but no standby is known to have the session's last write.
    NotFreshEnough,
    /// A read that the primary took as one more node.
    PrimaryAlso,
    /// `linearizable`: only the primary is certain to have everything.
    Linearizable,
    /// `session` where commits wait for standbys: a standby may be ahead of the primary.
    Synchronous,
    /// A read by its text, but a standby has refused the same before.
    RefusedBefore,
    /// A read that could go to a standby, if `[routing] mode` weren't `observe`.
    Observed,
    /// A standby refused it, or failed, and the primary runs it again.
    Retried,
    /// It signals another session, which works there.
    Signal,
    /// The session holds a connection: an open transaction block, or state that can't be moved.
    Attached,
}

impl RouteReason {
    /// Every reason.
    pub const ALL: [RouteReason; 14] = [
        RouteReason::NeedsPrimary,
        RouteReason::Read,
        RouteReason::HintStandby,
        RouteReason::HintPrimary,
        RouteReason::NoStandby,
        RouteReason::NotFreshEnough,
        RouteReason::PrimaryAlso,
        RouteReason::Linearizable,
        RouteReason::Synchronous,
        RouteReason::RefusedBefore,
        RouteReason::Observed,
        RouteReason::Retried,
        RouteReason::Signal,
        RouteReason::Attached,
    ];

    /// As a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            RouteReason::NeedsPrimary => "needs_primary",
            RouteReason::Read => "read",
            RouteReason::HintStandby => "hint_standby",
            RouteReason::HintPrimary => "hint_primary",
            RouteReason::NoStandby => "no_standby",
            RouteReason::NotFreshEnough => "not_fresh_enough",
            RouteReason::PrimaryAlso => "primary_also",
            RouteReason::Linearizable => "linearizable",
            RouteReason::Synchronous => "synchronous",
            RouteReason::RefusedBefore => "refused_before",
            RouteReason::Observed => "observed",
            RouteReason::Retried => "retried",
            RouteReason::Signal => "signal",
            RouteReason::Attached => "attached",
        }
    }
}
