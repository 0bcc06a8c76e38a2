//! Names of interfaces, as flags give them.

use std::fmt;

/// The kernel's limit of an interface's name, without the zero at its end.
const MAX_NAME: usize = 15;

/// Names of interfaces: one, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    /// Understands a name, or the beginning of names with `*` after it.
    ///
    /// # Errors
    /// A pattern for all interfaces, or one that no interface can have.
    pub fn new(text: &str) -> Result<Self, String> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        let forbidden =
            |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '*');
        if stem.is_empty() {
            return Err("would close every interface of the node".to_owned());
        }
        if stem.contains(forbidden) || matches!(text, "." | "..") {
            return Err(
                "is no interface's name, nor the beginning of one with * after it".to_owned(),
            );
        }
        if stem.len() > MAX_NAME {
            return Err(format!(
                "is longer than {MAX_NAME} bytes, as no interface's name is"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.is_prefix() {
            name.starts_with(self.stem())
        } else {
            name == self.0
        }
    }

    pub(super) fn is_prefix(&self) -> bool {
        self.0.ends_with('*')
    }

    pub(super) fn stem(&self) -> &str {
        self.0.strip_suffix('*').unwrap_or(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
