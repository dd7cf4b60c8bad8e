//! The network: what happens to a message between two nodes.

use crate::queue::Ms;
use argosy_common::rng::{Draws, Purpose};

/// Anything with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// A coordinator candidate.
    Coordinator(usize),
    /// A worker process, counted from the start of the world.
    Process(usize),
    /// The metadata store.
    Store,
}

/// What a link does to its messages while a fault holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ail {
    /// Everything takes so much longer.
    Delay(Ms),
    /// Every other packet is lost; streams send again, more slowly each time.
    Loss,
    /// Messages come twice, the second time later.
    Duplicate,
    /// Messages overtake each other.
    Reorder,
    /// Nothing comes through.
    Cut,
}

/// One ailing direction of one link, or of all links of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ailment {
    pub(crate) fault: usize,
    pub(crate) ail: Ail,
    pub(crate) from: Option<Node>,
    pub(crate) to: Option<Node>,
    pub(crate) until: Ms,
}

/// What becomes of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// It takes so long.
    pub(crate) delay: Ms,
    /// It comes a second time, so much later than the first.
    pub(crate) again: Option<Ms>,
    /// It keeps no order with others of its stream.
    pub(crate) overtakes: bool,
    /// It does not come before this.
    pub(crate) cut_until: Option<Ms>,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    draws: Draws,
    ailments: Vec<Ailment>,
    base: Ms,
}

/// A lost packet is sent again after this, doubled each time.
const RESEND_MS: Ms = 100;
/// So many losses in a row are the most that a message meets.
const LOSSES_MAX: u32 = 4;

impl Net {
    pub(crate) fn new(seed: u64, base: Ms) -> Self {
        Self {
            draws: Draws::new(seed, Purpose::Jitter, 0x6e65, 0),
            ailments: Vec::new(),
            base,
        }
    }

    pub(crate) fn ail(&mut self, ailment: Ailment) {
        self.ailments.push(ailment);
    }

    pub(crate) fn heal(&mut self, now: Ms) {
        self.ailments.retain(|a| a.until > now);
    }

    /// What becomes of a message sent now, and which faults had a hand in it.
    pub(crate) fn carry(&mut self, from: Node, to: Node, now: Ms, touched: &mut Vec<usize>) -> Fate {
        let mut fate = Fate {
            delay: self.base + self.draws.below(3),
            ..Fate::default()
        };
        let Self { draws, ailments, .. } = self;
        let here = |a: &&Ailment| a.until > now && a.from.is_none_or(|n| n == from) && a.to.is_none_or(|n| n == to);
        for ailment in ailments.iter().filter(here) {
            let before = fate.clone();
            match ailment.ail {
                Ail::Delay(extra) => fate.delay += extra + draws.below(extra + 1),
                Ail::Loss => {
                    let lost = (0..LOSSES_MAX).take_while(|_| draws.below(2) == 0).count() as u32;
                    fate.delay += RESEND_MS * ((1 << lost) - 1);
                }
                Ail::Duplicate => fate.again = (draws.below(2) == 0).then(|| draws.below(200)),
                Ail::Reorder => {
                    fate.overtakes = true;
                    fate.delay += draws.below(200);
                }
                Ail::Cut => fate.cut_until = fate.cut_until.max(Some(ailment.until)),
            }
            if fate != before {
                touched.push(ailment.fault);
            }
        }
        fate
    }

    /// Whether anything comes through from `from` to `to`.
    pub(crate) fn is_cut(&self, from: Node, to: Node, now: Ms) -> bool {
        self.ailments.iter().any(|a| {
            a.ail == Ail::Cut && a.until > now && a.from.is_none_or(|n| n == from) && a.to.is_none_or(|n| n == to)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_with_a_one_way_cut_lets_the_other_way_through() {
        let mut net = Net::new(1, 1);
        let (a, b) = (Node::Coordinator(0), Node::Process(3));
        net.ail(Ailment {
            fault: 7,
            ail: Ail::Cut,
            from: Some(a),
            to: Some(b),
            until: 50,
        });
        let mut touched = Vec::new();
        assert_eq!(net.carry(a, b, 0, &mut touched).cut_until, Some(50));
        assert_eq!(touched, vec![7]);
        assert_eq!(net.carry(b, a, 0, &mut touched).cut_until, None);
        assert_eq!(net.carry(a, b, 50, &mut touched).cut_until, None, "it is over");
        net.heal(50);
        assert!(net.ailments.is_empty());
    }
}
