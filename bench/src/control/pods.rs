//! What the agent takes: at rest, while pods come and go, and while it is scraped.

use std::{
    process::Command,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    PODS,
    agent::get,
    manifests::{Policies, address},
    stage::{Stage, ip},
};
use crate::{
    measured::{Measured, Unit},
    progress::Progress,
};

/// The scene of the gates.
pub(super) const NODE: &str = "100 pods, 1000 prefixes";
pub(super) const RESIDENT: &str = "resident, at rest";
pub(super) const AT_REST: &str = "processor, at rest";
pub(super) const CHURNING: &str = "processor, 20 pods a second come and go";

/// How long it is left alone after its start: then it has given back what that took.
const SETTLE: Duration = Duration::from_secs(4);
/// How long it is watched at rest, at least.
const REST: Duration = Duration::from_secs(10);
/// Pods that come in a second, and the time from one to the next.
const RATE: f64 = 20.0;
const BETWEEN: Duration = Duration::from_millis(50);
/// Who makes pods, side by side: making one waits for the kernel more often than it works.
const MAKERS: u32 = 5;
/// Pods of each of them that have come and not gone yet.
const ALIVE: u32 = 2;

/// Measures all of it, for so long.
pub(super) fn measure(time: Duration, quick: bool, progress: &Progress) -> Result<Vec<Measured>> {
    progress.making(NODE);
    let policies = Policies {
        policies: 1,
        prefixes: 1000,
        all_lead_out: true,
    };
    let mut stage = Stage::enter(100, policies)?;
    stage.start()?.ready()?;
    sleep(SETTLE);
    let (began, third) = (Instant::now(), time / 3);
    let at_rest = load(&mut stage, |_| {
        sleep(third.max(REST));
        Ok(())
    })?;
    let resident = stage.agent()?.resident()?;
    progress.measuring(PODS, 1, began.elapsed());
    let mut pods = 0;
    let churning = load(&mut stage, |stage| {
        pods = churn(stage, third)?;
        Ok(())
    })?;
    progress.measuring(PODS, 2, began.elapsed());
    let churned = stage.agent()?.resident()?;
    // Where the machine does not make as many, what is missing is added: each costs the agent as much as those that came, if not
    // less, since more of them would come at one time.
    let rate = f64::from(pods) / third.as_secs_f64();
    ensure!(
        rate > 1.0,
        "this machine makes just {rate:.1} pods a second"
    );
    let churning = churning * (RATE / rate).max(1.0);
    let figure = |subject, unit, value| Measured::exactly(PODS, NODE, subject, unit, value);
    let percent = Unit::PercentOfCore;
    let mut figures = vec![
        figure(RESIDENT, Unit::Bytes, resident),
        figure(AT_REST, percent, at_rest),
        figure("pods that came", Unit::PodsPerSecond, rate),
        figure(CHURNING, percent, churning),
        figure("resident, after that", Unit::Bytes, churned),
    ];
    drop(stage);
    if !quick {
        figures.push(scrapes(progress)?);
    }
    Ok(figures)
}

/// Hundredths of a core that the agent takes while something happens.
fn load(stage: &mut Stage, meanwhile: impl FnOnce(&Stage) -> Result<()>) -> Result<f64> {
    let (began, before) = (Instant::now(), stage.agent()?.processor_time()?);
    meanwhile(stage)?;
    let took = stage.agent()?.processor_time()? - before;
    Ok(100.0 * took.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// Has pods come, each with a network namespace, an interface and a file of its own, and go half a second later.
fn churn(stage: &Stage, time: Duration) -> Result<u32> {
    let came = thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| scope.spawn(move || make(stage, maker, time)))
            .collect();
        let came = makers.into_iter().map(|maker| match maker.join() {
            Ok(came) => came,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        came.collect::<Result<Vec<u32>>>()
    })?;
    Ok(came.into_iter().sum())
}

/// Makes its share of the pods, in turn with the other makers.
fn make(stage: &Stage, maker: u32, time: Duration) -> Result<u32> {
    let first = FIRST + maker * FIRST;
    let mut alive = Alive {
        stage,
        pods: first..first,
    };
    sleep(BETWEEN * maker);
    let began = Instant::now();
    let mut come = 0;
    while began.elapsed() < time {
        alive.come()?;
        come += 1;
        if alive.pods.len() > ALIVE as usize {
            alive.go()?;
        }
        sleep((BETWEEN * MAKERS * come).saturating_sub(began.elapsed()));
    }
    while !alive.pods.is_empty() {
        alive.go()?;
    }
    Ok(come)
}

/// The number of the first maker's first pod, and how many pods each can make.
const FIRST: u32 = 10_000;

/// The pods that have come, by number; their network namespaces go with this.
struct Alive<'s> {
    stage: &'s Stage,
    pods: std::ops::Range<u32>,
}

impl Alive<'_> {
    fn come(&mut self) -> Result<()> {
        let pod = self.pods.end;
        self.pods.end += 1;
        let (space, address) = (self.space(pod), address(pod));
        ip(
            &[],
            &format!(
                "netns add {space}\nlink add pod{pod} type veth peer name eth0 netns {space}\nlink set pod{pod} up\n\
                 route add {address}/32 dev pod{pod}\n"
            ),
        )?;
        ip(
            &["-n", &space],
            &format!("link set eth0 up\naddr add {address}/32 dev eth0\n"),
        )?;
        let manifest = self.stage.policies.pod(pod);
        self.stage.put(&format!("pod{pod}.yaml"), &manifest)
    }

    fn go(&mut self) -> Result<()> {
        let pod = self.pods.start;
        self.stage.remove(&format!("pod{pod}.yaml"))?;
        ip(&[], &format!("netns del {}\n", self.space(pod)))?;
        self.pods.start += 1;
        Ok(())
    }

    fn space(&self, pod: u32) -> String {
        format!("{}-{pod}", self.stage.prefix())
    }
}

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        for pod in self.pods.clone() {
            let space = self.space(pod);
            drop(Command::new("ip").args(["netns", "del", &space]).output());
        }
    }
}

/// How long a page of metrics takes that shows a thousand members.
fn scrapes(progress: &Progress) -> Result<Measured> {
    const SCENE: &str = "100 pods, 1000 members";
    progress.making(SCENE);
    let policies = Policies {
        policies: 100,
        prefixes: 10,
        all_lead_out: true,
    };
    let mut stage = Stage::enter(100, policies)?;
    stage.start()?.ready()?;
    let times = (0..20).map(|_| Ok(get("/metrics")?.1.as_secs_f64() * 1e3));
    let times: Vec<f64> = times.collect::<Result<_>>()?;
    let unit = Unit::Milliseconds;
    Ok(Measured::of_samples(PODS, SCENE, "a scrape", unit, &times))
}
