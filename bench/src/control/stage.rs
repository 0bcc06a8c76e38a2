//! A node: a network namespace with pods' interfaces, and the folders that an agent works with.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::{
    agent::Agent,
    manifests::{COMMON, Policies, address},
};

/// The node, which goes with the process or when the next one is entered.
pub(super) struct Stage {
    // Before the folders: it ends with what it has in them.
    agent: Option<Agent>,
    folder: TempDir,
    pub(super) policies: Policies,
}

impl Stage {
    /// Makes a node with so many pods, each with an interface, and enters it.
    pub(super) fn enter(pods: u32, policies: Policies) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let mut commands = String::from(
            "link set lo up\nlink add uplink type veth peer name beyond\nlink set uplink up\nlink set beyond up\n\
             addr add 172.19.0.1/24 dev uplink\n",
        );
        for pod in 0..pods {
            let address = address(pod);
            // Writing into a string cannot fail.
            let _cannot_fail = write!(
                commands,
                "link add pod{pod} type veth peer name far{pod}\nlink set pod{pod} up\nlink set far{pod} up\n\
                 route add {address}/32 dev pod{pod}\n"
            );
        }
        ip(&[], &commands)?;
        let folder = tempfile::Builder::new().prefix("egc-").tempdir()?;
        fs::create_dir(folder.path().join("resources"))?;
        let stage = Self {
            agent: None,
            folder,
            policies,
        };
        stage.put("common.yaml", COMMON)?;
        for policy in 0..policies.policies {
            stage.put_policy(policy, false)?;
        }
        let manifests: String = (0..pods).map(|pod| policies.pod(pod)).collect();
        stage.put("pods.yaml", &manifests)?;
        Ok(stage)
    }

    /// Starts the agent.
    pub(super) fn start(&mut self) -> Result<&mut Agent> {
        let pins = self.pins();
        let agent = Agent::start(self.folder.path(), &pins)?;
        Ok(self.agent.insert(agent))
    }

    /// The agent.
    pub(super) fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent was started")
    }

    /// Where the agent pins its maps.
    pub(super) fn pins(&self) -> PathBuf {
        // The folder's name is nobody else's.
        let name = self.folder.path().file_name().unwrap_or_default();
        PathBuf::from("/sys/fs/bpf").join(name)
    }

    /// Writes a policy.
    pub(super) fn put_policy(&self, policy: u32, changed: bool) -> Result<()> {
        let text = self.policies.manifest(policy, changed);
        self.put(&format!("policy{policy}.yaml"), &text)
    }

    /// Puts a file in its place, as a whole.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<()> {
        let new = self.folder.path().join(format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, self.folder.path().join("resources").join(name))?;
        Ok(())
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(
            self.folder.path().join("resources").join(name),
        )?)
    }

    /// What network namespaces of pods begin with.
    pub(super) fn prefix(&self) -> String {
        format!("egc-{}", process::id())
    }
}

/// Has `ip` carry out commands, one a line.
pub(super) fn ip(options: &[&str], commands: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: install iproute2")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip -batch: {}", said.trim());
    }
    Ok(())
}
