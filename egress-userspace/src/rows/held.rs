//! A live row, as its lines are.

use egress_common::cells::{CELLS_PER_LINE, Line, RowPlace, SparseLine, sparse_line};

/// What a live row's lines say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cells {
    /// A number for each class, up to the highest in use, in whole lines; zero where no prefix has the class.
    Dense(Vec<u16>),
    /// The commonest number, and the classes that have another.
    Sparse(Sparse),
}

impl Cells {
    /// From the lines of a row.
    #[must_use]
    pub fn from_lines(place: RowPlace, lines: &[Line]) -> Self {
        match place.shift() {
            None => Self::Dense(lines.iter().flat_map(|line| line.0).collect()),
            Some(shift) => Self::Sparse(Sparse {
                shift,
                lines: lines.iter().map(SparseLine::from_line).collect(),
            }),
        }
    }

    /// The number of a class, or nothing beyond the last cell.
    #[must_use]
    pub fn number(&self, class: u32) -> Option<u16> {
        match self {
            Self::Dense(cells) => cells.get(class as usize).copied(),
            Self::Sparse(sparse) => Some(sparse.number(class)),
        }
    }

    /// The lines, as they lie in the map.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        match self {
            Self::Dense(cells) => {
                let (lines, _) = cells.as_chunks::<{ CELLS_PER_LINE as usize }>();
                lines.iter().map(|line| Line(*line)).collect()
            }
            Self::Sparse(sparse) => sparse.lines.iter().map(SparseLine::to_line).collect(),
        }
    }

    /// The highest number of a class in use; 0 if none is.
    ///
    /// What nothing has by now is not counted, though a line may say it.
    #[must_use]
    pub fn highest(&self, live: &[bool]) -> u16 {
        let is_live = |class: u32| live.get(class as usize).copied().unwrap_or(false);
        match self {
            Self::Dense(cells) => cells
                .iter()
                .zip(live)
                .filter_map(|(cell, live)| live.then_some(*cell))
                .max()
                .unwrap_or(0),
            Self::Sparse(sparse) => {
                let own = sparse.entries().filter(|(class, _)| is_live(*class));
                let (count, highest) = own.fold((0, 0), |(count, highest), (_, number)| {
                    (count + 1, number.max(highest))
                });
                let all = live.iter().filter(|live| **live).count();
                if all > count {
                    highest.max(sparse.common())
                } else {
                    highest
                }
            }
        }
    }
}

/// A row that says which classes have another number than most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    shift: u32,
    /// `1 << shift` lines. They may have classes that no prefix has any more.
    lines: Vec<SparseLine>,
}

impl Sparse {
    /// A row of `1 << shift` lines, unless one of them has no room.
    #[must_use]
    pub fn new(
        shift: u32,
        common: u16,
        entries: impl IntoIterator<Item = (u32, u16)>,
    ) -> Option<Self> {
        let line = SparseLine {
            common,
            ..SparseLine::default()
        };
        let mut row = Self {
            shift,
            lines: vec![line; 1 << shift],
        };
        for (class, number) in entries {
            row.set(class, number, |_| true)?;
        }
        Some(row)
    }

    /// The number of all classes without an entry.
    #[must_use]
    pub fn common(&self) -> u16 {
        self.lines.first().map_or(0, |line| line.common)
    }

    /// How many lines there are, as a power of two.
    #[must_use]
    pub const fn shift(&self) -> u32 {
        self.shift
    }

    /// The number of a class.
    #[must_use]
    pub fn number(&self, class: u32) -> u16 {
        self.lines[sparse_line(class, self.shift) as usize].number(class)
    }

    /// The classes that have an entry, with their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u16)> + '_ {
        self.lines.iter().flat_map(|line| {
            line.classes
                .iter()
                .zip(&line.numbers)
                .filter_map(|(class, number)| Some((class.checked_sub(1)?, *number)))
        })
    }

    /// Consecutive lines, as they lie in the map.
    #[must_use]
    pub fn some_lines(&self, which: std::ops::Range<u32>) -> Vec<Line> {
        let which = which.start as usize..which.end as usize;
        self.lines[which].iter().map(SparseLine::to_line).collect()
    }

    /// Gives a class that no packet has an entry, in a place that is free or of a class that is not live; entries of others stay where
    /// they are. Says which line that changes, or nothing if it has no room.
    pub fn set(&mut self, class: u32, number: u16, is_live: impl Fn(u32) -> bool) -> Option<u32> {
        let at = sparse_line(class, self.shift);
        let line = &mut self.lines[at as usize];
        let own = |entry: &u32| *entry == class + 1;
        let free = |entry: &u32| entry.checked_sub(1).is_none_or(|other| !is_live(other));
        let mut classes = line.classes.iter();
        let place = classes
            .position(own)
            .or_else(|| line.classes.iter().position(free))?;
        line.classes[place] = class + 1;
        line.numbers[place] = number;
        Some(at)
    }

    /// Takes away the entry of a class that no packet has, and says which line that changes.
    pub fn forget(&mut self, class: u32) -> Option<u32> {
        let at = sparse_line(class, self.shift);
        let line = &mut self.lines[at as usize];
        let place = line.classes.iter().position(|entry| *entry == class + 1)?;
        line.classes[place] = 0;
        line.numbers[place] = 0;
        Some(at)
    }
}
