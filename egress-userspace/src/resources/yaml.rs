//! YAML text to a tree in which every value knows where it is written.

mod plain;

use std::{cell::Cell, fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Options, Spanned, options::NonFiniteFloatPolicy};

/// Events that a file of the largest size can have without aliases.
const MAX_EVENTS: usize = 64_000_000;
/// Nodes that aliases may add to a document: more is an attack, not a manifest.
const MAX_REPLAYED: usize = 100_000;
/// Bytes that the tree of one document may take: enough for 25,000 pods in one list. Two bytes of text can make a
/// value of fifty, and an alias repeats a text of any length.
const MAX_TREE_BYTES: usize = 256 << 20;
/// Collections within collections.
const MAX_DEPTH: usize = 96;
/// What pods are full of and nothing here reads; left out of the tree.
const SKIPPED_KEYS: &[&str] = &[
    "affinity",
    "containers",
    "containerStatuses",
    "ephemeralContainers",
    "ephemeralContainerStatuses",
    "images",
    "initContainers",
    "initContainerStatuses",
    "managedFields",
    "tolerations",
    "volumes",
];

thread_local! {
    /// Bytes of the tree that this thread is building.
    static TREE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// A value and where it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Value {
    pub(crate) data: Data,
    pub(crate) span: Range<usize>,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// In the order of the file, repeated keys included.
    Map(Vec<(Key, Value)>),
    Skipped,
}

/// A key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) span: Range<usize>,
}

/// Why a text is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
}

/// Finds the documents of a stream, so that a broken one does not take its neighbours along.
///
/// Nothing but a marker can begin with `---` or `...` in the first column: not even a string may.
pub(crate) fn documents(text: &str) -> Vec<Range<usize>> {
    let mut documents = Vec::new();
    let (mut start, mut at) = (0, 0);
    let (mut has_content, mut has_directive) = (false, false);
    for line in text.split_inclusive('\n') {
        let next = at + line.len();
        let unmarked = line.trim_start_matches('\u{feff}');
        if let Some(rest) = after_marker(unmarked, "---") {
            if has_content {
                documents.push(start..at);
            }
            // A directive belongs to the document that follows.
            if has_content || !has_directive {
                start = at;
            }
            (has_content, has_directive) = (has_text(rest), false);
        } else if after_marker(unmarked, "...").is_some() {
            if has_content {
                documents.push(start..at);
            }
            (start, has_content, has_directive) = (next, false, false);
        } else if unmarked.starts_with('%') && !has_content {
            has_directive = true;
        } else {
            has_content |= has_text(unmarked);
        }
        at = next;
    }
    if has_content {
        documents.push(start..at);
    }
    documents
}

fn after_marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.strip_prefix(marker)
        .filter(|rest| rest.chars().next().is_none_or(char::is_whitespace))
}

fn has_text(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// Parses the one document that `span` of `text` holds; spans are those of the whole text.
pub(crate) fn parse(text: &str, span: Range<usize>) -> Result<Value, SyntaxError> {
    let document = &text[span.clone()];
    let unmarked = document.trim_start_matches('\u{feff}');
    let offset = span.end - unmarked.len();
    if let Some(value) = plain::parse(unmarked, offset) {
        return Ok(value);
    }
    parse_any(unmarked, offset, span)
}

/// Parses whatever is YAML, and says what is not.
fn parse_any(unmarked: &str, offset: usize, span: Range<usize>) -> Result<Value, SyntaxError> {
    TREE_BYTES.set(0);
    match serde_saphyr::from_str_with_options::<Value>(unmarked, options()) {
        Ok(mut value) => {
            value.shift(offset);
            Ok(value)
        }
        Err(error) => {
            if TREE_BYTES.get() > MAX_TREE_BYTES {
                return Err(SyntaxError {
                    span: span.start..span.start,
                    message: format!(
                        "the document would take more than {} MiB of memory",
                        MAX_TREE_BYTES >> 20
                    ),
                });
            }
            let error = error.without_snippet();
            let place = error
                .location()
                .map(|location| bytes(&location).unwrap_or_else(|| counted(&location, unmarked)));
            Err(SyntaxError {
                span: place.map_or(span, |place| shifted(&place, offset)),
                message: message(error),
            })
        }
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: MAX_EVENTS,
            max_nodes: MAX_EVENTS,
            max_depth: MAX_DEPTH,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        strict_booleans: true,
        emit_comments: false,
        with_snippet: false,
    }
}

/// The parser's message without its own idea of where, which counts from the document.
fn message(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::Budget { breach, .. } = error {
        return format!("the document is too large or too deeply nested: {breach:?}");
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let end = line.find(" at line ").unwrap_or(line.len());
    format!("not valid YAML: {}", &line[..end])
}

fn bytes(location: &Location) -> Option<Range<usize>> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len().unwrap_or(0)).ok()?;
    Some(start..start + length)
}

/// The place of a scanner's error, which has no byte offset.
fn counted(location: &Location, text: &str) -> Range<usize> {
    let number = |n: u64| usize::try_from(n.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut line_start = 0;
    for line in text.split_inclusive('\n').take(number(location.line())) {
        line_start += line.len();
    }
    let line = text[line_start..].lines().next().unwrap_or_default();
    let mut rest = line.char_indices().skip(number(location.column()));
    let start = rest.next().map_or(line.len(), |(at, _)| at);
    let end = rest.next().map_or(line.len(), |(at, _)| at);
    line_start + start..line_start + end
}

const fn shifted(span: &Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

impl Value {
    fn shift(&mut self, by: usize) {
        self.span = shifted(&self.span, by);
        match &mut self.data {
            Data::List(values) => values.iter_mut().for_each(|value| value.shift(by)),
            Data::Map(entries) => {
                for (key, value) in entries {
                    key.span = shifted(&key.span, by);
                    value.shift(by);
                }
            }
            Data::Null
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::Skipped => {}
        }
    }
}

/// Counts what the tree grows by, and refuses what is too much.
fn grow<E: Error>(by: usize) -> Result<(), E> {
    let bytes = TREE_BYTES.get().saturating_add(by);
    TREE_BYTES.set(bytes);
    if bytes > MAX_TREE_BYTES {
        return Err(E::custom("too large"));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Data>::deserialize(deserializer)?;
        Ok(Self {
            data: spanned.value,
            span: bytes(&spanned.referenced).unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_none<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        Ok(Data::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Data, E> {
        Ok(Data::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Data, E> {
        Ok(Data::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Data, E> {
        grow(value.len())?;
        Ok(Data::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Data, E> {
        grow(value.len())?;
        Ok(Data::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Data, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element()? {
            grow(size_of::<Value>())?;
            values.push(value);
        }
        Ok(Data::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            grow(size_of::<(Key, Value)>() + key.value.len())?;
            let key = Key {
                span: bytes(&key.referenced).unwrap_or_default(),
                text: key.value,
            };
            let value = if SKIPPED_KEYS.contains(&key.text.as_str()) {
                let IgnoredAny = map.next_value()?;
                Value {
                    data: Data::Skipped,
                    span: key.span.clone(),
                }
            } else {
                map.next_value()?
            };
            entries.push((key, value));
        }
        Ok(Data::Map(entries))
    }
}

/// Finds the part `wanted` of a string in the text that the string is written as.
///
/// Knows both kinds of quotes and their escapes, and folded lines. None if the text is something else,
/// such as an alias.
pub(crate) fn place_within(
    raw: &str,
    content: &str,
    wanted: &Range<usize>,
) -> Option<Range<usize>> {
    let quote = raw.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let mut at = quote.map_or(0, char::len_utf8);
    if raw.starts_with(['|', '>']) {
        at = raw.find('\n')?;
    }
    let (mut start, mut end) = (None, None);
    for (index, c) in content.char_indices() {
        at = skip_folding(raw, at, c);
        if index >= wanted.end && end.is_none() {
            end = Some(at);
        }
        if index >= wanted.start && start.is_none() {
            start = Some(at);
        }
        at += written_length(&raw[at..], c, quote)?;
    }
    let start = start.unwrap_or(at);
    Some(start..end.unwrap_or(at).max(start))
}

/// Skips white space that the text has between lines and the string does not.
fn skip_folding(raw: &str, at: usize, next: char) -> usize {
    let rest = &raw[at..];
    if next.is_whitespace() || !rest.starts_with(char::is_whitespace) {
        return at;
    }
    at + rest.len() - rest.trim_start().len()
}

/// How many bytes of the text write the character `c`.
fn written_length(rest: &str, c: char, quote: Option<char>) -> Option<usize> {
    let first = rest.chars().next()?;
    if quote == Some('\'') && rest.starts_with("\'\'") && c == '\'' {
        return Some(2);
    }
    if quote == Some('"') && first == '\\' {
        return Some(match rest.chars().nth(1)? {
            'x' => 4,
            'u' => 6,
            'U' => 10,
            other => 1 + other.len_utf8(),
        });
    }
    if c.is_whitespace() && first.is_whitespace() {
        return Some(first.len_utf8());
    }
    (first == c).then(|| c.len_utf8())
}
