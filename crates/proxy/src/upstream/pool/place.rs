//! Where a connection goes, by which it is found again.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::{EndpointState, Reach};

/// Where a connection goes. The rest of what must agree is compared at checkout, see [`super::Fit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub cluster: u32,
    pub address: SocketAddr,
    pub reach: Reach,
}

impl Place {
    pub fn of(cluster: &ClusterHandle, endpoint: &EndpointState) -> Self {
        Self { cluster: cluster.id, address: endpoint.address, reach: endpoint.reach }
    }
}

/// In few words: each request is looked for twice. What is left out tells hardly any two apart.
impl Hash for Place {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let cluster = u64::from(self.cluster) << 32;
        match self.address.ip() {
            IpAddr::V4(ip) => state.write_u64(cluster | u64::from(u32::from(ip))),
            IpAddr::V6(ip) => {
                state.write_u128(ip.into());
                state.write_u64(cluster);
            }
        }
        state.write_u16(self.address.port());
        match self.reach {
            Reach::Network | Reach::App => {}
            Reach::AppFrom(IpAddr::V4(ip)) => state.write_u32(ip.into()),
            Reach::AppFrom(IpAddr::V6(ip)) => state.write_u128(ip.into()),
        }
    }
}
