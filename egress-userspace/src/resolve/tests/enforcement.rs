//! Steered pods that egress network policies select.

use super::*;
use crate::model::{NetworkPolicy, Scope};

const NAME: &str = "NetworkPolicy apps/deny";

/// Two pods of one policy, `apps/web` and `apps/free`; a network policy selects `apps/web`.
fn world() -> World {
    let mut world = World::new();
    world.steered("apps/web", 2, "p").labels = labels("app=web");
    world.steered("apps/free", 3, "p");
    world.gateway("egress/red", "code=red", &["192.0.2.21", "2001:db8::21"]);
    world.policy(
        "p",
        vec![
            rule(Some("10.0.0.0/8"), None),
            rule(Some("203.0.113.0/24"), Some(in_egress("code == 'green'"))),
            rule(None, Some(in_egress("code == 'red'"))),
        ],
    );
    deny(&mut world, NAME, "apps", "app == 'web'");
    world
}

fn deny(world: &mut World, name: &str, namespace: &str, pods: &str) {
    let policy = NetworkPolicy {
        scope: Scope::Own(namespace.to_owned()),
        pods: Selector::parse(pods).unwrap(),
        service_accounts: None,
    };
    world.model.network_policies.insert(name.to_owned(), policy);
}

#[test]
fn what_would_be_redirected_is_refused_and_what_is_local_stays() {
    let resolved = world().resolve();
    let refused = [
        "default -> drop PolicyEnforcement",
        "10.0.0.0/8 -> local",
        "203.0.113.0/24 -> drop PolicyEnforcement",
    ];
    assert_eq!(rules(&resolved, "apps/web"), refused);
    let open = [
        "default -> red",
        "10.0.0.0/8 -> local",
        "203.0.113.0/24 -> ",
    ];
    assert_eq!(rules(&resolved, "apps/free"), open);
    let states = [
        (name("apps/free"), PodState::Steered),
        (name("apps/web"), PodState::PolicyEnforcement),
    ];
    assert_eq!(resolved.pod_states, states.into());
    assert_eq!(resolved.pods[&name("apps/web")].network_policies, [NAME]);
    assert!(
        resolved.pods[&name("apps/free")]
            .network_policies
            .is_empty()
    );
    let parts = [
        "pod apps/web:",
        NAME,
        "PolicyEnforcement",
        "--accept-networkpolicy-bypass",
    ];
    assert_warned(&resolved, &parts);
}

#[test]
fn the_operator_may_accept_that_they_are_passed_by() {
    let mut world = world();
    world.settings.accept_networkpolicy_bypass = true;
    let resolved = world.resolve();
    assert_eq!(rules(&resolved, "apps/web"), rules(&resolved, "apps/free"));
    assert_eq!(
        resolved.pod_states[&name("apps/web")],
        PodState::PolicyBypass
    );
    assert_eq!(resolved.pods[&name("apps/web")].network_policies, [NAME]);
    assert_warned(
        &resolved,
        &["pod apps/web:", NAME, "accept-networkpolicy-bypass has it"],
    );
}

#[test]
fn who_sends_nothing_to_gateways_is_not_concerned() {
    let table: &[(&str, fn(&mut World), PodState)] = &[
        (
            "all is local",
            |w| w.policy("p", vec![rule(None, None)]),
            PodState::Steered,
        ),
        ("no rules", |w| w.policy("p", Vec::new()), PodState::Steered),
        (
            "no policy",
            |w| drop(w.model.policies.remove("p")),
            PodState::PolicyMissing,
        ),
        (
            "another namespace's policy",
            |w| {
                w.model.network_policies.clear();
                deny(w, NAME, "egress", "all()");
            },
            PodState::Steered,
        ),
        (
            "a gateway",
            |w| w.policy("p", vec![rule(None, Some(select(None, "app == 'web'")))]),
            PodState::Gateway,
        ),
        (
            "the node's network",
            |w| {
                w.model
                    .pods
                    .get_mut(&name("apps/web"))
                    .unwrap()
                    .host_network = true
            },
            PodState::HostNetwork,
        ),
    ];
    for (what, change, state) in table {
        let mut world = world();
        change(&mut world);
        let resolved = world.resolve();
        assert_eq!(resolved.pod_states[&name("apps/web")], *state, "{what}");
        let judged = |pod: &SourcePod| !pod.network_policies.is_empty();
        assert!(!resolved.pods.values().any(judged), "{what}");
        let said = |warning: &String| warning.contains("NetworkPolicy");
        assert!(!resolved.warnings.iter().any(said), "{what}");
    }
}

#[test]
fn pods_that_are_refused_the_same_share_it_and_a_warning_ends() {
    let mut world = world();
    world.steered("apps/web-2", 4, "p").labels = labels("app=web");
    for n in 0..4 {
        deny(
            &mut world,
            &format!("GlobalNetworkPolicy g{n}"),
            "apps",
            "has(app)",
        );
    }
    let resolved = world.resolve();
    let told = |pod: &str| match &resolved.pods[&name(pod)].fate {
        Fate::Rules(rules) => Arc::clone(rules),
        Fate::Drop(reason) => panic!("{pod}: {reason:?}"),
    };
    assert!(Arc::ptr_eq(&told("apps/web"), &told("apps/web-2")));
    assert_eq!(resolved.pods[&name("apps/web")].network_policies.len(), 5);
    assert_warned(&resolved, &["pod apps/web:", "g0, ", "g2 and 2 more"]);
}
