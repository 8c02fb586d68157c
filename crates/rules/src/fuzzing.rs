//! Bodies of the fuzz targets, as plain functions: tests replay a corpus and random inputs through them, and the long runs
//! call the same.

use std::collections::BTreeMap;

use crate::catalog::{CatalogService, CatalogWorkload, PortProtocol, ServiceCatalog};
use crate::host::Resolver;
use crate::object::{parse_bytes, parse_with};
use crate::options::ParseOptions;

/// Reads anything, analyzes what came out, and holds that an object read again from its stored source is the same.
///
/// # Panics
/// When that does not hold.
pub fn fuzz_rules(data: &[u8]) {
    let options = ParseOptions::default();
    let parsed = parse_bytes("fuzz.yaml", data, &options);
    for object in &parsed.objects {
        let again = parse_with("fuzz.yaml", &object.source, &options);
        assert!(!again.has_errors(), "{:?} of {:?}", again.findings, object.source);
        assert_eq!(again.objects.len(), 1, "{:?}", object.source);
        assert_eq!(again.objects[0].json, object.json, "{:?}", object.source);
    }
    let findings = crate::analyze(&parsed.objects, Some(&catalog()));
    for finding in parsed.findings.iter().chain(&findings) {
        assert!(!finding.to_string().contains('\n'), "{finding:?}");
    }
}

fn catalog() -> ServiceCatalog {
    let labels = BTreeMap::from([("version".to_owned(), "v1".to_owned())]);
    let ports = BTreeMap::from([(80, PortProtocol::Http), (90, PortProtocol::Tcp)]);
    let host = Resolver::default().service("reviews", "default");
    let service =
        CatalogService { ports: ports.clone(), instances: vec![labels.clone()], ..CatalogService::default() };
    ServiceCatalog {
        services: BTreeMap::from([(host, service)]),
        workloads: vec![CatalogWorkload {
            namespace: "default".to_owned(),
            labels,
            ports,
            ..CatalogWorkload::default()
        }],
        ..ServiceCatalog::default()
    }
}

#[cfg(test)]
mod tests;
