//! What something else takes off a hook is back within a second, and counted.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use egress_tests::{Stage, stage::From, topology::ELSEWHERE, wait};

#[test]
fn a_link_whose_pin_is_removed_is_put_back() -> Result<()> {
    let stage = Stage::of_examples()?;
    let interface = &stage.pod("web")?.interface;
    let before = stage.scene.node.programs_on(interface)?;
    let links = stage.setup.pin_dir().join("links");
    let mut removed = 0;
    for entry in fs::read_dir(&links)? {
        // The pin is all that holds a link.
        fs::remove_file(entry?.path())?;
        removed += 1;
    }
    wait::until_within("every link is back", Duration::from_secs(2), || {
        let metrics = stage.metrics()?;
        let reattached = metrics.sum("egress_programs_reattached_total", &[]);
        ensure!(reattached == removed, "{reattached} of {removed} are back");
        let after = stage.scene.node.programs_on(interface)?;
        ensure!(after.len() == before.len(), "{before:?} became {after:?}");
        Ok(())
    })?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
