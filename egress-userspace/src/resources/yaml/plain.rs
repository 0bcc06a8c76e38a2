//! The YAML that most manifests are written in, read in a tenth of the time: block collections of one line a value, flow
//! collections within a line, and scalars of which there can be no doubt.
//!
//! Whatever else there is, or is wrong, is left to the parser that knows all of YAML: this one says nothing then. Where it
//! says something, the other says the same to the byte, which the tests hold against it.

use std::ops::Range;

use super::{Data, Key, MAX_TREE_BYTES, SKIPPED_KEYS, Value};

/// Collections within collections.
const DEPTH: usize = 32;
/// Bytes of a key; the other parser looks no further than 1024.
const LONGEST_KEY: usize = 256;
/// Words that may mean something else than themselves, in lower case.
const WORDS: [&str; 16] = [
    "null", "nil", "none", "true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "nan",
    "inf", "infinity",
];

/// The document's value, with places that count from `offset` bytes before it; nothing if it takes more than this.
pub(super) fn parse(document: &str, offset: usize) -> Option<Value> {
    let text = document.strip_prefix("---\n").unwrap_or(document);
    let mut reader = Reader {
        text,
        at: 0,
        offset: offset + document.len() - text.len(),
        bytes: 0,
    };
    let indent = reader.next_line()?;
    let value = reader.block(indent, DEPTH)?;
    (reader.at == text.len()).then_some(value)
}

struct Reader<'t> {
    text: &'t str,
    /// Within a line, or at the beginning of one that has text.
    at: usize,
    offset: usize,
    /// What the tree takes.
    bytes: usize,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn span(&self, from: usize, to: usize) -> Range<usize> {
        self.offset + from..self.offset + to
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn grow(&mut self, by: usize) -> Option<()> {
        self.bytes += by;
        (self.bytes <= MAX_TREE_BYTES).then_some(())
    }

    /// Goes to the next line with text, and says how far it is indented; nothing at the end.
    fn next_line(&mut self) -> Option<usize> {
        while self.peek() == Some(b'\n') {
            self.at += 1;
        }
        let spaces = self.rest().iter().take_while(|byte| **byte == b' ').count();
        let first = *self.rest().get(spaces)?;
        (first != b'\n').then_some(spaces)
    }

    /// The indentation of the next line, from the end of one. At the end of the text there is none, as if it were less than any.
    fn after_line(&mut self) -> Option<Option<usize>> {
        if self.at < self.text.len() {
            self.take(b'\n')?;
        }
        while self.peek() == Some(b'\n') {
            self.at += 1;
        }
        if self.at == self.text.len() {
            return Some(None);
        }
        self.next_line().map(Some)
    }

    /// A block collection whose first line is indented so far.
    fn block(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let dash = self.rest().get(indent..indent + 2) == Some(b"- ");
        if dash {
            let at = self.at + indent;
            self.sequence(indent, at, depth)
        } else {
            self.at += indent;
            self.mapping(indent, depth)
        }
    }

    /// Items of a block sequence, from the beginning of the first one's line.
    fn sequence(&mut self, indent: usize, place: usize, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let mut items = Vec::new();
        loop {
            self.at += indent + 2;
            let item = if self.is_key() {
                self.mapping(indent + 2, depth)?
            } else {
                let item = self.inline(depth)?;
                self.end_of_value(indent)?;
                item
            };
            self.grow(size_of::<Value>())?;
            items.push(item);
            // Whoever is at the beginning of a line looks at it.
            let spaces = self.rest().iter().take_while(|byte| **byte == b' ').count();
            let again = self.rest().get(spaces..spaces + 2) == Some(b"- ");
            if self.at == self.text.len() || spaces != indent || !again {
                return Some(Value {
                    data: Data::List(items),
                    span: self.span(place, place),
                });
            }
        }
    }

    /// Entries of a block mapping in a column, from the first key.
    fn mapping(&mut self, column: usize, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let place = self.at;
        let mut entries = Vec::new();
        loop {
            let key = self.key()?;
            self.take(b':')?;
            let value = if self.peek() == Some(b' ') {
                self.at += 1;
                let value = self.inline(depth)?;
                self.end_of_value(column)?;
                value
            } else {
                let indent = self.after_line()??;
                if indent > column {
                    self.block(indent, depth)?
                } else if indent == column && self.rest().get(indent..indent + 2) == Some(b"- ") {
                    let place = self.at + indent + 2;
                    self.sequence(indent, place, depth)?
                } else {
                    return None;
                }
            };
            self.enter(&mut entries, key, value)?;
            let spaces = self.rest().iter().take_while(|byte| **byte == b' ').count();
            if self.at == self.text.len() || spaces < column {
                return Some(Value {
                    data: Data::Map(entries),
                    span: self.span(place, place),
                });
            }
            if spaces > column {
                return None;
            }
            // The end of a sequence in the column of its key is for whoever reads the sequence.
            if self.rest().get(spaces..spaces + 2) == Some(b"- ") {
                return None;
            }
            self.at += spaces;
        }
    }

    fn enter(&mut self, entries: &mut Vec<(Key, Value)>, key: Key, value: Value) -> Option<()> {
        self.grow(size_of::<(Key, Value)>() + key.text.len())?;
        let value = if SKIPPED_KEYS.contains(&key.text.as_str()) {
            Value {
                data: Data::Skipped,
                span: key.span.clone(),
            }
        } else {
            value
        };
        entries.push((key, value));
        Some(())
    }

    /// Goes to the next line with text, or the end. One that is indented further would go on with the value.
    fn end_of_value(&mut self, indent: usize) -> Option<()> {
        let next = self.after_line()?;
        next.is_none_or(|next| next <= indent).then_some(())
    }

    fn is_key(&self) -> bool {
        let rest = self.rest();
        let length = rest.iter().take_while(|byte| is_of_key(**byte)).count();
        matches!(rest.get(length..), Some([b':', b' ' | b'\n', ..]))
    }

    fn key(&mut self) -> Option<Key> {
        let length = self
            .rest()
            .iter()
            .take_while(|byte| is_of_key(**byte))
            .count();
        let text = &self.text[self.at..self.at + length];
        let starts_well = text.bytes().next()?.is_ascii_alphabetic();
        if !starts_well || length > LONGEST_KEY || is_word(text) {
            return None;
        }
        let span = self.span(self.at, self.at + length);
        self.at += length;
        Some(Key {
            text: text.to_owned(),
            span,
        })
    }

    /// A value within a line.
    fn inline(&mut self, depth: usize) -> Option<Value> {
        match self.peek()? {
            b'{' => self.flow_mapping(depth),
            b'[' => self.flow_sequence(depth),
            quote @ (b'"' | b'\'') => self.quoted(quote),
            _ => self.scalar(),
        }
    }

    fn flow_mapping(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let span = self.span(self.at, self.at + 1);
        self.at += 1;
        let mut entries = Vec::new();
        if self.take(b'}').is_none() {
            loop {
                let key = self.key()?;
                self.take(b':')?;
                self.take(b' ')?;
                let value = self.inline(depth)?;
                self.enter(&mut entries, key, value)?;
                if self.take(b'}').is_some() {
                    break;
                }
                self.take(b',')?;
                self.take(b' ')?;
            }
        }
        Some(Value {
            data: Data::Map(entries),
            span,
        })
    }

    fn flow_sequence(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let span = self.span(self.at, self.at + 1);
        self.at += 1;
        let mut items = Vec::new();
        if self.take(b']').is_none() {
            loop {
                let item = self.inline(depth)?;
                self.grow(size_of::<Value>())?;
                items.push(item);
                if self.take(b']').is_some() {
                    break;
                }
                self.take(b',')?;
                self.take(b' ')?;
            }
        }
        Some(Value {
            data: Data::List(items),
            span,
        })
    }

    /// A string in quotes without escapes; what follows it is for whoever asked.
    fn quoted(&mut self, quote: u8) -> Option<Value> {
        let from = self.at + 1;
        let is_inner =
            |byte: &&u8| matches!(**byte, b' '..=b'~') && **byte != quote && **byte != b'\\';
        let length = self.text.as_bytes()[from..]
            .iter()
            .take_while(is_inner)
            .count();
        let (end, text) = (from + length, &self.text[from..from + length]);
        if self.text.as_bytes().get(end) != Some(&quote) {
            return None;
        }
        let span = self.span(self.at, end + 1);
        self.at = end + 1;
        // Two quotes are one in such a string, and a colon would make it a key.
        if matches!(self.peek(), Some(b'\'' | b'"' | b':')) {
            return None;
        }
        self.text_value(text, span)
    }

    fn scalar(&mut self) -> Option<Value> {
        let length = self
            .rest()
            .iter()
            .take_while(|byte| is_of_scalar(**byte))
            .count();
        let text = &self.text[self.at..self.at + length];
        let span = self.span(self.at, self.at + length);
        self.at += length;
        let first = text.bytes().next()?;
        // A colon at the end would make it a key.
        if text.ends_with(':') || !matches!(self.peek(), None | Some(b'\n' | b',' | b'}' | b']')) {
            return None;
        }
        let count = |wanted: u8| text.bytes().filter(|byte| *byte == wanted).count();
        let is_text = if first.is_ascii_alphabetic() {
            !is_word(text)
        } else {
            // A prefix or an address: no number has a slash, or two points.
            first.is_ascii_digit() && (count(b'/') == 1 || count(b'.') == 3 && count(b':') == 0)
        };
        if is_text {
            return self.text_value(text, span);
        }
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit())
            && length <= 18
            && (first != b'0' || length == 1);
        let number = is_number.then(|| text.parse().ok())??;
        Some(Value {
            data: Data::Integer(number),
            span,
        })
    }

    fn text_value(&mut self, text: &str, span: Range<usize>) -> Option<Value> {
        self.grow(text.len())?;
        Some(Value {
            data: Data::Text(text.to_owned()),
            span,
        })
    }
}

const fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'_' | b'-')
}

const fn is_of_scalar(byte: u8) -> bool {
    is_of_key(byte) || byte == b':'
}

fn is_word(text: &str) -> bool {
    WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
