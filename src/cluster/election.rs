//! Who is the primary: one pure function from what every node last said to one answer.
//!
//! The rules, each for a way in which clusters were broken:
//!
//! 1. Only nodes with the cluster's system identifier belong. It is what most nodes say once all were asked, and is fixed with
//!    the first primary.
//! 2. The primary is the node out of recovery on the highest timeline that was ever seen, on any node or in the state file. One
//!    on a lower timeline was left behind by a promotion, however healthy it looks.
//! 3. Two out of recovery on that timeline are a split brain: the one already routed to stays, the other is fenced; if neither
//!    was routed to, there is no primary.
//! 4. A claim to a timeline above the last primary's is a promotion and counts at once. Any other claim (at start, or by a node
//!    that comes back) waits until the others were asked too, because after a partition the first one to be heard may be the
//!    stale one. They get no longer than a reading's time-out.
//! 5. A primary that can't be reached keeps its standing for a few failures that prove nothing, and loses it with the first that
//!    shows that it isn't running (`NodeView::standing`). Then writes are held until somebody claims.
//! 6. While a promotion that we asked for is under way, or its outcome unknown, only a timeline above the old one counts.
//! 7. Two nodes that answer as the same run of the same server are one, under two addresses: the later in order is left out, unless it
//!    is the one that is routed to. Otherwise each primary with a second name would be a split brain.
//! 8. The epoch grows when the primary's node, timeline or server process is another one than the last primary's.

use std::time::{Duration, Instant};

use super::lsn::{Epoch, SystemIdentifier, Timeline};
use super::node::{NodeId, NodeRole};
use super::node_view::{Claim, NodeView, Standing};
use super::reading::ServerIdentity;
use super::routing_table::NoPrimary;

/// What decides besides the readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Lost connections or time-outs in a row until a primary is given up.
    pub failures_before_out: u32,
    /// A reading asked for this long before a claim still counts as an answer to it.
    pub interval: Duration,
    /// The others get no longer than this to contradict a claim.
    pub timeout: Duration,
}

/// What one election leaves to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterState {
    /// The cluster's identity. Fixed with the first primary: until then nothing was routed, so a majority may still change its
    /// mind.
    pub system_identifier: Option<SystemIdentifier>,
    /// Never falls. Known since the identity is fixed.
    pub highest_timeline: Option<Timeline>,
    /// Never falls.
    pub epoch: Epoch,
    /// The primary's term, while there is a primary.
    pub current: Option<Term>,
    /// The newest term, whether it lasts or not.
    pub last: Option<Term>,
    /// A promotion that was asked for.
    pub hold: Option<Hold>,
}

/// One server's time as the primary; an epoch has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// The node.
    pub node: NodeId,
    /// The run of its server.
    pub server: ServerIdentity,
    /// The timeline that it writes.
    pub timeline: Timeline,
}

/// Nobody is the primary but on a timeline above this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The timeline that the promotion leaves.
    pub above: Timeline,
    /// How far the promotion is.
    pub phase: HoldPhase,
}

/// How far a promotion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldPhase {
    /// Under way.
    Promoting,
    /// Given up, and it may happen yet: the old primary stays fenced.
    Uncertain,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elected {
    /// What to hand to the next election.
    pub state: ClusterState,
    /// A role for each node.
    pub roles: Vec<NodeRole>,
    /// Set exactly when there is no primary.
    pub why_no_primary: Option<NoPrimary>,
    /// Whether two nodes claim the highest timeline.
    pub split_brain: bool,
    /// The cluster's identity as of now, fixed or not.
    pub system_identifier: Option<SystemIdentifier>,
    /// The highest timeline as of now.
    pub timeline: Option<Timeline>,
    /// For each node: of which other node's server it is another address.
    pub twin_of: Vec<Option<NodeId>>,
}

/// Decides who is the primary at `now`. `nodes` is indexed by [`NodeId`].
pub fn elect(previous: &ClusterState, nodes: &[NodeView], now: Instant, settings: &Settings) -> Elected {
    let mut state = *previous;
    let system_identifier = previous.system_identifier.or_else(|| most_common_identifier(nodes));
    let mut members: Vec<Member> = nodes
        .iter()
        .map(|view| Member::of(view, system_identifier, settings))
        .collect();
    let twin_of = twins(&members, nodes, previous);
    for (member, _) in members.iter_mut().zip(&twin_of).filter(|(_, twin)| twin.is_some()) {
        *member = Member::Twin;
    }
    let timeline = members
        .iter()
        .filter_map(Member::proven_timeline)
        .max()
        .max(previous.highest_timeline);

    let claimants = claimants(&members, timeline, previous.hold);
    let choice = choose(&claimants, previous);
    let (current, why_no_primary) = match choice {
        Choice::Keep(term) => (Some(term), None),
        Choice::New(node, claim) if counts(node, claim, previous, nodes, now, settings) => {
            (Some(term(node, claim)), None)
        }
        Choice::New(node, _) => (None, Some(NoPrimary::Confirming(node))),
        Choice::Neither => (None, Some(NoPrimary::SplitBrain)),
        Choice::Nobody => (None, Some(why_nobody(&members, previous))),
    };
    state.current = current;
    if let Some(term) = current {
        if previous.last != Some(term) {
            state.epoch = previous.epoch.next();
        }
        state.last = current;
        state.hold = None;
    }
    if current.is_some() || previous.system_identifier.is_some() {
        state.system_identifier = system_identifier;
        state.highest_timeline = timeline;
    }
    let confirming = match why_no_primary {
        Some(NoPrimary::Confirming(node)) => Some(node),
        Some(_) | None => None,
    };
    let roles = (0..)
        .map(NodeId)
        .zip(&members)
        .map(|(id, member)| member.role(id, current, confirming))
        .collect();
    let split_brain = claimants.len() > 1;
    Elected {
        state,
        roles,
        why_no_primary,
        split_brain,
        system_identifier,
        timeline,
        twin_of,
    }
}

/// A node as a member of the cluster, or not.
enum Member {
    Foreign,
    /// Another address of a member's server.
    Twin,
    Ours {
        standing: Standing,
        timeline: Option<Timeline>,
    },
}

impl Member {
    fn of(view: &NodeView, cluster: Option<SystemIdentifier>, settings: &Settings) -> Member {
        let standing = view.standing(settings.failures_before_out);
        match (standing, view.system_identifier(), cluster) {
            (Standing::Recovering | Standing::Claiming(_), Some(theirs), Some(ours)) if theirs != ours => {
                Member::Foreign
            }
            // Before the cluster's own identity is known nobody can be told apart, so nobody leads.
            (Standing::Claiming(_) | Standing::Recovering, _, None) => Member::Ours {
                standing: Standing::Unasked,
                timeline: None,
            },
            (standing, theirs, ours) => Member::Ours {
                standing,
                timeline: view.timeline().filter(|_| theirs == ours),
            },
        }
    }

    fn standing(&self) -> Option<Standing> {
        match self {
            Member::Ours { standing, .. } => Some(*standing),
            Member::Foreign | Member::Twin => None,
        }
    }

    fn claim(&self) -> Option<Claim> {
        match self.standing()? {
            Standing::Claiming(claim) => Some(claim),
            Standing::Unasked | Standing::Out | Standing::Departed | Standing::Recovering => None,
        }
    }

    /// A timeline that some server of this cluster certainly writes or has written: also one that a standby has followed.
    fn proven_timeline(&self) -> Option<Timeline> {
        match self {
            Member::Ours { timeline, .. } => *timeline,
            Member::Foreign | Member::Twin => None,
        }
    }

    fn role(&self, id: NodeId, current: Option<Term>, confirming: Option<NodeId>) -> NodeRole {
        match self {
            Member::Foreign => NodeRole::Foreign,
            Member::Twin => NodeRole::Unknown,
            Member::Ours { standing, .. } => match standing {
                Standing::Unasked => NodeRole::Unknown,
                Standing::Out => NodeRole::Unreachable,
                Standing::Departed => NodeRole::Departed,
                Standing::Recovering => NodeRole::Standby,
                Standing::Claiming(_) if current.is_some_and(|term| term.node == id) => NodeRole::Primary,
                Standing::Claiming(_) if confirming == Some(id) => NodeRole::Unknown,
                Standing::Claiming(_) => NodeRole::StalePrimary,
            },
        }
    }
}

/// For each member that was reached: of which other one's server it is another address. That one is the primary's or, of those that are
/// as good as each other, the first.
fn twins(members: &[Member], nodes: &[NodeView], previous: &ClusterState) -> Vec<Option<NodeId>> {
    let identity = |node: NodeId| {
        let standing = members.get(node.index())?.standing()?;
        let answer = &nodes.get(node.index())?.answered()?.answer;
        matches!(standing, Standing::Recovering | Standing::Claiming(_))
            .then_some((answer.system_identifier, answer.server))
    };
    let routed_to = previous.current.or(previous.last).map(|term| term.node);
    let ids = (0..nodes.len() as u16).map(NodeId);
    let stands_for = |server| {
        let mut same = routed_to.into_iter().chain(ids.clone());
        same.find(|node| identity(*node) == Some(server))
    };
    ids.clone()
        .map(|node| stands_for(identity(node)?).filter(|first| *first != node))
        .collect()
}

/// Those who claim the highest timeline, as far as a hold lets them.
fn claimants(members: &[Member], highest: Option<Timeline>, hold: Option<Hold>) -> Vec<(NodeId, Claim)> {
    let allowed =
        |claim: &Claim| Some(claim.timeline) == highest && hold.is_none_or(|hold| claim.timeline > hold.above);
    let claims = (0..)
        .map(NodeId)
        .zip(members)
        .filter_map(|(id, member)| Some((id, member.claim()?)));
    claims.filter(|(_, claim)| allowed(claim)).collect()
}

enum Choice {
    /// The term that lasts.
    Keep(Term),
    /// This one, if it counts already.
    New(NodeId, Claim),
    /// Several, none of them known.
    Neither,
    Nobody,
}

fn choose(claimants: &[(NodeId, Claim)], previous: &ClusterState) -> Choice {
    if let Some(term) = previous.current
        && claimants.iter().any(|(node, claim)| self::term(*node, *claim) == term)
    {
        return Choice::Keep(term);
    }
    // A restart in between doesn't make a stranger of the one last routed to.
    let was_last = |node: NodeId, claim: Claim| {
        previous
            .last
            .is_some_and(|last| (last.node, last.timeline) == (node, claim.timeline))
    };
    match claimants {
        [] => Choice::Nobody,
        [(node, claim)] => Choice::New(*node, *claim),
        [..] => match claimants.iter().find(|(node, claim)| was_last(*node, *claim)) {
            Some((node, claim)) => Choice::New(*node, *claim),
            None => Choice::Neither,
        },
    }
}

fn term(node: NodeId, claim: Claim) -> Term {
    Term {
        node,
        server: claim.server,
        timeline: claim.timeline,
    }
}

/// Whether a claim counts already (rule 4).
fn counts(
    claimant: NodeId,
    claim: Claim,
    previous: &ClusterState,
    nodes: &[NodeView],
    now: Instant,
    settings: &Settings,
) -> bool {
    if previous.last.is_some_and(|last| claim.timeline > last.timeline) {
        return true;
    }
    let had_their_say = |view: &NodeView| {
        let in_time = |asked_at: Instant| asked_at + settings.interval >= claim.since;
        view.has_departed() || view.asked_at().is_some_and(in_time)
    };
    let others = nodes.iter().enumerate().filter(|(index, _)| *index != claimant.index());
    others.map(|(_, view)| view).all(had_their_say) || now.saturating_duration_since(claim.since) >= settings.timeout
}

fn why_nobody(members: &[Member], previous: &ClusterState) -> NoPrimary {
    let any = |standing: Standing| members.iter().any(|member| member.standing() == Some(standing));
    let is_out = |node: NodeId| members.get(node.index()).and_then(Member::standing) == Some(Standing::Out);
    match (previous.hold.map(|hold| hold.phase), previous.last) {
        (Some(HoldPhase::Promoting), _) => NoPrimary::Promoting,
        (Some(HoldPhase::Uncertain), _) => NoPrimary::PromotionUncertain,
        (None, _) if members.iter().any(|member| member.claim().is_some()) => NoPrimary::OnlyStale,
        (None, _) if members.is_empty() || any(Standing::Unasked) => NoPrimary::Starting,
        (None, Some(last)) if is_out(last.node) => NoPrimary::Unreachable(last.node),
        (None, _) if any(Standing::Recovering) => NoPrimary::NoneOutOfRecovery,
        (None, _) if members.iter().any(|member| matches!(member, Member::Foreign)) => NoPrimary::OnlyForeign,
        (None, _) => NoPrimary::NoneReachable,
    }
}

/// What most of the nodes that answered say, the first of them where there are as many; `None` until all were asked.
fn most_common_identifier(nodes: &[NodeView]) -> Option<SystemIdentifier> {
    let unasked = |view: &NodeView| view.asked_at().is_none() && !view.has_departed();
    if nodes.iter().any(unasked) {
        return None;
    }
    let said: Vec<SystemIdentifier> = nodes.iter().filter_map(NodeView::system_identifier).collect();
    let votes = |candidate: &SystemIdentifier| said.iter().filter(|other| *other == candidate).count();
    let most = said.iter().map(votes).max()?;
    said.iter().find(|candidate| votes(candidate) == most).copied()
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
