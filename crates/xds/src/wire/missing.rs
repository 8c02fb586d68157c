//! Messages that the crate of Envoy's types does not have: a contribution to Envoy, and a report of load. Only the fields that act here.

#[cfg(feature = "client")]
use std::collections::HashMap;

use super::protobuf;

/// `envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PeakEwma {
    #[prost(message, optional, tag = "1")]
    pub(crate) decay_time: Option<protobuf::Duration>,
    #[prost(message, optional, tag = "4")]
    pub(crate) default_rtt: Option<protobuf::Duration>,
}

impl prost::Name for PeakEwma {
    const NAME: &'static str = "PeakEwma";
    const PACKAGE: &'static str = "envoy.extensions.load_balancing_policies.peak_ewma.v3alpha";
}

/// `xds.data.orca.v3.OrcaLoadReport`.
#[cfg(feature = "client")]
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    pub(crate) cpu_utilization: f64,
    #[prost(double, tag = "2")]
    pub(crate) mem_utilization: f64,
    #[prost(map = "string, double", tag = "4")]
    pub(crate) request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    pub(crate) utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    pub(crate) rps_fractional: f64,
    #[prost(double, tag = "7")]
    pub(crate) eps: f64,
    #[prost(map = "string, double", tag = "8")]
    pub(crate) named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    pub(crate) application_utilization: f64,
}
