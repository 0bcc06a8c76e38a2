//! The overlay's shared keys, and the tags that they make.

use std::{fmt, io, path::Path};

use egress_common::overlay::Tag;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The shortest key, in bytes: what nobody tries out.
const SHORTEST: usize = 16;
/// The one in use, and the one that is on its way in or out.
const MOST: usize = 2;
/// What the hash begins with, so that the same key may serve something else.
const PURPOSE: &[u8] = b"egress overlay 1";

/// One or two keys that the cluster's nodes share: frames are sent with the first, and taken with any.
#[derive(Clone, PartialEq, Eq)]
pub struct OverlayKeys {
    first: Vec<u8>,
    second: Option<Vec<u8>>,
}

/// Why there are no keys. Never says what they are.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the overlay's key file {file} cannot be read: {error}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// There is none.
    #[error(
        "there is no key: write one on a line of its own, at least {SHORTEST} bytes long, the same on every node"
    )]
    None,
    /// There are too many.
    #[error(
        "line {line} is the third key, and there can be two: take out the one that no node uses any more"
    )]
    TooMany {
        /// The line, from 1.
        line: usize,
    },
    /// One is too short.
    #[error(
        "the key on line {line} has {bytes} bytes, and at least {SHORTEST} are needed: make a longer one at random"
    )]
    TooShort {
        /// The line, from 1.
        line: usize,
        /// How long it is.
        bytes: usize,
    },
    /// They are the same.
    #[error("line {line} is the first key once more: write another, or take it out")]
    Twice {
        /// The line, from 1.
        line: usize,
    },
    /// What is wrong in a file.
    #[error("the overlay's key file {file}: {error}")]
    InFile {
        /// The file.
        file: String,
        /// What.
        error: Box<Self>,
    },
}

impl OverlayKeys {
    /// Reads a file with a key on each line; blank lines and lines that begin with `#` count for nothing.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold one or two good keys.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let file = || path.display().to_string();
        let text = std::fs::read(path).map_err(|error| KeyError::Unreadable {
            file: file(),
            error,
        })?;
        Self::parse(&text).map_err(|error| KeyError::InFile {
            file: file(),
            error: Box::new(error),
        })
    }

    /// Reads the content of such a file.
    ///
    /// # Errors
    /// If it does not hold one or two good keys.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let mut keys: Vec<&[u8]> = Vec::new();
        for (line, key) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let key = key.trim_ascii();
            if key.is_empty() || key.starts_with(b"#") {
                continue;
            }
            if keys.len() == MOST {
                return Err(KeyError::TooMany { line });
            }
            if key.len() < SHORTEST {
                let bytes = key.len();
                return Err(KeyError::TooShort { line, bytes });
            }
            if keys.contains(&key) {
                return Err(KeyError::Twice { line });
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter().map(<[u8]>::to_vec);
        Ok(Self {
            first: keys.next().ok_or(KeyError::None)?,
            second: keys.next(),
        })
    }

    /// A key that is no secret: for answers about a node that nobody sends from.
    #[must_use]
    pub fn assumed() -> Self {
        Self {
            first: vec![0; SHORTEST],
            second: None,
        }
    }

    /// The tag of frames from `sender` to `receiver`, by their nodes' names.
    #[must_use]
    pub fn tag(&self, vni: u32, sender: &str, receiver: &str) -> Tag {
        tag(&self.first, vni, sender, receiver)
    }

    /// The tags that such frames may have: of the first key and of the second; zero is none.
    #[must_use]
    pub fn accepted(&self, vni: u32, sender: &str, receiver: &str) -> [Tag; 2] {
        let second = self.second.as_deref();
        [
            self.tag(vni, sender, receiver),
            second.map_or(Tag::ZERO, |key| tag(key, vni, sender, receiver)),
        ]
    }
}

impl fmt::Debug for OverlayKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = 1 + usize::from(self.second.is_some());
        write!(f, "OverlayKeys({count} secret)")
    }
}

/// The first 48 bits of HMAC-SHA256 over purpose, network identifier (4 bytes, big endian), and each name after
/// its length (2 bytes, big endian). All zero means "none" and is never a tag: 1 stands for it.
///
/// Agents of different releases must agree, so this never changes.
fn tag(key: &[u8], vni: u32, sender: &str, receiver: &str) -> Tag {
    #[expect(
        clippy::expect_used,
        reason = "HMAC takes keys of any length (RFC 2104, 2)"
    )]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(PURPOSE);
    mac.update(&vni.to_be_bytes());
    for name in [sender, receiver] {
        // Kubernetes allows 253 bytes; a name beyond 65,535 would only weaken what tells the two apart.
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
        mac.update(&length.to_be_bytes());
        mac.update(name.as_bytes());
    }
    let hash = mac.finalize().into_bytes();
    match Tag([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]]) {
        Tag::ZERO => Tag([0, 0, 0, 0, 0, 1]),
        tag => tag,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ONE: &str = "0123456789abcdef";
    const OTHER: &str = "another key, of 32 bytes exactly";

    fn parsed(text: &str) -> OverlayKeys {
        OverlayKeys::parse(text.as_bytes()).unwrap()
    }

    fn hex(tag: Tag) -> String {
        tag.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn tags_never_change() {
        // From the definition, by other means: Python's hmac and hashlib.
        for (key, vni, sender, receiver, expected) in [
            (ONE, 4097, "node-a", "node-b", "42d7867a0e58"),
            (ONE, 4097, "node-b", "node-a", "3a00c6b93970"),
            (OTHER, 4097, "node-a", "node-b", "f9b601184c60"),
            (ONE, 4098, "node-a", "node-b", "fdbeef6aa42e"),
            (ONE, 4097, "node-an", "ode-b", "4053c9bbbd6e"),
        ] {
            let tag = parsed(key).tag(vni, sender, receiver);
            assert_eq!(hex(tag), expected, "{vni} {sender} {receiver}");
        }
    }

    #[test]
    fn frames_are_sent_with_the_first_key_and_taken_with_either() {
        let (one, other) = (parsed(ONE), parsed(OTHER));
        let tag = |keys: &OverlayKeys| keys.tag(1, "a", "b");
        let both = parsed(&format!("# rotated in May\n\n  {ONE}\r\n{OTHER}\n"));
        assert_eq!(tag(&both), tag(&one));
        assert_eq!(both.accepted(1, "a", "b"), [tag(&one), tag(&other)]);
        assert_eq!(one.accepted(1, "a", "b"), [tag(&one), Tag::ZERO]);
    }

    #[test]
    fn bad_files_are_refused_without_saying_what_is_in_them() {
        for (text, part) in [
            (String::new(), "no key"),
            (format!("# {ONE}\n\n"), "no key"),
            (format!("{ONE}\nsecret\n"), "line 2 has 6 bytes"),
            (format!("{ONE}\n{OTHER}\n\nyet-another-secret\n"), "line 4"),
            (
                format!("{ONE}\n{ONE}\n"),
                "line 2 is the first key once more",
            ),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let error = OverlayKeys::read(file.path()).unwrap_err();
            for said in [error.to_string(), format!("{error:?}")] {
                assert!(!said.contains("secret") && !said.contains(ONE), "{said}");
            }
            let said = error.to_string();
            assert!(said.contains(part), "{part:?} is not in {said:?}");
            assert!(said.contains(&file.path().display().to_string()), "{said}");
        }
        let missing = OverlayKeys::read(Path::new("/nonexistent/key")).unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent/key"),
            "{missing}"
        );
    }

    #[test]
    fn nobody_prints_a_key() {
        let said = format!("{:?}", parsed(&format!("{ONE}\n{OTHER}")));
        assert_eq!(said, "OverlayKeys(2 secret)");
    }
}
