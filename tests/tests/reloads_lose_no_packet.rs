//! A changed policy is in the kernel at once, and no packet on the way takes a third path or none.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Stage,
    client::{Conversation, Stream},
    resources::{Via, policy},
    server::ECHO_PORT,
    stage::From,
    topology::ELSEWHERE,
    wait,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

const LOCAL: [(&str, Via<'_>); 2] = [("10.0.0.0/8", Via::Local), ("fd00::/8", Via::Local)];

fn all_through(code: &str) -> String {
    let [v4, v6] = LOCAL;
    policy("egw-policy", &[v4, v6, ("", Via::Code(code))])
}

#[test]
fn every_packet_goes_the_old_way_or_the_new() -> Result<()> {
    let stage = Stage::of_examples()?;
    let web = &stage.pod("web")?.host;
    let elsewhere = ELSEWHERE.addresses();
    let unaffected = Conversation::start(&stage.pod("batch")?.host, ELSEWHERE.v4.into())?;
    for address in elsewhere {
        stage.expect_at("web", address, From::Gateway("blue"))?;
    }
    let streams = elsewhere.map(|address| Stream::start(web, SocketAddr::new(address, ECHO_PORT)));
    let mut delays = Vec::new();
    for code in ["red", "blue"].into_iter().cycle().take(20) {
        let expected = stage.gateway(code)?.egress_like(ELSEWHERE.v4.into());
        let seen_before = stage.internet.seen().len();
        stage.resources.write("policy.yaml", &all_through(code))?;
        let written = Instant::now();
        wait::until("packets take the new way", || {
            let seen = stage.internet.seen();
            ensure!(
                seen[seen_before..]
                    .iter()
                    .any(|datagram| datagram.from.ip() == expected)
            );
            Ok(())
        })?;
        delays.push(written.elapsed());
    }
    let mut sent = 0;
    for stream in streams {
        sent += stream.end()?;
    }
    let seen = wait::until("every packet arrives", || {
        let seen = stage.internet.seen();
        ensure!(
            seen.len() >= sent as usize,
            "{} of {sent} arrived",
            seen.len()
        );
        Ok(seen)
    })?;
    assert_eq!(seen.len(), sent as usize);
    let callers: BTreeSet<IpAddr> = seen.iter().map(|datagram| datagram.from.ip()).collect();
    let mut allowed = BTreeSet::new();
    for gateway in &stage.scene.gateways {
        allowed.extend([
            IpAddr::from(gateway.egress_v4),
            IpAddr::from(gateway.egress_v6),
        ]);
    }
    assert_eq!(callers, allowed);
    delays.sort();
    println!(
        "from the last write to the first packet on the new way: median {:?}, p99 of {} {:?}",
        delays[delays.len() / 2],
        delays.len(),
        delays[delays.len() * 99 / 100]
    );
    assert!(
        delays[delays.len() / 2] < Duration::from_millis(100),
        "{delays:?}"
    );
    unaffected.go_on(10)?;
    unaffected.end()?;
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}

#[test]
fn a_configmaps_symlink_swap_is_a_change() -> Result<()> {
    let stage = Stage::of_examples()?;
    let directory = stage.resources.directory().join("mounted");
    // As a kubelet mounts a ConfigMap: `policy.yaml` → `..data/policy.yaml`, `..data` → a dated directory.
    let put = |version: &str, code: &str| -> Result<()> {
        let dated = directory.join(version);
        std::fs::create_dir_all(&dated)?;
        std::fs::write(dated.join("policy.yaml"), all_through(code))?;
        let next = directory.join("..data_tmp");
        std::os::unix::fs::symlink(version, &next)?;
        std::fs::rename(&next, directory.join("..data"))?;
        Ok(())
    };
    put("..2026_1", "blue")?;
    std::os::unix::fs::symlink("..data/policy.yaml", directory.join("policy.yaml"))?;
    stage.resources.remove("policy.yaml")?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    put("..2026_2", "red")?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    put("..2026_3", "blue")?;
    stage.wait_until_seen("web", ELSEWHERE.v6.into(), From::Gateway("blue"))
}

/// The watch cannot see a mount: what is below it is found when the agent is told to look.
#[test]
fn sighup_reads_everything_again() -> Result<()> {
    let stage = Stage::of_examples()?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    let directory = stage.scene.files().join("behind");
    std::fs::create_dir(&directory)?;
    for entry in std::fs::read_dir(stage.resources.directory())? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        std::fs::copy(&path, directory.join(name))?;
    }
    std::fs::write(directory.join("policy.yaml"), all_through("red"))?;
    let _mount = Bind::over(&directory, stage.resources.directory())?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.agent()?.signal(Signal::SIGHUP)?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("red"))
}

/// A directory that shows another one's content.
struct Bind(PathBuf);

impl Bind {
    fn over(source: &Path, target: &Path) -> Result<Self> {
        let none = None::<&str>;
        mount(Some(source), target, none, MsFlags::MS_BIND, none)?;
        Ok(Self(target.to_owned()))
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let gone = umount2(&self.0, MntFlags::MNT_DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}
