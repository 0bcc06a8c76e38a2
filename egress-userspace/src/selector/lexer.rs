//! Text to tokens, each with its place.

use std::ops::Range;

use super::ParseError;

/// A token with its byte range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind<'a>,
    pub(super) span: Range<usize>,
}

/// What a token is. Words are label names or operators, which only the parser can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind<'a> {
    Word(&'a str),
    Text(&'a str),
    Equal,
    NotEqual,
    And,
    Or,
    Not,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    Comma,
    End,
}

/// Splits a selector; the last token is always `End`.
pub(super) fn tokenize(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (kind, length) = next_token(text, at, first)?;
        tokens.push(Token {
            kind,
            span: at..at + length,
        });
        at += length;
    }
    tokens.push(Token {
        kind: TokenKind::End,
        span: text.len()..text.len(),
    });
    Ok(tokens)
}

fn next_token(text: &str, at: usize, first: char) -> Result<(TokenKind<'_>, usize), ParseError> {
    let rest = &text[at..];
    let symbols = [
        ("==", TokenKind::Equal),
        ("!=", TokenKind::NotEqual),
        ("&&", TokenKind::And),
        ("||", TokenKind::Or),
        ("=", TokenKind::Equal),
        ("!", TokenKind::Not),
        ("(", TokenKind::LeftParen),
        (")", TokenKind::RightParen),
        ("{", TokenKind::LeftBrace),
        ("}", TokenKind::RightBrace),
        (",", TokenKind::Comma),
    ];
    for (symbol, kind) in symbols {
        if rest.starts_with(symbol) {
            return Ok((kind, symbol.len()));
        }
    }
    if matches!(first, '\'' | '"') {
        return string_literal(text, at, first);
    }
    let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    if length > 0 {
        return Ok((TokenKind::Word(&rest[..length]), length));
    }
    let help = match first {
        '&' => "\"and\" is written `&&`",
        '|' => "\"or\" is written `||`",
        '[' | ']' => "a set of values is written in braces: `in {'a', 'b'}`",
        _ => "label names have letters, digits, `.`, `_`, `-` and `/`; values stand in quotes",
    };
    Err(ParseError {
        span: at..at + first.len_utf8(),
        message: format!("unexpected character `{}`", first.escape_debug()),
        help: help.to_owned(),
    })
}

fn string_literal(
    text: &str,
    at: usize,
    quote: char,
) -> Result<(TokenKind<'_>, usize), ParseError> {
    let content = &text[at + 1..];
    content.find(quote).map_or_else(
        || {
            Err(ParseError {
                span: at..text.len(),
                message: "the string is never closed".to_owned(),
                help: format!("add the closing {quote}"),
            })
        },
        |length| Ok((TokenKind::Text(&content[..length]), length + 2)),
    )
}

const fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')
}
