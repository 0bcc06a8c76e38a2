//! What is wrong in a file, where, and what to do about it: for people and for programs.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents,
};
use serde::{Serialize, Serializer};

/// Columns that a rendered report fills.
const WIDTH: usize = 100;
/// Lines shown before and after the line that is meant.
const CONTEXT_LINES: usize = 2;
/// Bytes shown of a line on either side of what is meant: JSON may be one line of megabytes.
const CONTEXT_BYTES: usize = 120;

/// Bytes of a message or a hint: what is quoted in it may be megabytes.
const MAX_MESSAGE: usize = 1000;

/// Bytes between two points where the characters are counted: a file may be one line of megabytes.
const BLOCK: usize = 4096;

/// A file's text, able to say where a byte stands.
#[derive(Debug)]
pub struct Source {
    file: Arc<Path>,
    text: String,
    line_starts: Vec<usize>,
    /// Characters before each block of the text.
    block_starts: Vec<usize>,
}

impl Source {
    /// The text of `file`.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>, text: String) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let block_starts = text
            .as_bytes()
            .chunks(BLOCK)
            .scan(0, |before, block| {
                let start = *before;
                *before += count_characters(block);
                Some(start)
            })
            .collect();
        Self {
            file: file.into().into(),
            text,
            line_starts,
            block_starts,
        }
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The file's path.
    #[must_use]
    pub const fn file(&self) -> &Arc<Path> {
        &self.file
    }

    /// Where these bytes are.
    #[must_use]
    pub fn place(&self, span: Range<usize>) -> Place {
        let span = self.within(span);
        let line = self.line_index(span.start);
        let begins = self.line_starts[line];
        let before = if span.start - begins < BLOCK {
            count_characters(&self.text.as_bytes()[begins..span.start])
        } else {
            self.characters_before(span.start) - self.characters_before(begins)
        };
        Place {
            file: Arc::clone(&self.file),
            position: Position {
                line: line + 1,
                column: before + 1,
                span,
            },
        }
    }

    /// The same bytes, moved to boundaries of characters inside the text.
    fn within(&self, span: Range<usize>) -> Range<usize> {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.ceil_char_boundary(span.end.max(start));
        start..end
    }

    fn line_index(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at) - 1
    }

    fn characters_before(&self, at: usize) -> usize {
        // The end of a text of whole blocks begins a block that is not there.
        let block = (at / BLOCK).min(self.block_starts.len().saturating_sub(1));
        let counted = self.block_starts.get(block).copied().unwrap_or(0);
        counted + count_characters(&self.text.as_bytes()[block * BLOCK..at])
    }

    fn snippet(&self, position: &Position) -> Snippet {
        let span = self.within(position.span.clone());
        let line = self.line_index(span.start);
        let first = line.saturating_sub(CONTEXT_LINES);
        let after = (line + CONTEXT_LINES + 1).min(self.line_starts.len());
        let whole_end = self
            .line_starts
            .get(after)
            .map_or(self.text.len(), |end| *end);
        let own_end = self
            .line_starts
            .get(line + 1)
            .map_or(self.text.len(), |end| end - 1);
        let nearby = span.start.saturating_sub(CONTEXT_BYTES)
            ..(span.start + CONTEXT_BYTES).min(self.text.len());
        let (mut shown, mut first_line) = (self.line_starts[first]..whole_end, first + 1);
        if shown.len() > 10 * CONTEXT_BYTES {
            shown = self.line_starts[line].max(nearby.start)..own_end.min(nearby.end);
            first_line = line + 1;
        }
        let shown = self.within(shown);
        let text = self.text[shown.clone()].trim_end_matches(['\r', '\n']);
        let start = (span.start - shown.start).min(text.len());
        let marked = (span.end.min(own_end).saturating_sub(span.start)).min(text.len() - start);
        Snippet {
            text: printable(text),
            first_line,
            marked: start..start + marked,
        }
    }
}

/// Counts the bytes that begin a character.
fn count_characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// The text with each byte of a control character replaced, so that a file cannot drive a terminal.
fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(std::iter::repeat_n('?', c.len_utf8()));
        } else {
            out.push(c);
        }
        out
    })
}

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The place in it.
    pub position: Position,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column, .. } = self.position;
        write!(f, "{}:{line}:{column}", self.file.display())
    }
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// The bytes of the file that are meant.
    pub span: Range<usize>,
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.span.start, self.span.end, self.line, self.column).cmp(&(
            other.span.start,
            other.span.end,
            other.line,
            other.column,
        ))
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is refused.
    Error,
    /// Everything is accepted, but perhaps not meant.
    Warning,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    #[serde(serialize_with = "path_as_text")]
    pub file: Arc<Path>,
    /// The place in the file; none means the file as a whole.
    #[serde(flatten)]
    pub position: Option<Position>,
    /// The object that is concerned, such as "EgressGatewayPolicy egw-policy".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    snippet: Option<Snippet>,
}

impl Diagnostic {
    /// About these bytes of a file.
    #[must_use]
    pub fn at(source: &Source, span: Range<usize>, message: impl Into<String>) -> Self {
        let position = source.place(span).position;
        Self {
            severity: Severity::Error,
            file: Arc::clone(source.file()),
            snippet: Some(source.snippet(&position)),
            position: Some(position),
            object: None,
            message: brief(message.into()),
            help: None,
        }
    }

    /// About a file as a whole.
    #[must_use]
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            position: None,
            object: None,
            message: brief(message.into()),
            help: None,
            snippet: None,
        }
    }

    /// With a hint.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(brief(help.into()));
        self
    }

    /// Of another severity than an error.
    #[must_use]
    pub const fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// About this object.
    #[must_use]
    pub fn with_object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// The report for people: message, place, snippet and hint.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let theme = if colour {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let mut out = String::new();
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(WIDTH)
            .with_wrap_lines(false);
        if handler.render_report(&mut out, &Report(self)).is_err() {
            // The graph is a convenience; what is wrong has to be said in any case.
            return format!("{self}\n");
        }
        out
    }
}

/// The text without its middle, if it is long.
fn brief(text: String) -> String {
    if text.len() <= MAX_MESSAGE {
        return text;
    }
    let (start, end) = (
        text.floor_char_boundary(MAX_MESSAGE / 2),
        text.ceil_char_boundary(text.len() - MAX_MESSAGE / 2),
    );
    format!("{} … {}", &text[..start], &text[end..])
}

impl fmt::Display for Diagnostic {
    /// One line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column, .. }) = &self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", Headline(self))?;
        self.help
            .as_ref()
            .map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

fn path_as_text<S: Serializer>(path: &Arc<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The message, after the object that it is about.
struct Headline<'a>(&'a Diagnostic);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(object) = &self.0.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

/// The few lines around a place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snippet {
    text: String,
    first_line: usize,
    marked: Range<usize>,
}

/// A diagnostic as miette wants it.
#[derive(Debug)]
struct Report<'a>(&'a Diagnostic);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.position.is_none() {
            write!(f, "{}: ", self.0.file.display())?;
        }
        Headline(self.0).fmt(f)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.0
            .help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.snippet.as_ref().map(|_| self as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let marked = &self.0.snippet.as_ref()?.marked;
        let label = LabeledSpan::new(None, marked.start, marked.len());
        Some(Box::new(std::iter::once(label)))
    }
}

impl SourceCode for Report<'_> {
    /// Reads from the snippet, with the numbers that lines have in the file.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (Some(snippet), Some(position)) = (&self.0.snippet, &self.0.position) else {
            return Err(MietteError::OutOfBounds);
        };
        let read = snippet.text.read_span(span, lines_before, lines_after)?;
        let column = if lines_before == 0 && lines_after == 0 {
            position.column - 1
        } else {
            read.column()
        };
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.file.display().to_string(),
            read.data(),
            *read.span(),
            read.line() + snippet.first_line - 1,
            column,
            read.line_count(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Source;

    proptest! {
        #[test]
        fn a_place_counts_lines_and_characters(
            text in "([aé€𝄞]|\n){0,40}",
            filler in prop::sample::select(vec![0, 1, 4093, 4096, 8192, 9000]),
            at in any::<prop::sample::Index>(),
        ) {
            let text = format!("é\n{}{text}", "x".repeat(filler));
            let boundaries: Vec<_> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = boundaries[at.index(boundaries.len())];
            let position = Source::new("a", text.clone()).place(at..at).position;
            let line = text[..at].matches('\n').count() + 1;
            let column = text[..at].rsplit('\n').next().unwrap_or("").chars().count() + 1;
            prop_assert_eq!((position.line, position.column), (line, column));
        }
    }

    #[test]
    fn places_outside_the_text_are_moved_into_it() {
        let source = Source::new("a", "é".to_owned());
        assert_eq!(source.place(1..99).position.span, 0..2);
        assert_eq!(
            Source::new("a", String::new()).place(5..9).position.column,
            1
        );
    }

    #[test]
    fn a_long_line_is_no_slower_than_many() {
        let source = Source::new("a", "x".repeat(8 << 20));
        let columns: usize = (0..source.text().len())
            .step_by(97)
            .map(|at| source.place(at..at).position.column)
            .sum();
        assert!(columns > 0);
    }
}
