//! Tokens to an expression, by recursive descent with a bounded depth.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "every token that is not expected is an error, also one that is added later"
)]

use std::{collections::BTreeSet, fmt, ops::Range};

use super::{
    Node,
    lexer::{Token, TokenKind, tokenize},
};

/// How deep parentheses may nest: selectors come from outside, and the stack is finite.
pub const MAX_DEPTH: usize = 64;

/// Why a text is not a selector, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// The bytes of the selector that are wrong; empty at its end.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Parses a whole selector.
pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let tokens = tokenize(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    if parser.peek() == TokenKind::End {
        return Err(ParseError {
            span: 0..text.len(),
            message: "empty selector".to_owned(),
            help: "write `all()` to select everything".to_owned(),
        });
    }
    let node = parser.disjunction()?;
    match parser.peek() {
        TokenKind::End => Ok(node),
        TokenKind::RightParen => Err(parser.error(
            "this parenthesis was never opened",
            "remove it, or open it before",
        )),
        TokenKind::Word(word @ ("and" | "AND" | "or" | "OR")) => {
            let symbol = if word.eq_ignore_ascii_case("and") {
                "&&"
            } else {
                "||"
            };
            Err(parser.error(
                format!("expected `&&` or `||`, found `{word}`"),
                format!("write `{symbol}`"),
            ))
        }
        TokenKind::Comma => Err(parser.error(
            "expected `&&` or `||`, found `,`",
            "join conditions with `&&`",
        )),
        _ => Err(parser.unexpected("`&&`, `||` or the end", "join conditions with `&&` or `||`")),
    }
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    depth: usize,
}

impl<'a> Parser<'_, 'a> {
    fn disjunction(&mut self) -> Result<Node, ParseError> {
        let mut operands = vec![self.conjunction()?];
        while self.eat(TokenKind::Or) {
            operands.push(self.conjunction()?);
        }
        Ok(Node::disjunction(operands))
    }

    fn conjunction(&mut self) -> Result<Node, ParseError> {
        let mut operands = vec![self.unary()?];
        while self.eat(TokenKind::And) {
            operands.push(self.unary()?);
        }
        Ok(Node::conjunction(operands))
    }

    fn unary(&mut self) -> Result<Node, ParseError> {
        let mut negations = 0_usize;
        while self.eat(TokenKind::Not) {
            negations += 1;
        }
        let node = self.primary()?;
        Ok(if negations % 2 == 1 {
            node.negated()
        } else {
            node
        })
    }

    fn primary(&mut self) -> Result<Node, ParseError> {
        let (word, call) = match self.peek() {
            TokenKind::LeftParen => return self.group(),
            TokenKind::Word(word) => (word, self.peek_after() == TokenKind::LeftParen),
            TokenKind::Text(text) => {
                return Err(self.error(
                    "expected a label name, found a string",
                    format!("label names are not quoted: `{text} == 'value'`"),
                ));
            }
            _ => {
                return Err(self.unexpected(
                    "a condition",
                    "a condition is `label == 'value'`, `has(label)`, `all()` or one of their kind",
                ));
            }
        };
        match (word, call) {
            ("all", true) => self.nullary(Node::All),
            ("global", true) => self.nullary(Node::Global),
            ("has", true) => self.has(),
            (_, true) => Err(self.error(
                format!("there is no function `{word}`"),
                "the functions are `has(label)`, `all()` and `global()`",
            )),
            (_, false) => self.comparison(word),
        }
    }

    fn group(&mut self) -> Result<Node, ParseError> {
        let opened = self.at;
        if self.depth == MAX_DEPTH {
            return Err(self.error(
                format!("parentheses nest deeper than {MAX_DEPTH}"),
                "remove parentheses that change nothing, or split the rule",
            ));
        }
        self.advance();
        self.depth += 1;
        let node = self.disjunction()?;
        self.depth -= 1;
        self.close(opened)?;
        Ok(node)
    }

    fn nullary(&mut self, node: Node) -> Result<Node, ParseError> {
        self.advance();
        self.advance();
        if self.eat(TokenKind::RightParen) {
            return Ok(node);
        }
        Err(self.unexpected(
            "`)`",
            "`all()` and `global()` have nothing between the parentheses",
        ))
    }

    fn has(&mut self) -> Result<Node, ParseError> {
        self.advance();
        let opened = self.at;
        self.advance();
        let label = match self.peek() {
            TokenKind::Word(label) => label,
            TokenKind::Text(text) => {
                return Err(self.error(
                    "expected a label name, found a string",
                    format!("label names are not quoted: `has({text})`"),
                ));
            }
            _ => return Err(self.unexpected("a label name", "write `has(label)`")),
        };
        self.advance();
        self.close(opened)?;
        Ok(Node::Has(label.to_owned()))
    }

    fn comparison(&mut self, label: &str) -> Result<Node, ParseError> {
        self.advance();
        let label = label.to_owned();
        let operator = self.peek();
        let TokenKind::Word(word) = operator else {
            let build = match operator {
                TokenKind::Equal => Node::Equal,
                TokenKind::NotEqual => Node::NotEqual,
                _ => return Err(self.no_operator(&label)),
            };
            self.advance();
            return Ok(build(label, self.value()?));
        };
        let two_words = match (word, self.peek_after()) {
            ("not", TokenKind::Word("in")) => "notin",
            ("starts", TokenKind::Word("with")) => "startswith",
            ("ends", TokenKind::Word("with")) => "endswith",
            _ => "",
        };
        if !two_words.is_empty() {
            self.advance();
        }
        match if two_words.is_empty() {
            word
        } else {
            two_words
        } {
            "in" => self.set().map(|values| Node::In(label, values)),
            "notin" => self.set().map(|values| Node::NotIn(label, values)),
            "contains" => self.operand().map(|part| Node::Contains(label, part)),
            "startswith" => self.operand().map(|start| Node::StartsWith(label, start)),
            "endswith" => self.operand().map(|end| Node::EndsWith(label, end)),
            _ => Err(self.no_operator(&label)),
        }
    }

    fn operand(&mut self) -> Result<String, ParseError> {
        self.advance();
        self.value()
    }

    fn value(&mut self) -> Result<String, ParseError> {
        let text = match self.peek() {
            TokenKind::Text(text) => text.to_owned(),
            TokenKind::Word(word) => {
                return Err(self.error(
                    format!("expected a string, found `{word}`"),
                    format!("quote the value: '{word}'"),
                ));
            }
            _ => return Err(self.unexpected("a string", "a value stands in quotes: 'value'")),
        };
        self.advance();
        Ok(text)
    }

    fn set(&mut self) -> Result<BTreeSet<String>, ParseError> {
        self.advance();
        if !self.eat(TokenKind::LeftBrace) {
            return Err(self.unexpected("`{`", "a set of values is written in braces: {'a', 'b'}"));
        }
        let mut values = BTreeSet::new();
        while self.peek() != TokenKind::RightBrace {
            values.insert(self.value()?);
            if !self.eat(TokenKind::Comma) {
                break;
            }
        }
        if self.eat(TokenKind::RightBrace) {
            return Ok(values);
        }
        Err(self.unexpected("`,` or `}`", "a set of values is written {'a', 'b'}"))
    }

    fn close(&mut self, opened: usize) -> Result<(), ParseError> {
        if self.eat(TokenKind::RightParen) {
            return Ok(());
        }
        if self.peek() == TokenKind::End {
            return Err(ParseError {
                span: self.tokens[opened].span.clone(),
                message: "this parenthesis is never closed".to_owned(),
                help: "add the closing `)`".to_owned(),
            });
        }
        Err(self.unexpected("`)`", "join conditions with `&&` or `||`"))
    }

    fn no_operator(&self, label: &str) -> ParseError {
        self.unexpected(
            &format!("an operator after the label name `{label}`"),
            "the operators are `==`, `!=`, `in`, `not in`, `contains`, `starts with` and `ends with`; \
             `has(label)` asks whether a label exists",
        )
    }

    fn unexpected(&self, expected: &str, help: &str) -> ParseError {
        self.error(format!("expected {expected}, found {}", self.peek()), help)
    }

    fn error(&self, message: impl Into<String>, help: impl Into<String>) -> ParseError {
        ParseError {
            span: self.tokens[self.at].span.clone(),
            message: message.into(),
            help: help.into(),
        }
    }

    fn peek(&self) -> TokenKind<'a> {
        self.tokens[self.at].kind
    }

    fn peek_after(&self) -> TokenKind<'a> {
        self.tokens
            .get(self.at + 1)
            .map_or(TokenKind::End, |token| token.kind)
    }

    fn eat(&mut self, kind: TokenKind<'_>) -> bool {
        let found = self.peek() == kind;
        if found {
            self.advance();
        }
        found
    }

    /// Moves on, but never past the `End` token.
    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }
}

impl fmt::Display for TokenKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Word(word) => return write!(f, "`{word}`"),
            Self::Text(text) => return write!(f, "the string '{text}'"),
            Self::Equal => "`==`",
            Self::NotEqual => "`!=`",
            Self::And => "`&&`",
            Self::Or => "`||`",
            Self::Not => "`!`",
            Self::LeftParen => "`(`",
            Self::RightParen => "`)`",
            Self::LeftBrace => "`{`",
            Self::RightBrace => "`}`",
            Self::Comma => "`,`",
            Self::End => "the end",
        };
        f.write_str(text)
    }
}
