use egress_common::{
    DropReason,
    counter::{Count, Direction},
};

use super::*;
use crate::explain;

fn rendered(what: Option<What>, output: Output) -> anyhow::Result<String> {
    let count = |packets, bytes| Count { packets, bytes };
    let node = explain::tests::node();
    let reading = Reading {
        members: vec![(0, count(5, 700)), (9, count(1, 60))],
        drops: vec![
            (0, DropReason::SpoofedSource, count(3, 180)),
            (1, DropReason::NoGateway, count(2, 120)),
        ],
        passes: vec![(1, egress_common::counter::PassKind::Local, count(4, 240))],
        translated: vec![(5, Direction::Out, count(6, 600))],
        gateway_drops: vec![(6, DropReason::NatNoState, count(7, 420))],
        ..Reading::default()
    };
    let map_use = [MapUse {
        name: "PODS".to_owned(),
        entries: 2,
        capacity: 4096,
        counted: None,
    }];
    let maps = Maps {
        kernel: &node.kernel,
        names: &node.names,
        reading: &reading,
        map_use: &map_use,
        interfaces: &node.interfaces,
    };
    let args = DumpArgs {
        what,
        output,
        connections: Connections::default(),
    };
    render(&args, &maps)
}

#[test]
fn tables_for_people() -> anyhow::Result<()> {
    insta::assert_snapshot!(rendered(None, Output::Table)?);
    Ok(())
}

#[test]
fn yaml_for_people_and_programs() -> anyhow::Result<()> {
    insta::assert_snapshot!(rendered(Some(What::Gateways), Output::Yaml)?);
    Ok(())
}

#[test]
fn json_has_the_parts_asked_for() -> anyhow::Result<()> {
    let all: serde_json::Value = serde_json::from_str(&rendered(None, Output::Json)?)?;
    let keys: Vec<_> = all.as_object().into_iter().flat_map(|o| o.keys()).collect();
    assert_eq!(
        keys,
        ["counters", "gateways", "pods", "policies", "prefixes"]
    );
    let pods: serde_json::Value = serde_json::from_str(&rendered(Some(What::Pods), Output::Json)?)?;
    assert_eq!(pods.as_object().map(serde_json::Map::len), Some(1));
    assert_eq!(pods["pods"][0]["policy"], "to-partners");
    Ok(())
}
