//! The egress gateway's userspace: policies in, BPF maps and counters out.
//!
//! Data flows one way: `sources` → `resources` → `model` → `resolve` → `compile` → `state` → `diff` →
//! `kernel`. ARCHITECTURE.md walks through it.

pub mod agent;
pub mod cli;
pub mod commands;
pub mod compile;
pub mod counters;
pub mod diagnostic;
pub mod diff;
pub mod explain;
pub mod gateway_id;
pub mod health;
pub mod http;
pub mod kernel;
pub mod lint;
pub mod metrics;
pub mod model;
pub mod nat;
pub mod network_policies;
pub mod node;
pub mod overlay_keys;
pub mod privileges;
pub mod resolve;
pub mod resources;
pub mod rows;
pub mod selector;
pub mod settings;
pub mod snapshot;
pub mod sources;
pub mod state;
pub mod state_dir;
pub mod translation;
pub mod trie;

#[cfg(test)]
mod tests {
    #[test]
    fn every_module_has_its_place_in_the_architecture() {
        let rows = include_str!("../../ARCHITECTURE.md").lines();
        let named: Vec<&str> = rows
            .filter_map(|row| row.strip_prefix("| ")?.split(" | ").next())
            .flat_map(|cell| cell.split(", "))
            .filter_map(|word| word.strip_prefix('`')?.strip_suffix('`'))
            .collect();
        let modules = include_str!("lib.rs").lines();
        for module in modules.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
            let places = named.iter().filter(|name| **name == module).count();
            assert_eq!(places, 1, "{module}");
        }
    }
}
