//! Flags, the configuration file, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::io::Write as _;

use egress_common::nat::NatState;

use super::*;

fn config(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn flags_win_over_the_file() {
    let file = config("resources: [/a]\nnode: file\nmax-pods: 7\nlocal-cidr: [10.0.0.0/8]\n");
    let flags = Flags {
        node: Some("flag".to_owned()),
        ..Flags::default()
    };
    let settings = flags.settings(Some(file.path())).unwrap();
    assert_eq!(settings.resolve.node_name, "flag");
    assert_eq!(settings.resources, [PathBuf::from("/a")]);
    assert_eq!(
        (settings.limits.pods, settings.load.capacities.pods),
        (7, 7)
    );
    assert_eq!(
        settings.resolve.local_cidrs,
        ["10.0.0.0/8".parse().unwrap()]
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    let file = config("resources: [/a]\nnodes: x\n");
    let error = format!(
        "{:#}",
        Flags::default().settings(Some(file.path())).unwrap_err()
    );
    assert!(
        error.contains("nodes") && error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn each_pin_directory_has_its_state_directory() {
    let places = Places {
        pin_dir: Some("/sys/fs/bpf/a/b".into()),
        state_dir: None,
    };
    assert_eq!(places.state_dir(), Path::new("/run/egress/sys-fs-bpf-a-b"));
}

#[test]
fn network_policies_are_passed_by_only_if_somebody_says_so() {
    for (line, accepted) in [
        ("", false),
        ("accept-networkpolicy-bypass: false", false),
        ("accept-networkpolicy-bypass: true", true),
    ] {
        let file = config(&format!("resources: [/a]\n{line}\n"));
        let settings = Flags::default().settings(Some(file.path())).unwrap();
        assert_eq!(
            settings.resolve.accept_networkpolicy_bypass, accepted,
            "{line}"
        );
    }
}

#[test]
fn interfaces_to_hold_are_patterns() {
    let file = config("resources: [/a]\nhold-interfaces: ['cali*', lxc7]\n");
    let settings = Flags::default().settings(Some(file.path())).unwrap();
    let patterns: Vec<_> = settings
        .hold_interfaces
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(patterns, ["cali*", "lxc7"]);
    let file = config("resources: [/a]\nhold-interfaces: ['*']\n");
    let refusal = Flags::default().settings(Some(file.path())).unwrap_err();
    assert!(refusal.to_string().contains("every interface"), "{refusal}");
}

#[test]
fn a_mark_is_one_bit_or_none() {
    assert_eq!(settings("").mark.bit(), 0x1000);
    for (text, bit) in [
        ("0x20", 0x20),
        ("64", 64),
        ("0x80000000", 1 << 31),
        ("off", 0),
    ] {
        assert_eq!(
            settings(&format!("--mark {text}")).mark.bit(),
            bit,
            "{text}"
        );
        let file = config(&format!("resources: [/a]\nmark: {text}\n"));
        let settings = Flags::default().settings(Some(file.path())).unwrap();
        assert_eq!(settings.mark.bit(), bit, "mark: {text}");
        assert_eq!(settings.mark.to_string().parse(), Ok(settings.mark));
    }
}

#[test]
fn no_resources_is_an_error() {
    assert!(Flags::default().settings(None).is_err());
}

/// The flags of a command line.
fn flags(line: &str) -> Result<Flags, clap::Error> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }
    let words = ["egress", "--resources", "/a", "--node", "n"];
    let line = words.into_iter().chain(line.split_whitespace());
    <Line as clap::Parser>::try_parse_from(line).map(|line| line.flags)
}

fn settings(line: &str) -> Settings {
    flags(line).unwrap().settings(None).unwrap()
}

#[test]
fn gateways_on_nodes_have_defaults() {
    let settings = settings("");
    assert_eq!(settings.overlay, None);
    assert_eq!(settings.nat, NatOptions::default());
    assert_eq!(settings.nat.source_quota, 262_144 / 16);
    assert_eq!(
        settings.resolve,
        resolve::Settings {
            node_name: "n".to_owned(),
            ..resolve::Settings::default()
        }
    );
    assert_eq!(settings.load.capacities, Capacities::default());
}

#[test]
fn flags_and_file_say_the_same_of_gateways_on_nodes() {
    let line = "--uplink eth0 --uplink eth1 --pod-gateways forward --overlay-key-file /k --overlay-device vx0 \
                --overlay-port 9000 --overlay-vni 7 --overlay-fast-path=false --nat-connections 1000 --nat-source-quota 10 --nat-port-range \
                2000-3000 --nat-timeout udp=5 --nat-timeout tcp-established=60 --max-flows 5 --max-inbound 6";
    let file = config(
        "{resources: [/a], node: n, uplink: [eth0, eth1], pod-gateways: forward, overlay-key-file: /k, \
         overlay-device: vx0, overlay-port: 9000, overlay-vni: 7, overlay-fast-path: false, nat-connections: 1000, nat-source-quota: 10, \
         nat-port-range: 2000-3000, nat-timeout: [udp=5, tcp-established=60], max-flows: 5, max-inbound: 6}",
    );
    for settings in [
        settings(line),
        Flags::default().settings(Some(file.path())).unwrap(),
    ] {
        assert_eq!(settings.resolve.uplinks, ["eth0", "eth1"]);
        assert_eq!(settings.resolve.uplinks, ["eth0", "eth1"]);
        assert_eq!(settings.resolve.pod_gateways, PodGateways::Forward);
        assert_eq!(settings.resolve.nat_ports, (2000, 3000));
        let overlay = OverlayOptions {
            device: "vx0".to_owned(),
            port: 9000,
            vni: 7,
            key_file: "/k".into(),
            fast_path: false,
        };
        assert_eq!(settings.overlay, Some(overlay));
        let mut nat = NatOptions {
            connections: 1000,
            source_quota: 10,
            ports: (2000, 3000),
            ..NatOptions::default()
        };
        nat.timeouts[NatState::Udp as usize] = 5;
        nat.timeouts[NatState::TcpEstablished as usize] = 60;
        assert_eq!(settings.nat, nat);
        let capacities = &settings.load.capacities;
        assert_eq!(
            (
                capacities.nat_connections,
                capacities.flows,
                capacities.inbound
            ),
            (1000, 5, 6)
        );
    }
}

#[test]
fn a_quota_is_never_nothing() {
    assert_eq!(settings("--nat-connections 7").nat.source_quota, 1);
}

#[test]
fn flags_that_cannot_be_followed_are_refused() {
    for (line, part) in [
        ("--uplink a/b", "--uplink"),
        ("--pod-gateways both", "possible values: translate, forward"),
        ("--overlay-device an-interface-name", "--overlay-device"),
        ("--overlay-port 0", "--overlay-port"),
        ("--overlay-vni 0", "--overlay-vni"),
        ("--overlay-vni 16777216", "16777215"),
        ("--nat-connections 0", "--nat-connections"),
        ("--nat-source-quota 0", "--nat-source-quota"),
        (
            "--nat-connections 5 --nat-source-quota 6",
            "--nat-source-quota 6",
        ),
        ("--nat-port-range 5", "FIRST-LAST"),
        ("--nat-port-range 0-5", "begins with 0"),
        ("--nat-port-range 6-5", "ends before it begins"),
        ("--nat-port-range 6-70000", "FIRST-LAST"),
        ("--nat-timeout udp", "STATE=SECONDS"),
        ("--nat-timeout sctp=5", "the states are tcp-syn-sent"),
        ("--nat-timeout udp=0", "1 or more"),
        ("--nat-timeout udp=4294967296", "1 or more"),
        ("--nat-timeout udp=5 udp=6", "both udp=5 and udp=6"),
        ("--probe-interval 300", "300ms"),
        ("--probe-interval 5ms", "--probe-interval"),
        (
            "--probe-interval 1s --probe-timeout 1900ms",
            "--probe-timeout",
        ),
        ("--next-hop-probe tcp", "possible values: arp, icmp, off"),
        ("--mark 0", "0 bits"),
        ("--mark 0x30", "2 bits"),
        ("--mark on", "one bit of 32"),
        ("--mark 0x100000000", "one bit of 32"),
        ("--max-flows 0", "--max-flows"),
        ("--max-inbound 0", "--max-inbound"),
    ] {
        let error = match flags(line) {
            Err(error) => error.to_string(),
            Ok(flags) => flags.settings(None).unwrap_err().to_string(),
        };
        assert!(error.contains(part), "{line}: {part:?} is not in {error:?}");
    }
    for text in ["nat-port-range: 6-5", "nat-timeout: [sctp=5]", "mark: 3"] {
        let file = config(&format!("resources: [/a]\n{text}\n"));
        let refused = Flags::default().settings(Some(file.path())).unwrap_err();
        let error = format!("{refused:#}");
        assert!(error.contains("line 2"), "{error}");
    }
}

#[test]
fn the_overlay_has_the_keys_of_its_file() {
    let mut file = config("0123456789abcdef\n");
    let line = format!("--overlay-key-file {}", file.path().display());
    let options = settings(&line).overlay.unwrap();
    let overlay = options.with_keys().unwrap();
    assert_eq!(
        (overlay.device.as_str(), overlay.port, overlay.vni),
        (OVERLAY_DEVICE, OVERLAY_PORT, OVERLAY_VNI)
    );
    file.write_all(b"short\n").unwrap();
    let error = options.with_keys().unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}
