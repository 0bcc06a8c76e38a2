//! What resources say of gateways that fail, and of those that are about to go.

use super::*;

#[test]
fn what_happens_without_gateways_is_said_or_refused() -> Outcome {
    let policy = |rule: &str| {
        read(&format!(
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\nspec: {{rules: \
             [{{{rule}}}]}}\n"
        ))
    };
    let gateway = "gateway: {selector: \"a == 'b'\"}, onFailure: ";
    for (text, expected) in [
        ("Drop", OnFailure::Drop),
        ("Local", OnFailure::Local),
        (
            "{Fallback: {selector: \"c == 'd'\", maxNextHops: 2}}",
            OnFailure::Fallback(GatewaySelector {
                namespaces: None,
                gateways: selector("c == 'd'")?,
                max_next_hops: NonZeroU32::new(2),
                preference: Preference::None,
            }),
        ),
    ] {
        let Some(Object::Policy(policy)) = only_object(policy(&format!("{gateway}{text}"))) else {
            return Err(text.into());
        };
        assert_eq!(policy.rules[0].on_failure, expected, "{text}");
    }
    for (rule, complaint) in [
        (format!("{gateway}Pass"), "`onFailure` is \"Pass\""),
        (format!("{gateway}{{Fallback: {{}}}}"), "selector"),
        (format!("{gateway}{{Other: {{}}}}"), "Other"),
        (
            "destination: {cidr: 10.0.0.0/8}, onFailure: Local".to_owned(),
            "means nothing without `gateway`",
        ),
    ] {
        let file = policy(&rule);
        assert!(
            file.diagnostics
                .iter()
                .any(|d| d.message.contains(complaint)),
            "{rule}: {:?}",
            file.diagnostics
        );
        assert!(file.entries.iter().all(|entry| !entry.valid), "{rule}");
    }
    Ok(())
}

#[test]
fn a_policys_annotation_speaks_for_rules_that_say_nothing() -> Outcome {
    let policy = |annotations: &str| {
        read(&format!(
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata:\n  name: p\n  annotations: \
             {{{annotations}}}\nspec:\n  rules:\n  - {{gateway: {{selector: all()}}}}\n  - {{destination: {{cidr: \
             10.0.0.0/8}}, gateway: {{selector: all()}}, onFailure: Drop}}\n  - {{destination: {{cidr: \
             172.16.0.0/12}}}}\n"
        ))
    };
    let fallback = |max, namespaces| {
        Ok::<_, crate::selector::ParseError>(OnFailure::Fallback(GatewaySelector {
            namespaces,
            gateways: selector("a == 'b'")?,
            max_next_hops: NonZeroU32::new(max),
            preference: Preference::None,
        }))
    };
    let on = "egress.fastpath/on-failure";
    let other = "egress.fastpath/fallback-";
    for (annotations, expected) in [
        (String::new(), OnFailure::Drop),
        (format!("{on}: Drop"), OnFailure::Drop),
        (format!("{on}: Local"), OnFailure::Local),
        (
            format!("{on}: Fallback, {other}selector: \"a == 'b'\""),
            fallback(0, None)?,
        ),
        (
            format!(
                "{on}: Fallback, {other}selector: \"a == 'b'\", {other}namespace-selector: all(), \
                 {other}max-next-hops: \"2\""
            ),
            fallback(2, Some(selector("all()")?))?,
        ),
    ] {
        let Some(Object::Policy(policy)) = only_object(policy(&annotations)) else {
            return Err(annotations.into());
        };
        let found: Vec<_> = policy.rules.iter().map(|rule| &rule.on_failure).collect();
        let drop = OnFailure::Drop;
        assert_eq!(found, [&expected, &drop, &drop], "{annotations}");
    }
    for (annotations, complaint, refused) in [
        (format!("{on}: local"), "is \"local\"", true),
        (format!("{on}: [Local]"), "is not a string but a list", true),
        (
            format!("{on}: Fallback"),
            "without `egress.fastpath/fallback-selector`",
            true,
        ),
        (
            format!("{on}: Fallback, {other}selector: \"a ==\""),
            "fallback-selector",
            true,
        ),
        (
            format!("{on}: Fallback, {other}selector: all(), {other}max-next-hops: some"),
            "is not a whole number",
            true,
        ),
        (format!("{on}: \"\""), "is empty", false),
        (
            format!("{other}selector: all()"),
            "has no effect unless",
            false,
        ),
        (
            format!("{on}: Local, {other}selector: all()"),
            "has no effect unless",
            false,
        ),
    ] {
        let file = policy(&annotations);
        let found = &file.diagnostics;
        assert!(
            found.len() == 1 && found[0].message.contains(complaint),
            "{annotations}: {found:?}"
        );
        assert_eq!(
            found[0].position.as_ref().map(|at| at.line),
            Some(5),
            "{annotations}: {found:?}"
        );
        let valid = file.entries.iter().all(|entry| entry.valid);
        assert_eq!(valid, !refused, "{annotations}");
    }
    Ok(())
}

#[test]
fn who_is_about_to_go_says_so() -> Outcome {
    let asked = |value: &str| format!("annotations: {{egress.fastpath/drain: {value}}}");
    for (metadata, expected) in [
        (asked("\"true\""), Leaving::Asked),
        (asked("\"false\""), Leaving::No),
        (
            "deletionTimestamp: \"2026-01-01T00:00:00Z\"".to_owned(),
            Leaving::Terminating,
        ),
        ("deletionTimestamp: null".to_owned(), Leaving::No),
    ] {
        let gateway = read(&format!(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: g, {metadata}}}\nspec: \
             {{nextHops: [192.0.2.1], drainTimeout: 90s}}\n"
        ));
        let Some(Object::Gateway(gateway)) = only_object(gateway) else {
            return Err(metadata.into());
        };
        assert_eq!(gateway.leaving, expected, "{metadata}");
        assert_eq!(
            gateway.drain_timeout,
            Some(std::time::Duration::from_secs(90))
        );
        let pod = read(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {metadata}}}\n"
        ));
        let Some(Object::Pod(pod)) = only_object(pod) else {
            return Err(metadata.into());
        };
        assert_eq!(pod.leaving, expected, "{metadata}");
    }
    let text = "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {name: g}\nspec: \
                {nextHops: [192.0.2.1], drainTimeout: 90}\n";
    assert_eq!(read(text).diagnostics.len(), 1);
    for (value, complaint) in [("\"\"", "is empty"), ("\"yes\"", "neither")] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {}}}\n",
            asked(value)
        );
        let found = read(&pod).diagnostics;
        assert!(
            found.len() == 1 && found[0].message.contains(complaint),
            "{found:?}"
        );
    }
    Ok(())
}
