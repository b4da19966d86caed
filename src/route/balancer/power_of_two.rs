//! Power of two choices: look at two nodes at random and take the cheaper (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001). Nearly as good as looking at all, without the herd that follows the one that looked best a moment ago.

use super::Candidate;

/// One choice in this many is left to chance alone.
const EXPLORE: u64 = 8;
/// A node is clearly cheaper below this share of another's cost. One statement in flight against none is.
const CLEARLY: f64 = 0.6;

/// The chosen one; `None` without candidates. `dice` is 64 random bits.
///
/// Of two that cost nearly the same either may be taken, so that an idle cluster's reads spread over its nodes.
pub fn power_of_two(candidates: &[Candidate], dice: u64) -> Option<&Candidate> {
    let count = candidates.len() as u64;
    let first = candidates.get((dice % count.max(1)) as usize)?;
    if count == 1 {
        return Some(first);
    }
    let step = 1 + (dice >> 20) % (count - 1);
    let second = &candidates[((dice % count + step) % count) as usize];
    // Now and then the dearer one gets its turn: only a statement can show that a node which looked slow has recovered.
    let explore = (dice >> 40).is_multiple_of(EXPLORE);
    // A node is passed over when it is clearly dearer; between equals the dice has chosen already.
    let pass_over = !explore && second.cost() < first.cost() * CLEARLY;
    Some(if pass_over { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Load;
    use super::*;
    use crate::cluster::NodeId;

    fn candidate(index: usize, in_flight: u32, latency_us: u64) -> Candidate {
        let load = Load {
            in_flight,
            latency: Duration::from_micros(latency_us),
        };
        Candidate {
            node: NodeId(index as u16),
            load,
            lag_share: 0.0,
            weight: 1,
        }
    }

    fn shares(candidates: &[Candidate]) -> Vec<usize> {
        let mut shares = vec![0; candidates.len()];
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..10_000 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            shares[power_of_two(candidates, dice).unwrap().node.index()] += 1;
        }
        shares
    }

    #[test]
    fn equals_share_equally() {
        for share in shares(&[candidate(0, 0, 100), candidate(1, 0, 105), candidate(2, 0, 95)]) {
            assert!((2800..3900).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_slow_node_gets_little() {
        let shares = shares(&[candidate(0, 0, 100), candidate(1, 0, 100), candidate(2, 0, 1000)]);
        assert!((250..600).contains(&shares[2]), "{}", shares[2]);
    }

    #[test]
    fn one_candidate_is_taken_and_none_is_none() {
        assert_eq!(power_of_two(&[candidate(0, 9, 9)], 77).unwrap().node.index(), 0);
        assert!(power_of_two(&[], 77).is_none());
    }
}
