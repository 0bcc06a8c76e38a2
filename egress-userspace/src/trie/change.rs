//! One change of many prefixes, from below upwards: each word is made of those below it, and one store publishes it.

use egress_common::trie::{
    LEAF_BITS, Leaf, Meaning, Node, Path, RECORD_BITS, RECORD_UNITS, STRIDE, Word,
};

use super::{
    Place, Prefix, Store, Trie,
    branch::{self, Branch, Part, floor},
    lines,
    room::Room,
};

/// A prefix, and its class, or none if it goes.
pub(super) type Change = (Prefix, Option<u32>);

/// What a word leads to, whatever records are between.
pub(super) enum Below {
    Nothing,
    /// A prefix alone.
    Leaf(Prefix, u32),
    /// A node, and the bits that lead to it.
    Node(Prefix, Node),
}

/// The records that a word leads to first: two at most.
type Records = [Option<u32>; 2];

impl<S: Store> Trie<S> {
    /// The word of a place that `path` leads to, once what is below it is changed: prefixes in order, which lie there, and
    /// of those that go no others than there are. What changes only further down is changed when this returns.
    pub(super) fn changed(
        &mut self,
        room: &mut Room,
        word: Word,
        path: &Prefix,
        changes: &[Change],
    ) -> Word {
        let (below, records) = self.below(path, word);
        let after = match below {
            Below::Nothing => {
                let all: Vec<Change> = present(changes).collect();
                self.built(room, path, &all)
            }
            Below::Leaf(other, class) => {
                let stays = changes
                    .binary_search_by_key(&other, |(prefix, _)| *prefix)
                    .is_err();
                let mut all: Vec<Change> = present(changes).collect();
                if stays {
                    all.push((other, Some(class)));
                    all.sort_unstable();
                }
                if all == [(other, Some(class))] {
                    return word;
                }
                self.built(room, path, &all)
            }
            Below::Node(there, node) => {
                let common = changes
                    .iter()
                    .map(|(prefix, _)| prefix.common(&there))
                    .min();
                let common = common.unwrap_or(there.length());
                if common < there.length() {
                    self.branched(room, path, (&there, node), floor(common), changes)
                } else {
                    match self.changed_node(room, &there, &node, changes) {
                        None => return word,
                        Some(Below::Node(still, node)) if still == there => {
                            let new = branch::word(node);
                            let Some(last) = records.iter().flatten().next_back() else {
                                return new;
                            };
                            self.store.set_word(Place::Unit(last + 1), new.0);
                            return word;
                        }
                        Some(below) => self.led(room, path, &below),
                    }
                }
            }
        };
        retire_records(room, records);
        after
    }

    /// The word of a place with nothing else below it than these prefixes.
    pub(super) fn built(&mut self, room: &mut Room, path: &Prefix, all: &[Change]) -> Word {
        let below = match all {
            [] => Below::Nothing,
            [(prefix, class)] => class.map_or(Below::Nothing, |class| Below::Leaf(*prefix, class)),
            [(first, _), .., (last, _)] => {
                let there = first.first(floor(first.common(last)));
                self.filled(room, there, Branch::default(), all)
            }
        };
        self.led(room, path, &below)
    }

    /// The same where prefixes branch off before the node that is there.
    fn branched(
        &mut self,
        room: &mut Room,
        path: &Prefix,
        (other, node): (&Prefix, Node),
        depth: u32,
        changes: &[Change],
    ) -> Word {
        let there = other.first(depth);
        let mut branch = Branch::default();
        if let Part::Child(number) = Part::of(other, depth) {
            let way = other.first(depth + STRIDE);
            branch.children[number] = self.led(room, &way, &Below::Node(*other, node));
        }
        let below = self.filled(room, there, branch, changes);
        self.led(room, path, &below)
    }

    /// A new node, of what there is and these changes.
    fn filled(
        &mut self,
        room: &mut Room,
        there: Prefix,
        mut branch: Branch,
        changes: &[Change],
    ) -> Below {
        self.change_parts(room, &there, &mut branch, changes);
        let units = branch.node(0).units();
        let node = branch.node(room.take(units));
        branch.write(&mut self.store, &node);
        Below::Node(there, node)
    }

    /// What is in a node's place after changes below it; none if its word stays as it is.
    fn changed_node(
        &mut self,
        room: &mut Room,
        there: &Prefix,
        node: &Node,
        changes: &[Change],
    ) -> Option<Below> {
        let before = Branch::load(&self.store, node);
        let mut after = before.clone();
        self.change_parts(room, there, &mut after, changes);
        let same = after.node(node.unit);
        if same == *node {
            after.write(&mut self.store, node);
            return None;
        }
        room.retire(node.unit, node.units());
        Some(match after.only() {
            Some(Part::End(number)) => {
                Below::Leaf(branch::end(there, number), after.ends[number] - 1)
            }
            Some(Part::Child(number)) => {
                let way = there.and(number as u64, STRIDE);
                let (below, records) = self.below(&way, after.children[number]);
                retire_records(room, records);
                below
            }
            None if same.units() == 0 => Below::Nothing,
            None => {
                let node = after.node(room.take(same.units()));
                after.write(&mut self.store, &node);
                Below::Node(*there, node)
            }
        })
    }

    fn change_parts(
        &mut self,
        room: &mut Room,
        there: &Prefix,
        branch: &mut Branch,
        changes: &[Change],
    ) {
        let part = |(prefix, _): &Change| Part::of(prefix, there.length());
        for group in changes.chunk_by(|a, b| part(a) == part(b)) {
            match part(&group[0]) {
                Part::End(number) => branch.ends[number] = group[0].1.map_or(0, |class| class + 1),
                Part::Child(number) => {
                    let way = there.and(number as u64, STRIDE);
                    let child = branch.children[number];
                    branch.children[number] = self.changed(room, child, &way, group);
                }
            }
        }
    }

    /// The word of a place that `path` leads to, if this is all that is below it.
    fn led(&mut self, room: &mut Room, path: &Prefix, below: &Below) -> Word {
        let (end, most, word) = match *below {
            Below::Nothing => return Word::EMPTY,
            Below::Leaf(prefix, class) => (prefix, LEAF_BITS, Err(class)),
            Below::Node(there, node) => (there, 0, Ok(branch::word(node))),
        };
        let rest = end.length() - path.length();
        if rest <= most {
            return word.unwrap_or_else(|class| {
                Word::new(Meaning::Leaf(Leaf {
                    bits: left_aligned(&end, path.length(), rest),
                    length: rest,
                    told: class + 1,
                }))
            });
        }
        let length = rest.min(RECORD_BITS);
        let inner = self.led(room, &end.first(path.length() + length), below);
        let unit = room.take(RECORD_UNITS);
        let bits = left_aligned(&end, path.length(), length);
        self.store
            .set_word(Place::Unit(unit), Path::new(bits, length).0);
        self.store.set_word(Place::Unit(unit + 1), inner.0);
        Word::new(Meaning::Record(unit))
    }

    /// What a word leads to, past its records; `path` leads to the word.
    fn below(&self, path: &Prefix, mut word: Word) -> (Below, Records) {
        let mut path = *path;
        let mut records = Records::default();
        for record in &mut records {
            let Meaning::Record(unit) = word.meaning() else {
                break;
            };
            *record = Some(unit);
            let bits = Path(self.store.word(Place::Unit(unit)));
            path = path.and(bits.bits() >> (64 - bits.length()), bits.length());
            word = Word(self.store.word(Place::Unit(unit + 1)));
        }
        let below = match word.meaning() {
            Meaning::Leaf(leaf) => Below::Leaf(leaf_prefix(&path, &leaf), leaf.told - 1),
            Meaning::Node(node) => Below::Node(path, node),
            // Lines are below a root, whose changes do not come here.
            Meaning::Nothing | Meaning::Record(_) | Meaning::Lines(_) => Below::Nothing,
        };
        (below, records)
    }

    /// Nothing leads to all that is below a place any more.
    pub(super) fn retire(&self, room: &mut Room, word: Word, path: &Prefix) {
        if let Meaning::Lines(lines) = word.meaning() {
            room.retire(lines.unit, lines::units(&self.store, &lines));
            return;
        }
        let (below, records) = self.below(path, word);
        retire_records(room, records);
        if let Below::Node(there, node) = below {
            let children = Branch::load(&self.store, &node).children;
            for (number, child) in (0..).zip(children) {
                self.retire(room, child, &there.and(number, STRIDE));
            }
            room.retire(node.unit, node.units());
        }
    }
}

/// Without prefixes that go.
fn present(changes: &[Change]) -> impl Iterator<Item = Change> {
    changes.iter().copied().filter(|(_, class)| class.is_some())
}

fn retire_records(room: &mut Room, records: Records) {
    for unit in records.into_iter().flatten() {
        room.retire(unit, RECORD_UNITS);
    }
}

/// The prefix of a leaf that a path leads to.
pub(super) const fn leaf_prefix(path: &Prefix, leaf: &Leaf) -> Prefix {
    // In two steps, for a leaf may have no bits.
    path.and(leaf.bits >> 1 >> (63 - leaf.length), leaf.length)
}

const fn left_aligned(prefix: &Prefix, from: u32, length: u32) -> u64 {
    match length {
        0 => 0,
        length => prefix.slice(from, length) << (64 - length),
    }
}
