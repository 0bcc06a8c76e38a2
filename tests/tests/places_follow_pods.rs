//! Beside `PODS` the maps say where each pod is, and keep nothing of the pod that had a slot before.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use egress_common::{
    Addr, WireU16,
    keys::PodKey,
    maps::{NAT_OUT, POD_FACTS, POD_NOTES, POD_PLACES},
    pod::{PodFacts, PodNote, PodPlace, UdpPorts},
};
use egress_tests::workspace::Workspace;
use egress_userspace::kernel::{Capacities, Datapath, LoadOptions, Paths};

const HERE: u32 = 1001;
const THERE: u32 = 1002;

fn options(workspace: &Workspace) -> LoadOptions {
    LoadOptions {
        paths: Paths::new(workspace.bpffs().join("egress")),
        capacities: Capacities {
            pods: 16,
            prefixes: 64,
            verdicts: 64,
            members: 64,
            policies: 16,
            replies: 64,
            fragments: 64,
            nat_connections: 64,
            inbound: 64,
            flows: 64,
        },
        attach_mode: None,
        debug_log: false,
    }
}

fn key(ifindex: u32, last: u8) -> PodKey {
    PodKey {
        ifindex,
        addr: addr(last),
    }
}

fn addr(last: u8) -> Addr {
    IpAddr::from([10, 65, 0, last]).into()
}

fn open(paths: &Paths, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(paths.map(name))?)?)
}

fn places(paths: &Paths) -> Result<Vec<(Addr, u32, u32)>> {
    let map: HashMap<MapData, Addr, PodPlace> = open(paths, POD_PLACES)?.try_into()?;
    let mut places = Vec::new();
    for entry in map.iter() {
        let (addr, place) = entry?;
        places.push((addr, place.ifindex, place.slot));
    }
    places.sort_unstable();
    Ok(places)
}

#[test]
fn a_pod_is_where_its_interface_is() -> Result<()> {
    let workspace = Workspace::new()?;
    let options = options(&workspace);
    let paths = &options.paths;
    let mut datapath = Datapath::load(&options)?;
    let maps = &mut datapath.maps;
    maps.insert_pod(key(HERE, 2), 0)?;
    maps.insert_pod(key(HERE, 3), 1)?;
    assert_eq!(places(paths)?, [(addr(2), HERE, 0), (addr(3), HERE, 1)]);

    // While a pod moves it is on both; whichever goes, the other is its place.
    maps.insert_pod(key(THERE, 2), 2)?;
    maps.remove_pod(&key(HERE, 2))?;
    maps.insert_pod(key(THERE, 3), 3)?;
    maps.remove_pod(&key(THERE, 3))?;
    let expected = [(addr(2), THERE, 2), (addr(3), HERE, 1)];
    assert_eq!(places(paths)?, expected);

    // What a crash left between two writes is mended by the next run.
    let mut map: HashMap<MapData, Addr, PodPlace> = open(paths, POD_PLACES)?.try_into()?;
    map.remove(&addr(2))?;
    let (ifindex, slot) = (HERE, 7);
    map.insert(addr(3), PodPlace { ifindex, slot }, 0)?;
    map.insert(addr(4), PodPlace { ifindex, slot }, 0)?;
    drop(datapath);
    let mut datapath = Datapath::load(&options)?;
    assert_eq!(places(paths)?, expected);
    for key in [key(THERE, 2), key(HERE, 3)] {
        datapath.maps.remove_pod(&key)?;
        datapath.maps.remove_pod(&key)?;
    }
    assert_eq!(places(paths)?, []);
    Ok(())
}

#[test]
fn a_slot_forgets_who_had_it() -> Result<()> {
    let workspace = Workspace::new()?;
    let options = options(&workspace);
    let paths = &options.paths;
    let mut datapath = Datapath::load(&options)?;
    let mut notes: Array<MapData, PodNote> = open(paths, POD_NOTES)?.try_into()?;
    let learned = PodNote {
        pod_mac: 1,
        host_mac: 2,
        inbound: 1,
        pad: 0,
    };
    notes.set(5, learned, 0)?;
    notes.set(6, learned, 0)?;
    datapath.maps.insert_pod(key(HERE, 2), 5)?;
    assert_eq!(notes.get(&5, 0)?, PodNote::default());
    assert_eq!(notes.get(&6, 0)?, learned);

    let mut facts = PodFacts {
        mtu: 1450,
        udp: UdpPorts::default(),
    };
    facts.udp.count = 1;
    facts.udp.ports[0] = WireU16::new(53);
    ensure!(datapath.maps.set_facts(5, facts)?, "it was there");
    ensure!(!datapath.maps.set_facts(5, facts)?, "written again");
    let written: Array<MapData, PodFacts> = open(paths, POD_FACTS)?.try_into()?;
    assert_eq!(written.get(&5, 0)?, facts);
    ensure!(datapath.maps.set_facts(5, PodFacts::default())?);
    assert_eq!(written.get(&5, 0)?, PodFacts::default());
    Ok(())
}

#[test]
fn another_size_of_the_table_of_connections_names_its_flag() -> Result<()> {
    let workspace = Workspace::new()?;
    let mut options = options(&workspace);
    drop(Datapath::load(&options)?);
    options.capacities.nat_connections = 128;
    let refusal = Datapath::load(&options).err().context("it was loaded")?;
    let said = format!("{refusal:#}");
    for part in [NAT_OUT, "--nat-connections", "64", "128"] {
        ensure!(said.contains(part), "{said}");
    }
    Ok(())
}
