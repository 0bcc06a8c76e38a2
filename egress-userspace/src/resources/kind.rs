//! Which kinds of objects are understood, and what tells their objects apart.

use std::fmt;

use serde::Serialize;

/// The kinds that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `v1 Namespace`.
    Namespace,
    /// `v1 Pod`.
    Pod,
    /// `v1 Node`.
    Node,
    /// `v1 Service`.
    Service,
    /// `v1 ServiceAccount`.
    ServiceAccount,
    /// Calico's `EgressGatewayPolicy`.
    EgressGatewayPolicy,
    /// `egress.fastpath EgressGateway`.
    EgressGateway,
    /// Calico's `IPPool`.
    IPPool,
    /// `networking.k8s.io ServiceCIDR`.
    ServiceCIDR,
    /// `networking.k8s.io NetworkPolicy`.
    NetworkPolicy,
    /// Calico's own `NetworkPolicy`.
    CalicoNetworkPolicy,
    /// Calico's `GlobalNetworkPolicy`.
    GlobalNetworkPolicy,
    /// `policy.networking.k8s.io AdminNetworkPolicy`.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io BaselineAdminNetworkPolicy`.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io ClusterNetworkPolicy`, which takes the place of the two before.
    ClusterNetworkPolicy,
}

/// The type of an object as its manifest, or the list that it is in, has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type<'v> {
    pub(super) api_version: &'v str,
    pub(super) kind: &'v str,
}

impl Kind {
    /// The kind that these mean.
    pub(super) fn find(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Pod") => Self::Pod,
            ("v1", "Node") => Self::Node,
            ("v1", "Service") => Self::Service,
            ("v1", "ServiceAccount") => Self::ServiceAccount,
            ("projectcalico.org/v3" | "crd.projectcalico.org/v1", "EgressGatewayPolicy") => {
                Self::EgressGatewayPolicy
            }
            ("projectcalico.org/v3" | "crd.projectcalico.org/v1", "IPPool") => Self::IPPool,
            ("egress.fastpath/v1alpha1", "EgressGateway") => Self::EgressGateway,
            (
                "networking.k8s.io/v1" | "networking.k8s.io/v1beta1" | "networking.k8s.io/v1alpha1",
                "ServiceCIDR",
            ) => Self::ServiceCIDR,
            ("networking.k8s.io/v1", "NetworkPolicy") => Self::NetworkPolicy,
            ("projectcalico.org/v3" | "crd.projectcalico.org/v1", "NetworkPolicy") => {
                Self::CalicoNetworkPolicy
            }
            ("projectcalico.org/v3" | "crd.projectcalico.org/v1", "GlobalNetworkPolicy") => {
                Self::GlobalNetworkPolicy
            }
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy") => Self::AdminNetworkPolicy,
            ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy") => {
                Self::BaselineAdminNetworkPolicy
            }
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
                Self::ClusterNetworkPolicy
            }
            _ => return None,
        })
    }

    /// Whether its objects are in namespaces.
    pub(super) const fn is_namespaced(self) -> bool {
        matches!(
            self,
            Self::Pod
                | Self::Service
                | Self::ServiceAccount
                | Self::EgressGateway
                | Self::NetworkPolicy
                | Self::CalicoNetworkPolicy
        )
    }

    /// Whether it is somebody else's network policy.
    pub(crate) const fn is_network_policy(self) -> bool {
        matches!(
            self,
            Self::NetworkPolicy
                | Self::CalicoNetworkPolicy
                | Self::GlobalNetworkPolicy
                | Self::AdminNetworkPolicy
                | Self::BaselineAdminNetworkPolicy
                | Self::ClusterNetworkPolicy
        )
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if its kind has one; "default" if it names none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}
