//! What is in a store is compared with the list before the first change: a crash may have left a change half done.

use std::collections::BTreeMap;

use egress_common::{
    Family,
    trie::{
        Meaning, Path, RECORD_BITS, RECORD_UNITS, ROOT_BITS, ROOTS, SEGMENT_UNITS, STRIDE, Word,
        lines::{LINE_UNITS, Lines, MOST_BITS},
    },
};

use super::{
    Known, Place, Prefix, Store, Trie,
    branch::{self, Branch},
    change::{Change, leaf_prefix},
    lines::{self, Plan},
    room::{Need, Room, alignment, rounded},
    roots,
};

impl<S: Store> Trie<S> {
    /// Makes sure that the trie says what its list of prefixes says.
    ///
    /// # Errors
    /// The store could not grow: it is tried again at the next change.
    pub fn mend(&mut self) -> Result<(), S::Error> {
        self.known = Some(self.known()?);
        Ok(())
    }

    pub(super) fn known(&mut self) -> Result<Known, S::Error> {
        if let Some(known) = self.known.take() {
            return Ok(known);
        }
        let mut classes = BTreeMap::new();
        // Of a prefix that was on its way from one class to another, the other one.
        let mut second = Vec::new();
        for class in 0..self.store.classes() {
            if let Some(prefix) = self.store.class(class)
                && *classes.entry(prefix).or_insert(class) != class
            {
                second.push(class);
            }
        }
        let room = self.mended(&classes)?;
        for class in second {
            self.store.clear_class(class)?;
        }
        Ok(Known { classes, room })
    }

    /// Goes through all that the roots lead to, and makes anew what is below those where it is not what the list says.
    fn mended(&mut self, classes: &BTreeMap<Prefix, u32>) -> Result<Room, S::Error> {
        let (covers, longer): (Vec<Change>, Vec<Change>) = classes
            .iter()
            .map(|(prefix, class)| (*prefix, Some(*class)))
            .partition(|(prefix, _)| prefix.length() <= ROOT_BITS);
        let mut seen = Seen::new(self.store.segments());
        let mut used = Vec::new();
        let mut stale = Vec::new();
        let mut wrong = Vec::new();
        let mut rest = &longer[..];
        for root in 0..ROOTS {
            let here = rest.partition_point(|(prefix, _)| prefix.root() == root);
            let (wanted, others) = rest.split_at(here);
            rest = others;
            seen.found.clear();
            seen.used.clear();
            let sound = self.walk(&mut seen, self.below_root(root), Prefix::of_root(root), 0);
            seen.found.sort_unstable();
            used.extend(&seen.used);
            if !sound || seen.found != wanted {
                stale.extend(&seen.used);
                wrong.push((root, wanted));
            }
        }
        let mut room = Room::new(used);
        // Packets in flight may read what a run before has published.
        for (unit, units) in stale {
            room.retire(unit, units);
        }
        self.mend_covers(&covers);
        for (root, wanted) in wrong {
            let path = Prefix::of_root(root);
            let plan = Plan::new(wanted);
            let mut need = Need::REMOVAL;
            match &plan {
                Some(plan) => need.add_lines(plan.units()),
                None => need.add_changes(wanted.len()),
            }
            self.reserve(&room, need)?;
            let word = match &plan {
                Some(plan) => self.lined(&mut room, Word::EMPTY, &path, plan),
                None => self.built(&mut room, &path, wanted),
            };
            self.set_root(root, word);
        }
        Ok(room)
    }

    fn mend_covers(&mut self, covers: &[Change]) {
        let mut told = vec![0; ROOTS as usize];
        // In order, a prefix is before all that it contains.
        for (prefix, class) in covers {
            let class = class.map_or(0, |class| class + 1);
            let roots = roots(prefix);
            told[roots.start as usize..roots.end as usize].fill(class);
        }
        for (root, told) in (0..).zip(told) {
            self.set_cover(root, told);
        }
    }

    /// Whether what a word leads to can be read; what is there is noted.
    fn walk(&self, seen: &mut Seen, word: Word, path: Prefix, records: usize) -> bool {
        if word != Word::new(word.meaning()) {
            return false;
        }
        let bits = match path.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        match word.meaning() {
            Meaning::Nothing => true,
            Meaning::Leaf(leaf) => {
                let Some(class) = leaf.told.checked_sub(1) else {
                    return false;
                };
                if path.length() + leaf.length > bits || leaf.bits << leaf.length != 0 {
                    return false;
                }
                seen.found.push((leaf_prefix(&path, &leaf), Some(class)));
                true
            }
            Meaning::Node(node) => {
                let depth = path.length();
                let is_place =
                    (depth - ROOT_BITS).is_multiple_of(STRIDE) && depth + STRIDE <= bits + 1;
                if !is_place || node.units() == 0 || !seen.take(node.unit, node.units()) {
                    return false;
                }
                let branch = Branch::load(&self.store, &node);
                // What has no meaning would be taken for absent.
                if branch.node(node.unit) != node || (node.children != 0 && depth + STRIDE > bits) {
                    return false;
                }
                for (number, told) in branch.ends.iter().enumerate() {
                    if let Some(class) = told.checked_sub(1) {
                        seen.found.push((branch::end(&path, number), Some(class)));
                    }
                }
                (0..).zip(branch.children).all(|(number, child)| {
                    child == Word::EMPTY || self.walk(seen, child, path.and(number, STRIDE), 0)
                })
            }
            Meaning::Lines(lines) => {
                path.length() == ROOT_BITS
                    && path.family() == Family::V4
                    && self.walk_lines(seen, &lines, &path)
            }
            Meaning::Record(unit) => {
                if records == 2 || !seen.take(unit, RECORD_UNITS) {
                    return false;
                }
                let stands_for = Path(self.store.word(Place::Unit(unit)));
                let word = Word(self.store.word(Place::Unit(unit + 1)));
                let length = stands_for.length();
                let fits = (1..=RECORD_BITS).contains(&length) && path.length() + length <= bits;
                fits && word != Word::EMPTY && {
                    let path = path.and(stands_for.bits() >> (64 - length), length);
                    self.walk(seen, word, path, records + 1)
                }
            }
        }
    }
}

impl<S: Store> Trie<S> {
    /// The same of lines.
    fn walk_lines(&self, seen: &mut Seen, lines: &Lines, path: &Prefix) -> bool {
        let chosen = LINE_UNITS << lines.bits;
        if lines.bits > MOST_BITS || !seen.is_there(lines.unit, chosen) {
            return false;
        }
        if !seen.take(lines.unit, lines::units(&self.store, lines)) {
            return false;
        }
        let words = lines::load(&self.store, lines);
        let mut found = Vec::new();
        for word in &words {
            if let Meaning::Leaf(leaf) = word.meaning() {
                if leaf.length == 0 || leaf.length > 32 - ROOT_BITS || leaf.told == 0 {
                    return false;
                }
                found.push((leaf_prefix(path, &leaf), Some(leaf.told - 1)));
            }
        }
        found.sort_unstable();
        // One that is shorter than what leads to a line is in several.
        found.dedup();
        let is_right = Plan::new(&found).is_some_and(|plan| {
            plan.word(lines.unit) == Word::new(Meaning::Lines(*lines))
                && plan.words(lines.unit) == words
        });
        seen.found.extend(found);
        is_right
    }
}

/// What the walk has come by.
struct Seen {
    /// Of every unit, whether something leads there.
    taken: Vec<bool>,
    /// Below one root: first units, and how many.
    used: Vec<(u32, u32)>,
    /// Below one root.
    found: Vec<Change>,
}

impl Seen {
    fn new(segments: u32) -> Self {
        Self {
            taken: vec![false; segments as usize * SEGMENT_UNITS as usize],
            used: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Whether so many units are there.
    fn is_there(&self, unit: u32, units: u32) -> bool {
        unit as usize + units as usize <= self.taken.len()
    }

    /// Whether nothing else leads there, and it is there.
    fn take(&mut self, unit: u32, units: u32) -> bool {
        let (first, size) = (unit as usize, rounded(units) as usize);
        let Some(taken) = self.taken.get_mut(first..first + size) else {
            return false;
        };
        if !unit.is_multiple_of(alignment(units)) || taken.contains(&true) {
            return false;
        }
        taken.fill(true);
        self.used.push((unit, units));
        true
    }
}
