//! What compilations made of rules, for the next one: most have not changed.
//!
//! Rules are known by their address in memory, which they keep as long as they are remembered. What depends on the prefixes of
//! all is remembered as long as these stay the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    CompileError, NumberTable, distinct_members,
    prefixes::{Prefixes, Shape},
};
use crate::{
    resolve::EffectiveRule,
    rows::Row,
    state::{Limits, VerdictSpec},
};

/// What is remembered; it changes how long a compilation takes, and nothing else.
#[derive(Debug, Default)]
pub struct Memo {
    /// By the address of the rules, and the policy.
    tables: HashMap<(usize, String), KnownTable>,
    /// What else is known of tables, by their addresses.
    of_tables: HashMap<usize, OfTable>,
    prefixes: Option<Arc<Prefixes>>,
    cluster: BTreeSet<IpNet>,
    /// The tables that the prefixes are of.
    sources: Vec<Arc<NumberTable>>,
    rows: BTreeMap<Option<Arc<Shape>>, Known<Arc<Row>>>,
    /// How often there was a compilation.
    round: u64,
}

#[derive(Debug)]
struct Known<T> {
    is: T,
    /// The last compilation that needed it.
    round: u64,
}

#[derive(Debug)]
struct KnownTable {
    rules: Arc<[EffectiveRule]>,
    table: Arc<NumberTable>,
    round: u64,
}

#[derive(Debug)]
struct OfTable {
    table: Arc<NumberTable>,
    shape: Option<Arc<Shape>>,
    block: Option<Block>,
    round: u64,
}

/// The verdicts that a row of a policy names.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) verdicts: Arc<[VerdictSpec]>,
    /// How many members its distinct groups have.
    pub(super) members: usize,
    /// The devices where recorded replies arrive.
    pub(super) reply_interfaces: Arc<BTreeSet<u32>>,
}

impl Memo {
    /// Begins a compilation.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Forgets what the compilation had no use for.
    pub(super) fn end(&mut self) {
        let round = self.round;
        self.tables.retain(|_, known| known.round == round);
        self.of_tables.retain(|_, known| known.round == round);
        self.rows.retain(|_, known| known.round == round);
    }

    /// The table of a policy's rules.
    pub(super) fn table(
        &mut self,
        policy: &str,
        rules: &Arc<[EffectiveRule]>,
    ) -> Result<Arc<NumberTable>, CompileError> {
        let key = (rules.as_ptr().addr(), policy.to_owned());
        // Lists without rules may share an address.
        if let Some(known) = self.tables.get_mut(&key)
            && Arc::ptr_eq(&known.rules, rules)
        {
            known.round = self.round;
            return Ok(Arc::clone(&known.table));
        }
        let table = Arc::new(NumberTable::rules(policy, rules)?);
        let known = KnownTable {
            rules: Arc::clone(rules),
            table: Arc::clone(&table),
            round: self.round,
        };
        self.tables.insert(key, known);
        Ok(table)
    }

    /// The prefixes of all tables and of the cluster.
    pub(super) fn prefixes(
        &mut self,
        tables: &[Arc<NumberTable>],
        cluster: &BTreeSet<IpNet>,
    ) -> Arc<Prefixes> {
        let same = |(a, b): (&Arc<NumberTable>, &Arc<NumberTable>)| {
            Arc::ptr_eq(a, b)
                || a.numbers.len() == b.numbers.len()
                    && a.numbers.iter().zip(&b.numbers).all(|(a, b)| a.0 == b.0)
        };
        let is_known = self.cluster == *cluster
            && self.sources.len() == tables.len()
            && self.sources.iter().zip(tables).all(same);
        self.sources = tables.to_vec();
        if is_known && let Some(prefixes) = &self.prefixes {
            return Arc::clone(prefixes);
        }
        let nets = tables.iter().flat_map(|table| &table.numbers);
        let prefixes = Prefixes::new(nets.map(|(net, _)| *net).collect(), cluster);
        self.cluster.clone_from(cluster);
        if let Some(known) = &self.prefixes
            && known.is_same(&prefixes)
        {
            return Arc::clone(known);
        }
        for known in self.of_tables.values_mut() {
            known.shape = None;
        }
        self.rows.clear();
        Arc::clone(self.prefixes.insert(Arc::new(prefixes)))
    }

    /// The shape of a table's row among these prefixes, which are the last ones.
    pub(super) fn shape(&mut self, prefixes: &Prefixes, table: &Arc<NumberTable>) -> Arc<Shape> {
        let known = self.of_table(table);
        let shape = known
            .shape
            .get_or_insert_with(|| Arc::new(prefixes.shape(&table.numbers)));
        Arc::clone(shape)
    }

    /// The row of a shape among these prefixes, which are the last ones; without a shape the one of zeroes.
    pub(super) fn row(
        &mut self,
        prefixes: &Prefixes,
        shape: Option<Arc<Shape>>,
        limits: &Limits,
    ) -> Arc<Row> {
        if let Some(known) = self.rows.get_mut(&shape) {
            known.round = self.round;
            return Arc::clone(&known.is);
        }
        let row = Arc::new(match &shape {
            Some(shape) => prefixes.row(shape, limits),
            None => {
                let places = u32::try_from(prefixes.nets().len()).unwrap_or(u32::MAX);
                Row::new(places, [], limits)
            }
        });
        let known = Known {
            is: Arc::clone(&row),
            round: self.round,
        };
        self.rows.insert(shape, known);
        row
    }

    /// The verdicts of a table up to the highest number that its row has.
    ///
    /// What no cell names is not there, so that a block can be measured by looking at its rows.
    pub(super) fn block(&mut self, table: &Arc<NumberTable>, highest: u16) -> Block {
        let length = (usize::from(highest) + 1).min(table.verdicts.len());
        let known = self.of_table(table);
        if let Some(block) = &known.block
            && block.verdicts.len() == length
        {
            return block.clone();
        }
        let verdicts = if length == table.verdicts.len() {
            Arc::clone(&table.verdicts)
        } else {
            table.verdicts[..length].into()
        };
        let members = verdicts.iter().flat_map(VerdictSpec::members);
        let reply_interfaces = members.filter_map(|member| member.way.replies_from());
        let block = Block {
            members: distinct_members(verdicts.iter()),
            reply_interfaces: Arc::new(reply_interfaces.collect()),
            verdicts,
        };
        known.block.insert(block).clone()
    }

    fn of_table(&mut self, table: &Arc<NumberTable>) -> &mut OfTable {
        let known = self
            .of_tables
            .entry(Arc::as_ptr(table).addr())
            .or_insert_with(|| OfTable {
                table: Arc::clone(table),
                shape: None,
                block: None,
                round: 0,
            });
        debug_assert!(
            Arc::ptr_eq(&known.table, table),
            "what is remembered keeps its address"
        );
        known.round = self.round;
        known
    }
}
