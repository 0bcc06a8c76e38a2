//! A node's content, apart from where it is.

use egress_common::trie::{CHILDREN, Meaning, Node, ROOT_BITS, STRIDE, Word};

use super::{Place, Prefix, Store};

/// What is where prefixes branch: the children, and classes and one of prefixes that end there, 0 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) children: [Word; CHILDREN as usize],
    pub(super) ends: [u32; CHILDREN as usize],
}

/// Where in a node a prefix is: among its children or its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Child(usize),
    End(usize),
}

impl Part {
    /// Of a prefix in the node that so many bits lead to.
    #[expect(clippy::cast_possible_truncation, reason = "up to four bits")]
    pub(super) const fn of(prefix: &Prefix, depth: u32) -> Self {
        let rest = prefix.length() - depth;
        if rest < STRIDE {
            Self::End(1 << rest | prefix.slice(depth, rest) as usize)
        } else {
            Self::Child(prefix.slice(depth, STRIDE) as usize)
        }
    }
}

impl Branch {
    /// What a node in a store says.
    pub(super) fn load(store: &impl Store, node: &Node) -> Self {
        let mut branch = Self::default();
        let mut unit = node.unit;
        for (number, child) in branch.children.iter_mut().enumerate() {
            if node.children >> number & 1 != 0 {
                *child = Word(store.word(Place::Unit(unit)));
                unit += 1;
            }
        }
        let mut half = 0;
        for (number, end) in branch.ends.iter_mut().enumerate() {
            if node.ends >> number & 1 != 0 {
                let pair = store.word(Place::Unit(unit + half / 2));
                *end = lower(pair >> (32 * (half % 2)));
                half += 1;
            }
        }
        branch
    }

    /// Writes it to its block, whose unit nobody reads yet, or which differs in what it says and not in what there is.
    pub(super) fn write(&self, store: &mut impl Store, node: &Node) {
        let children = self.children.iter().filter(|child| **child != Word::EMPTY);
        let mut words: Vec<u64> = children.map(|child| child.0).collect();
        let ends: Vec<u64> = self
            .ends
            .iter()
            .filter(|end| **end != 0)
            .map(|end| u64::from(*end))
            .collect();
        words.extend(
            ends.chunks(2)
                .map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 32),
        );
        for (unit, word) in (node.unit..).zip(words) {
            let place = Place::Unit(unit);
            if store.word(place) != word {
                store.set_word(place, word);
            }
        }
    }

    /// The node that says it, in a block that starts there.
    pub(super) fn node(&self, unit: u32) -> Node {
        let (mut children, mut ends) = (0, 0);
        for number in 0..CHILDREN as usize {
            children |= u16::from(self.children[number] != Word::EMPTY) << number;
            ends |= u16::from(self.ends[number] != 0) << number;
        }
        Node {
            children,
            ends,
            unit,
        }
    }

    /// The only thing in it, if it is one.
    pub(super) fn only(&self) -> Option<Part> {
        let children = (0..)
            .zip(&self.children)
            .filter(|(_, child)| **child != Word::EMPTY);
        let ends = (0..).zip(&self.ends).filter(|(_, end)| **end != 0);
        let mut parts = children
            .map(|(number, _)| Part::Child(number))
            .chain(ends.map(|(number, _)| Part::End(number)));
        let first = parts.next()?;
        parts.next().is_none().then_some(first)
    }
}

/// How many bits lead to the node that this many bits lie in.
pub(super) const fn floor(bits: u32) -> u32 {
    ROOT_BITS + (bits - ROOT_BITS) / STRIDE * STRIDE
}

/// The prefix that ends in the node that a path leads to.
pub(super) const fn end(path: &Prefix, number: usize) -> Prefix {
    let length = number.ilog2();
    path.and((number as u64) & !(1 << length), length)
}

/// A node's word.
pub(super) const fn word(node: Node) -> Word {
    Word::new(Meaning::Node(node))
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
pub(super) const fn lower(pair: u64) -> u32 {
    pair as u32
}
