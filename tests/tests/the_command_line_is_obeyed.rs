//! Flags, the configuration file, the dry run, and what is refused with words that help.

use anyhow::{Context, Result};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::{Resources, examples},
    stage::From,
    topology::{CLUSTER_CIDRS, ELSEWHERE, INTERNAL},
};

/// What a dry run exits with when there is something to do.
const WOULD_CHANGE: i32 = 2;

#[test]
fn a_dry_run_tells_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let setup = Setup::new(&scene, resources.directory())?;
    let bare = scene.inventory()?;
    let told = dry_run(&setup, WOULD_CHANGE)?;
    for words in [
        "program egress_from_pod belongs on cali-web0",
        "program egress_from_gateway belongs on eth1",
        "would add pod 10.65.0.10",
        "would publish 192.0.2.0/24",
        "2 pods would be steered",
        "nothing was changed",
    ] {
        assert!(told.contains(words), "no word of {words:?} in\n{told}");
    }
    assert_eq!(scene.inventory()?, bare);
    assert!(!setup.state_dir().exists());

    // Beside an agent that has done it, there is nothing to do.
    let mut stage = Stage::start_with(scene, resources, setup)?;
    let during = stage.scene.inventory()?;
    dry_run(&stage.setup, 0)?;
    stage.agent.take().context("no agent")?.kill()?;
    dry_run(&stage.setup, 0)?;

    // A policy that nobody has applied yet.
    let policy = std::fs::read_to_string(stage.resources.directory().join("policy.yaml"))?;
    stage
        .resources
        .write("policy.yaml", &policy.replace("'blue'", "'red'"))?;
    dry_run(&stage.setup, WOULD_CHANGE)?;
    assert_eq!(stage.scene.inventory()?, during);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

fn dry_run(setup: &Setup, expected: i32) -> Result<String> {
    let output = setup.dry_run()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(expected), "{said}{complaint}");
    Ok(said)
}

#[test]
fn the_configuration_file_holds_where_no_flag_does() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let file = scene.files().join("egress.yaml");
    let cidrs = CLUSTER_CIDRS.map(|cidr| format!("\"{cidr}\"")).join(", ");
    let directory = resources.directory().display();
    // The flags that the tests always give contradict the node, and where to listen and to pin.
    std::fs::write(
        &file,
        format!(
            "resources: [{directory}]\nlocal-cidr: [{cidrs}]\nmax-pods: 64\nnode: elsewhere\n\
             metrics-listen: 127.0.0.1:1\npin-dir: /nowhere\n"
        ),
    )?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.resources.clear();
    setup.local_cidrs.clear();
    setup.arguments = vec!["--config".to_owned(), file.display().to_string()];
    let stage = Stage::start_with(scene, resources, setup)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("batch", INTERNAL, From::Pod)?;
    let capacity = |stage: &Stage| -> Result<u64> {
        Ok(stage
            .metrics()?
            .sum("egress_map_capacity", &[("map", "PODS")]))
    };
    assert_eq!(capacity(&stage)?, 64);

    std::fs::write(&file, "resources: [/]\nmax-pod: 64\n")?;
    let mut other = stage.setup.clone();
    other.bpffs = other.bpffs.join("other");
    let said = other.refusal()?;
    for words in ["egress.yaml", "max-pod", "line 2"] {
        assert!(said.contains(words), "no word of {words:?} in\n{said}");
    }
    Ok(())
}

#[test]
fn capacities_that_cannot_be_are_refused() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    for (arguments, words) in [
        (["--max-pods", "0"], "--max-pods makes 0 entries"),
        (["--max-policies", "4000000000"], "--max-policies"),
        (["--matrix-memory", "99999999"], "--matrix-memory"),
    ] {
        setup.arguments = arguments.map(str::to_owned).to_vec();
        let said = setup.refusal()?;
        assert!(said.contains(words), "no word of {words:?} in\n{said}");
    }

    // Maps of connections keep their size; what is filled from the resources is filled anew in another.
    let of = |pods: &str, connections: &str| {
        ["--max-pods", pods, "--nat-connections", connections]
            .map(str::to_owned)
            .to_vec()
    };
    setup.arguments = of("64", "4096");
    let mut stage = Stage::start_with(scene, resources, setup)?;
    stage.agent.take().context("no agent")?.kill()?;
    let during = stage.scene.inventory()?;
    let mut larger = stage.setup.clone();
    larger.arguments = of("64", "4097");
    let said = larger.refusal()?;
    for words in [
        "4096 entries",
        "--nat-connections asks for 4097",
        "egress detach",
    ] {
        assert!(said.contains(words), "no word of {words:?} in\n{said}");
    }
    assert_eq!(stage.scene.inventory()?, during);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    larger.arguments = of("65", "4096");
    stage.agent = Some(larger.start()?);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.detach()?;
    larger.arguments = of("65", "4097");
    stage.agent = Some(larger.start()?);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn the_examples_are_valid_and_a_broken_policy_is_not() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::empty(&scene)?;
    let setup = Setup::new(&scene, resources.directory())?;
    let directory = examples().display().to_string();
    let output = setup.output(&["validate", &directory])?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 errors, 0 warnings"), "{said}");

    let policy = std::fs::read_to_string(examples().join("policy.yaml"))?;
    resources.write("policy.yaml", &policy.replace("192.0.2.0/24", "192.0.2/24"))?;
    let directory = resources.directory().display().to_string();
    let output = setup.output(&["validate", &directory])?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("policy.yaml:13:"), "{said}");
    Ok(())
}

#[test]
fn bash_completes_commands() -> Result<()> {
    let scene = Scene::new()?;
    let setup = Setup::new(&scene, examples())?;
    let script = setup.command(&["completion", "bash"])?;
    let path = scene.files().join("completion.bash");
    std::fs::write(&path, script)?;
    // As bash does it: with the words so far, the function gives the candidates.
    let ask = format!(
        "source {} && COMP_WORDS=(egress de) COMP_CWORD=1 && _egress egress de egress && echo ${{COMPREPLY[@]}}",
        path.display()
    );
    assert_eq!(scene.node.run(&["bash", "-c", &ask])?.trim(), "detach");
    Ok(())
}
