//! Calico's selector language: parsing with the place of every error, evaluation, canonical printing.

mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt::{self, Display as _},
};

pub use parser::{MAX_DEPTH, ParseError};

use crate::model::Labels;

/// A parsed selector.
///
/// Its form is canonical: `&&` and `||` are flat, and nothing is negated twice. Two texts that differ only
/// in spaces, quotes or needless parentheses are equal selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Node);

impl Selector {
    /// Parses a selector; an empty one is an error.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parser::parse(text).map(Self)
    }

    /// The selector that matches every object.
    #[must_use]
    pub const fn all() -> Self {
        Self(Node::All)
    }

    /// The selector of objects that have this label.
    #[must_use]
    pub const fn has(label: String) -> Self {
        Self(Node::Has(label))
    }

    /// The selector of objects whose label has this value.
    #[must_use]
    pub const fn equal(label: String, value: String) -> Self {
        Self(Node::Equal(label, value))
    }

    /// The selector of objects whose label has one of these values.
    #[must_use]
    pub const fn one_of(label: String, values: BTreeSet<String>) -> Self {
        Self(Node::In(label, values))
    }

    /// The selector of what this one does not select.
    #[must_use]
    pub fn negated(self) -> Self {
        Self(self.0.negated())
    }

    /// The selector of what all of these select, which is everything if there are none.
    #[must_use]
    pub fn every(selectors: Vec<Self>) -> Self {
        if selectors.is_empty() {
            return Self::all();
        }
        let nodes = selectors.into_iter().map(|selector| selector.0);
        Self(Node::conjunction(nodes.collect()))
    }

    /// Whether it asks for no other labels than these.
    #[must_use]
    pub fn asks_only_for(&self, labels: &[&str]) -> bool {
        self.0.asks_only_for(labels)
    }

    /// Whether an object with these labels is selected.
    ///
    /// As in Calico, `!=` and `not in` hold for an object without the label, the other comparisons do not,
    /// and `global()` is true of whatever it is asked about.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.matches(labels)
    }
}

impl std::str::FromStr for Selector {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node of the expression. `And` and `Or` have two members or more, none of its own kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Node {
    All,
    Global,
    Has(String),
    Equal(String, String),
    NotEqual(String, String),
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

impl Node {
    /// The negation, never doubled.
    fn negated(self) -> Self {
        if let Self::Not(inner) = self {
            *inner
        } else {
            Self::Not(Box::new(self))
        }
    }

    /// The conjunction of at least one operand, flat.
    fn conjunction(operands: Vec<Self>) -> Self {
        let mut flat = Vec::with_capacity(operands.len());
        for operand in operands {
            if let Self::And(inner) = operand {
                flat.extend(inner);
            } else {
                flat.push(operand);
            }
        }
        single_or(flat, Self::And)
    }

    /// The disjunction of at least one operand, flat.
    fn disjunction(operands: Vec<Self>) -> Self {
        let mut flat = Vec::with_capacity(operands.len());
        for operand in operands {
            if let Self::Or(inner) = operand {
                flat.extend(inner);
            } else {
                flat.push(operand);
            }
        }
        single_or(flat, Self::Or)
    }

    fn matches(&self, labels: &Labels) -> bool {
        let value = |label: &String| labels.get(label).map(String::as_str);
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Equal(label, wanted) => value(label) == Some(wanted),
            Self::NotEqual(label, unwanted) => value(label) != Some(unwanted),
            Self::In(label, wanted) => value(label).is_some_and(|value| wanted.contains(value)),
            Self::NotIn(label, unwanted) => {
                !value(label).is_some_and(|value| unwanted.contains(value))
            }
            Self::Contains(label, part) => {
                value(label).is_some_and(|value| value.contains(part.as_str()))
            }
            Self::StartsWith(label, start) => {
                value(label).is_some_and(|value| value.starts_with(start.as_str()))
            }
            Self::EndsWith(label, end) => {
                value(label).is_some_and(|value| value.ends_with(end.as_str()))
            }
            Self::Not(inner) => !inner.matches(labels),
            Self::And(operands) => operands.iter().all(|operand| operand.matches(labels)),
            Self::Or(operands) => operands.iter().any(|operand| operand.matches(labels)),
        }
    }

    fn asks_only_for(&self, labels: &[&str]) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label)
            | Self::Equal(label, _)
            | Self::NotEqual(label, _)
            | Self::In(label, _)
            | Self::NotIn(label, _)
            | Self::Contains(label, _)
            | Self::StartsWith(label, _)
            | Self::EndsWith(label, _) => labels.contains(&label.as_str()),
            Self::Not(inner) => inner.asks_only_for(labels),
            Self::And(operands) | Self::Or(operands) => {
                operands.iter().all(|operand| operand.asks_only_for(labels))
            }
        }
    }

    /// Prints an operand of something that binds tighter than `||`, or than `&&` too.
    fn fmt_operand(&self, f: &mut fmt::Formatter<'_>, tighter_than_and: bool) -> fmt::Result {
        let parenthesize =
            matches!(self, Self::Or(_)) || (tighter_than_and && matches!(self, Self::And(_)));
        if parenthesize {
            write!(f, "({self})")
        } else {
            self.fmt(f)
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Equal(label, value) => write!(f, "{label} == {}", Quoted(value)),
            Self::NotEqual(label, value) => write!(f, "{label} != {}", Quoted(value)),
            Self::In(label, values) => write!(f, "{label} in {}", QuotedSet(values)),
            Self::NotIn(label, values) => write!(f, "{label} not in {}", QuotedSet(values)),
            Self::Contains(label, part) => write!(f, "{label} contains {}", Quoted(part)),
            Self::StartsWith(label, start) => write!(f, "{label} starts with {}", Quoted(start)),
            Self::EndsWith(label, end) => write!(f, "{label} ends with {}", Quoted(end)),
            Self::Not(inner) => {
                f.write_str("!")?;
                inner.fmt_operand(f, true)
            }
            Self::And(operands) => {
                for (index, operand) in operands.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { " && " })?;
                    operand.fmt_operand(f, false)?;
                }
                Ok(())
            }
            Self::Or(operands) => {
                for (index, operand) in operands.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { " || " })?;
                    operand.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

fn single_or(mut operands: Vec<Node>, many: impl FnOnce(Vec<Node>) -> Node) -> Node {
    if operands.len() == 1 {
        operands.swap_remove(0)
    } else {
        many(operands)
    }
}

/// A string literal. The language has no escapes, so no parsed string has both kinds of quote.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('\'') { '"' } else { '\'' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct QuotedSet<'a>(&'a BTreeSet<String>);

impl fmt::Display for QuotedSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, value) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, Quoted(value))?;
        }
        f.write_str("}")
    }
}
