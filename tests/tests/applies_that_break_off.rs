//! An apply that dies or fails at any of its steps: no pod sees a mixture of two policies, and the next one completes it.

use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    client::whoami,
    paced::{Paced, PacedServer},
    packets::random::Random,
    resources::{Resources, Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{Destination, ELSEWHERE, Layout, Pod, RED_NETWORK},
    wait,
};

/// Of each list of changes so many steps are tried where time is short.
const SAMPLE: usize = 4;
/// What the kernel and its file systems may say: no memory, interrupted, no such device, no room.
const ERRORS: [i32; 4] = [12, 4, 19, 28];

#[test]
fn by_death() -> Result<()> {
    Breaking::new("tcx")?.at_steps(Some(SAMPLE), Fault::Death)
}

#[test]
fn by_an_error() -> Result<()> {
    Breaking::new("tcx")?.at_steps(Some(SAMPLE), Fault::Error)
}

#[test]
fn not_by_an_interface_that_vanishes_before_it_is_attached_to() -> Result<()> {
    ["tcx", "clsact"]
        .into_iter()
        .try_for_each(|mode| Breaking::new(mode)?.without_an_interface())
}

#[test]
#[ignore = "soak: a restart for every step"]
fn by_death_at_every_step() -> Result<()> {
    Breaking::new("tcx")?.at_steps(None, Fault::Death)
}

#[test]
#[ignore = "soak: a restart for every step"]
fn by_death_at_every_step_of_filters() -> Result<()> {
    Breaking::new("clsact")?.at_steps(None, Fault::Death)
}

#[test]
#[ignore = "soak: a retry for every step"]
fn by_an_error_at_every_step() -> Result<()> {
    Breaking::new("tcx")?.at_steps(None, Fault::Error)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Death,
    Error,
}

/// Two states of the resources: every pod's policy differs, one pod is let go, and another one taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    A,
    B,
}

const POD: [&str; 3] = ["web", "batch", "plain"];
const SEEN_AT: [Destination; 2] = [RED_NETWORK, ELSEWHERE];

impl State {
    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn resources(self, scene: &Scene) -> Result<String> {
        let local = [("10.0.0.0/8", Via::Local), ("fd00::/8", Via::Local)];
        let (red, blue) = (Via::Code("red"), Via::Code("blue"));
        let to_network = |via| [("192.0.2.0/24", via), ("2001:db8:2::/48", via)];
        let mut rules = local.to_vec();
        match self {
            Self::A => {
                rules.extend(to_network(red));
                rules.push(("", blue));
            }
            Self::B => {
                rules.extend(to_network(blue));
                // Prefixes that are new, and a row that is longer.
                rules.extend([("198.51.100.0/24", red), ("198.51.100.64/26", red)]);
                rules.push(("", red));
            }
        }
        let selected = [
            ("selector", "egress-code == 'red'"),
            ("namespaceSelector", "projectcalico.org/name == 'default'"),
        ];
        let none: &[(&str, &str)] = &[];
        let (batch, plain) = match self {
            Self::A => (&selected[..], none),
            Self::B => (none, &selected[..]),
        };
        Ok([
            namespace("default", &[]),
            namespace("shop", &[("egressGatewayPolicy", "shop-policy")]),
            namespace("lab", &[]),
            gateway(scene.gateway("red")?, "red", ""),
            gateway(scene.gateway("blue")?, "blue", ""),
            policy("shop-policy", &rules),
            pod("shop", scene.pod("web")?, &[], &[]),
            pod("lab", scene.pod("batch")?, batch, &[]),
            pod("lab", scene.pod("plain")?, plain, &[]),
        ]
        .concat())
    }

    /// How a pod is seen at each of [`SEEN_AT`].
    const fn from(self, pod: &str) -> [From<'static>; 2] {
        let (red, blue) = (From::Gateway("red"), From::Gateway("blue"));
        match (self, pod.as_bytes()) {
            (Self::A, b"web") => [red, blue],
            (Self::B, b"web") => [blue, red],
            (Self::A, b"batch") | (Self::B, b"plain") => [red, red],
            _ => [From::Node, From::Node],
        }
    }
}

struct Breaking {
    stage: Stage,
    faults: PathBuf,
    state: State,
}

impl Breaking {
    fn new(mode: &str) -> Result<Self> {
        let scene = Scene::new()?;
        let resources = Resources::empty(&scene)?;
        resources.write("all.yaml", &State::A.resources(&scene)?)?;
        let mut setup = Setup::new(&scene, resources.directory())?;
        setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
        let faults = scene.files().join("faults");
        setup.faults = Some(faults.clone());
        let breaking = Self {
            stage: Stage::start_with(scene, resources, setup)?,
            faults,
            state: State::A,
        };
        breaking.expect(State::A)?;
        Ok(breaking)
    }

    fn at_steps(mut self, sample: Option<usize>, fault: Fault) -> Result<()> {
        let addresses = ELSEWHERE.addresses();
        let server = PacedServer::start(&self.stage.scene.internet, &addresses)?;
        let web = self.stage.pod("web")?.host.clone();
        let traffic = addresses
            .into_iter()
            .map(|address| Paced::datagrams(&web, address, 100))
            .collect::<Result<Vec<_>>>()?;

        let lists = [self.steps()?, self.steps()?];
        let mut random = Random::new();
        let mut tried = 0;
        for (list, steps) in lists.iter().enumerate() {
            let mut wanted: BTreeSet<usize> = (1..=steps.len()).collect();
            while sample.is_some_and(|sample| wanted.len() > sample) {
                let which = random.below(wanted.len());
                let step = wanted.iter().nth(which).copied();
                wanted.retain(|other| Some(*other) != step);
            }
            for step in wanted {
                let what = steps.get(step - 1).map_or("?", String::as_str);
                let context = format!("list {list}, step {step} of {}: {what}", steps.len());
                match fault {
                    Fault::Death => self.die(step),
                    Fault::Error => self.fail(step, ERRORS[step % ERRORS.len()]),
                }
                .context(context)?;
                // Each list is tried in its own direction.
                self.change_to(self.state.other())?;
                tried += 1;
            }
            if list == 0 {
                self.change_to(self.state.other())?;
            }
        }

        for paced in traffic {
            let tally = paced.end()?;
            ensure!(tally.sent == tally.back, "{tally:?}");
        }
        let mut allowed = BTreeSet::new();
        for gateway in &self.stage.scene.gateways {
            allowed.extend(addresses.map(|like| gateway.egress_like(like)));
        }
        let seen: BTreeSet<IpAddr> = server.datagrams().into_keys().collect();
        ensure!(seen.is_subset(&allowed), "{seen:?}");
        println!("{tried} of {} and {} steps", lists[0].len(), lists[1].len());
        Ok(())
    }

    /// A pod comes whose interface goes while a program is about to be attached to it, and meanwhile everything else
    /// is to change: that is not kept from it.
    fn without_an_interface(mut self) -> Result<()> {
        let selected = [
            ("selector", "egress-code == 'red'"),
            ("namespaceSelector", "projectcalico.org/name == 'default'"),
        ];
        let waiting = self.faults.with_extension("waiting");
        let come = |breaking: &mut Self, name| -> Result<(Pod, String)> {
            let late = breaking.stage.scene.add_pod(name, Layout::Calico)?.clone();
            let document = pod("lab", &late, &selected, &[]);
            breaking.write_with(State::A, &document)?;
            Ok((late, document))
        };
        // The program for what the pod sends, and the one for what it receives.
        for (number, name) in (1..=2).zip(["late-1", "late-2"]) {
            fs::write(&self.faults, format!("wait {number} attach"))?;
            let (late, document) = come(&mut self, name)?;
            wait::until("a program is about to be attached", || {
                ensure!(fs::read_to_string(&waiting)? == "attach");
                Ok(())
            })?;
            self.write_with(State::B, &document)?;
            let node = &self.stage.scene.node;
            node.ip(&format!("link del {}\n", late.interface))?;
            fs::remove_file(&waiting)?;
            fs::remove_file(&self.faults)?;
            let context = format!("program {number}");
            wait::until("the change is in the kernel", || self.expect(State::B))
                .context(context.clone())?;
            self.settled().context(context)?;
            let log = self.stage.agent()?.log();
            ensure!(log.contains("cannot attach"), "{log}");
            self.change_to(State::A)?;
        }
        let dropped = self.stage.metrics()?.all_dropped();
        ensure!(dropped.is_empty(), "{dropped:?}");
        Ok(())
    }

    /// Goes to the other state, and tells the steps that it took.
    fn steps(&mut self) -> Result<Vec<String>> {
        let file = self.faults.with_extension("steps");
        drop(fs::remove_file(&file));
        self.change_to(self.state.other())?;
        let steps = wait::until("the steps are written down", || {
            Ok(fs::read_to_string(&file)?)
        })?;
        Ok(steps.lines().map(str::to_owned).collect())
    }

    fn write(&mut self, state: State) -> Result<()> {
        self.write_with(state, "")
    }

    fn write_with(&mut self, state: State, more: &str) -> Result<()> {
        self.state = state;
        drop(fs::remove_file(self.faults.with_extension("steps")));
        let text = state.resources(&self.stage.scene)? + more;
        self.stage.resources.write("all.yaml", &text)
    }

    fn change_to(&mut self, state: State) -> Result<()> {
        self.write(state)?;
        wait::until("the change is in the kernel", || self.expect(state))?;
        self.settled()
    }

    fn settled(&self) -> Result<()> {
        let agent = self.stage.agent()?;
        agent.wait_for_metrics("the apply is through", |metrics| {
            ensure!(metrics.sum("egress_last_apply_success", &[]) == 1);
            Ok(())
        })?;
        Ok(())
    }

    fn die(&mut self, step: usize) -> Result<()> {
        let before = self.state;
        fs::write(&self.faults, format!("abort {step}"))?;
        self.write(before.other())?;
        let agent = self.stage.agent.as_mut().context("no agent")?;
        let died = wait::until("the agent is killed, or has no such step", || {
            if agent.was_killed()? {
                return Ok(true);
            }
            let done = fs::read_to_string(self.faults.with_extension("steps"))?;
            ensure!(done.lines().count() < step, "it has, and lives");
            Ok(false)
        })?;
        fs::remove_file(&self.faults)?;
        if !died {
            // What an earlier change has left there makes a list a little shorter now and then.
            wait::until("the change is in the kernel", || self.expect(self.state))?;
            return self.settled();
        }
        self.stage.agent = None;
        self.no_mixture(before)?;
        self.stage.agent = Some(self.stage.setup.start()?);
        self.expect(self.state)?;
        self.settled()
    }

    fn fail(&mut self, step: usize, errno: i32) -> Result<()> {
        let before = self.state;
        let log = self.stage.agent()?.log().len();
        fs::write(&self.faults, format!("fail {step} {errno}"))?;
        self.write(before.other())?;
        let said = format!("(os error {errno})");
        wait::until("the apply has failed, or has no such step", || {
            if self.stage.agent()?.log()[log..].contains(&said) {
                return Ok(());
            }
            let done = fs::read_to_string(self.faults.with_extension("steps"))?;
            ensure!(done.lines().count() < step, "it has, and did not fail");
            Ok(())
        })?;
        // What is seen between is the same as after a death there; here the next try is under way already.
        fs::remove_file(&self.faults)?;
        wait::until("the retry completes it", || self.expect(self.state))?;
        self.settled()
    }

    fn expect(&self, state: State) -> Result<()> {
        for pod in POD {
            for (destination, from) in SEEN_AT.into_iter().zip(state.from(pod)) {
                self.stage.expect(pod, destination, from)?;
            }
        }
        Ok(())
    }

    /// Every pod is seen wholly as before or wholly as it is to be.
    fn no_mixture(&self, before: State) -> Result<()> {
        for name in POD {
            let pod = self.stage.pod(name)?;
            let mut seen = Vec::new();
            let mut wanted = [Vec::new(), Vec::new()];
            for (place, destination) in SEEN_AT.into_iter().enumerate() {
                for address in destination.addresses() {
                    seen.push(whoami(&pod.host, address).with_context(|| name.to_owned())?);
                    for (wanted, state) in wanted.iter_mut().zip([before, before.other()]) {
                        wanted.push(self.stage.source(pod, address, state.from(name)[place])?);
                    }
                }
            }
            ensure!(
                wanted.contains(&seen),
                "{name} is seen as {seen:?}, not as one of {wanted:?}"
            );
        }
        Ok(())
    }
}
