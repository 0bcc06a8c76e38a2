//! The standing table of nftables: interfaces that a pattern names are closed unless they are in a set.
//!
//! Netfilter keeps it without us, so an interface that appears while nobody runs is closed from its first packet
//! on. The set has indices, not names: an index is not given out again while the node runs, whereas the next pod of
//! the same name often gets an interface of the same name. Packets are looked at before routing, which is before
//! the kernel knows whether they are for the node or for others; frames of bridges' ports in a table of their own.

mod pattern;
mod rules;
mod wire;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use egress_common::counter::Count;

pub use self::pattern::Pattern;
use self::{
    rules::{CLOSED, HOOKED, OBJECT_COUNTER, rules},
    wire::{
        Attributes, Connection, Family, Message, Transaction, attribute, is_missing, is_unknown,
        long, number, parse,
    },
};

const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];
const SET: &str = "programmed";
const SET_ID: u32 = 1;
/// Before all else, fragments' reassembly included (`NF_IP_PRI_CONNTRACK_DEFRAG` is -400).
const PRIORITY: i32 = -500;
/// `NF_INET_PRE_ROUTING` and `NF_BR_PRE_ROUTING` are the same number.
const PREROUTING: u32 = 0;
/// How `nft` shows the set's keys: interfaces' indices in host byte order (`TYPE_IFINDEX`).
const KEY_TYPE: u32 = 20;
const KEY_BYTE_ORDER: [u8; 6] = host_byte_order();
/// Elements of one message: their list must fit an attribute of 64 KiB.
const ELEMENTS: usize = 1024;
/// `NFTNL_UDATA_TABLE_COMMENT`, which `nft` shows.
const COMMENT: u8 = 0;
/// The kernel takes no more than 256 bytes of user data, and `nft` no more than 128 of a comment.
const MAX_COMMENT: usize = 120;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const ACCEPT: u32 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_IDENTITY: u16 = 10;
const SET_USERDATA: u16 = 13;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const GENERATION: u16 = 1;

/// One agent's table, in each family.
#[derive(Clone, Debug)]
pub struct HoldTable {
    name: String,
    /// Whose table it is: what nobody else's table of this name says.
    comment: String,
}

/// What the kernel has of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The interfaces in the set, by index.
    pub open: BTreeSet<u32>,
    /// What was held back so far.
    pub held: Count,
    /// What tells these rules from all others that ever were.
    rules: Vec<u64>,
    /// Whether all families have the same interfaces.
    agrees: bool,
    /// Whether frames of bridges' ports are looked at too.
    pub bridges: bool,
}

impl HoldTable {
    /// The table of the agent that pins in `pin_dir`.
    #[must_use]
    pub fn of(pin_dir: &std::path::Path) -> Self {
        let path = pin_dir.to_string_lossy();
        let place = path.strip_prefix("/sys/fs/bpf/").unwrap_or(&path);
        let tame = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let place: String = place.trim_matches('/').chars().map(tame).collect();
        let name = if place.starts_with("egress") {
            place
        } else {
            format!("egress-{place}")
        };
        Self {
            name,
            comment: format!("egress: {path}")
                .chars()
                .filter(char::is_ascii)
                .take(MAX_COMMENT)
                .collect(),
        }
    }

    /// The table's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts rules and set there, whatever was there before, in one step. What the counter had stays; one that is new
    /// begins at `held`. Says whether frames of bridges' ports are looked at.
    ///
    /// # Errors
    /// The table is somebody else's, or the kernel refuses.
    pub fn install(&self, patterns: &[Pattern], open: &BTreeSet<u32>, held: Count) -> Result<bool> {
        let connection = Connection::open()?;
        for family in FAMILIES {
            // Packets held before were of both; one counter goes on with all of them.
            let begin = if family == Family::Inet {
                held
            } else {
                Count::default()
            };
            let result = self.check_owner(&connection, family).and_then(|()| {
                let transaction = self.installation(family, patterns, open, begin);
                connection.commit(&transaction)
            });
            match result {
                Ok(()) => {}
                Err(error)
                    if family == Family::Bridge && (is_missing(&error) || is_unknown(&error)) =>
                {
                    return Ok(false);
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!(
                            "cannot put up the nftables table {}, which closes new interfaces: it needs CAP_NET_ADMIN \
                             and a kernel with nf_tables",
                            self.name
                        )
                    });
                }
            }
        }
        Ok(true)
    }

    /// Opens and closes interfaces, by index.
    ///
    /// # Errors
    /// The kernel refuses: nothing is opened then.
    pub fn change(&self, close: &BTreeSet<u32>, open: &BTreeSet<u32>, bridges: bool) -> Result<()> {
        let mut transaction = Transaction::default();
        for family in FAMILIES {
            if family == Family::Bridge && !bridges {
                continue;
            }
            for list in self.elements(close) {
                transaction.remove(family, Message::DelElement, list);
            }
            for list in self.elements(open) {
                transaction.add(family, Message::NewElement, list);
            }
        }
        Connection::open()?
            .commit(&transaction)
            .with_context(|| format!("cannot change the set of the nftables table {}", self.name))
    }

    /// Reads what the kernel has; none where there is no such table, or only a part of it.
    ///
    /// # Errors
    /// The table is somebody else's, or cannot be read.
    pub fn read(&self) -> Result<Option<Standing>> {
        let connection = Connection::open()?;
        let mut standing = Standing::default();
        for family in FAMILIES {
            let found = match self.read_family(&connection, family) {
                Err(error) if family == Family::Bridge && is_unknown(&error) => None,
                read => {
                    read.with_context(|| format!("cannot read the nftables table {}", self.name))?
                }
            };
            match (family, found) {
                (Family::Inet, None) => return Ok(None),
                (Family::Inet, Some(found)) => standing = found,
                (Family::Bridge, None) => standing.bridges = false,
                (Family::Bridge, Some(found)) => {
                    standing.bridges = true;
                    standing.held.packets += found.held.packets;
                    standing.held.bytes += found.held.bytes;
                    standing.rules.extend(found.rules);
                    // Open is what both let through.
                    standing.agrees = standing.open == found.open;
                    standing.open = &standing.open & &found.open;
                }
            }
        }
        Ok(Some(standing))
    }

    /// Removes the table. Says whether there was one.
    ///
    /// # Errors
    /// The table is somebody else's, or the kernel refuses.
    pub fn remove(&self) -> Result<bool> {
        let connection = match Connection::open() {
            Err(error) if is_unknown(&error) => return Ok(false),
            connection => connection?,
        };
        let mut removed = false;
        for family in FAMILIES {
            let table = Attributes::new().text(TABLE_NAME, &self.name);
            match connection.get(family, Message::GetTable, &table) {
                Ok(None) => continue,
                // Without nftables there is no table.
                Err(error) if is_unknown(&error) => continue,
                Ok(Some(_)) | Err(_) => self.check_owner(&connection, family)?,
            }
            let mut transaction = Transaction::default();
            transaction.remove(family, Message::DelTable, table);
            match connection.commit(&transaction) {
                Ok(()) => removed = true,
                Err(error) if is_missing(&error) => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot remove the nftables table {}", self.name)
                    });
                }
            }
        }
        Ok(removed)
    }

    fn check_owner(&self, connection: &Connection, family: Family) -> Result<()> {
        let table = Attributes::new().text(TABLE_NAME, &self.name);
        let Some(found) = connection.get(family, Message::GetTable, &table)? else {
            return Ok(());
        };
        let comment = attribute(&found, TABLE_USERDATA).and_then(comment);
        if comment.as_deref() != Some(&self.comment) {
            bail!(
                "there is an nftables table {} already that is not this agent's{}: rename or remove it, or choose \
                 another --pin-dir",
                self.name,
                comment.map_or_else(String::new, |comment| format!(
                    " (its comment says {comment:?})"
                ))
            );
        }
        Ok(())
    }

    fn installation(
        &self,
        family: Family,
        patterns: &[Pattern],
        open: &BTreeSet<u32>,
        held: Count,
    ) -> Transaction {
        let mut all = Transaction::default();
        all.add(
            family,
            Message::NewTable,
            Attributes::new()
                .text(TABLE_NAME, &self.name)
                .bytes(TABLE_USERDATA, &commented(&self.comment)),
        );
        let chain = |name| {
            Attributes::new()
                .text(CHAIN_TABLE, &self.name)
                .text(CHAIN_NAME, name)
        };
        let hook = Attributes::new()
            .number(HOOK_NUMBER, PREROUTING)
            .bytes(HOOK_PRIORITY, &PRIORITY.to_be_bytes());
        all.add(
            family,
            Message::NewChain,
            chain(HOOKED)
                .nested(CHAIN_HOOK, &hook)
                .number(CHAIN_POLICY, ACCEPT)
                .text(CHAIN_TYPE, "filter"),
        );
        all.add(family, Message::NewChain, chain(CLOSED));
        let count = Attributes::new()
            .long(COUNTER_BYTES, held.bytes)
            .long(COUNTER_PACKETS, held.packets);
        all.add(
            family,
            Message::NewObject,
            Attributes::new()
                .text(OBJECT_TABLE, &self.name)
                .text(OBJECT_NAME, counter(family))
                .number(OBJECT_TYPE, OBJECT_COUNTER)
                .nested(OBJECT_DATA, &count),
        );
        all.add(
            family,
            Message::NewSet,
            Attributes::new()
                .text(SET_TABLE, &self.name)
                .text(SET_NAME, SET)
                .number(SET_FLAGS, 0)
                .number(SET_KEY_TYPE, KEY_TYPE)
                .number(SET_KEY_LEN, 4)
                .number(SET_IDENTITY, SET_ID)
                .bytes(SET_USERDATA, &KEY_BYTE_ORDER),
        );
        let everything = Attributes::new()
            .text(ELEMENTS_TABLE, &self.name)
            .text(ELEMENTS_SET, SET);
        all.remove(family, Message::DelElement, everything);
        for list in self.elements(open) {
            all.add(family, Message::NewElement, list);
        }
        for name in [HOOKED, CLOSED] {
            let rules = Attributes::new()
                .text(RULE_TABLE, &self.name)
                .text(RULE_CHAIN, name);
            all.remove(family, Message::DelRule, rules);
        }
        for (chain, expressions) in rules(family, patterns) {
            all.add(
                family,
                Message::NewRule,
                Attributes::new()
                    .text(RULE_TABLE, &self.name)
                    .text(RULE_CHAIN, chain)
                    .nested(RULE_EXPRESSIONS, &expressions),
            );
        }
        all
    }

    fn elements(&self, indices: &BTreeSet<u32>) -> Vec<Attributes> {
        let indices: Vec<u32> = indices.iter().copied().collect();
        let lists = indices.chunks(ELEMENTS).map(|some| {
            let list = some.iter().fold(Attributes::new(), |list, index| {
                let value = Attributes::new().bytes(DATA_VALUE, &index.to_ne_bytes());
                list.nested(LIST_ELEMENT, &Attributes::new().nested(ELEMENT_KEY, &value))
            });
            Attributes::new()
                .text(ELEMENTS_TABLE, &self.name)
                .text(ELEMENTS_SET, SET)
                .nested(ELEMENTS_LIST, &list)
        });
        lists.collect()
    }

    fn read_family(&self, connection: &Connection, family: Family) -> Result<Option<Standing>> {
        self.check_owner(connection, family)?;
        let wanted = Attributes::new()
            .text(OBJECT_TABLE, &self.name)
            .text(OBJECT_NAME, counter(family))
            .number(OBJECT_TYPE, OBJECT_COUNTER);
        let Some(counted) = connection.get(family, Message::GetObject, &wanted)? else {
            return Ok(None);
        };
        let table = Attributes::new().text(RULE_TABLE, &self.name);
        let rules = connection.list(family, Message::GetRule, &table)?;
        let rules = rules
            .iter()
            .filter_map(|rule| long(attribute(rule, RULE_HANDLE)?))
            .collect();
        let set = Attributes::new()
            .text(ELEMENTS_TABLE, &self.name)
            .text(ELEMENTS_SET, SET);
        let elements = connection.list(family, Message::GetElement, &set)?;
        let open = elements
            .iter()
            .filter_map(|part| attribute(part, ELEMENTS_LIST))
            .flat_map(parse)
            .filter_map(|(_, element)| {
                let value = attribute(attribute(element, ELEMENT_KEY)?, DATA_VALUE)?;
                Some(u32::from_ne_bytes(value.try_into().ok()?))
            })
            .collect();
        let count = |kind| {
            let data = attribute(&counted, OBJECT_DATA)?;
            long(attribute(data, kind)?)
        };
        Ok(Some(Standing {
            open,
            held: Count {
                packets: count(COUNTER_PACKETS).unwrap_or_default(),
                bytes: count(COUNTER_BYTES).unwrap_or_default(),
            },
            rules,
            bridges: false,
            agrees: true,
        }))
    }
}

impl Standing {
    /// Whether nobody has changed what was there when `before` was read, but for what was counted.
    #[must_use]
    pub fn is_as(&self, before: &Self) -> bool {
        self.agrees
            && self.rules == before.rules
            && self.bridges == before.bridges
            && self.open == before.open
    }
}

/// A number that grows with every change of any table, of whoever.
///
/// # Errors
/// The kernel does not tell.
pub fn generation() -> Result<u32> {
    let answer = Connection::open()?
        .get(Family::Inet, Message::GetGeneration, &Attributes::new())
        .context("cannot ask for the generation of nftables")?
        .context("nftables tells no generation")?;
    let number = attribute(&answer, GENERATION).and_then(number);
    number.context("nftables tells a generation that is no number")
}

/// The counter of what was dropped. Whoever lists counters sees both, so they have names of their own.
const fn counter(family: Family) -> &'static str {
    match family {
        Family::Inet => "held",
        Family::Bridge => "held_by_bridges",
    }
}

/// A comment as nftables' user data: type, length, text with a zero at its end.
fn commented(comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().chain([0]).collect();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [vec![COMMENT, length], text].concat()
}

fn comment(userdata: &[u8]) -> Option<String> {
    let (&[kind, length], rest) = userdata.split_first_chunk::<2>()?;
    let text = rest.get(..usize::from(length))?.strip_suffix(&[0])?;
    (kind == COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

/// `NFTNL_UDATA_SET_KEYBYTEORDER`, four bytes, `BYTEORDER_HOST_ENDIAN`.
const fn host_byte_order() -> [u8; 6] {
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
}

#[cfg(test)]
mod tests;
