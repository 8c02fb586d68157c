//! The mesh of the control plane's bench: services in registry files, and in some of them one more endpoint that the bench
//! registers and changes.

use std::io::{BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Result;
use outrigger_control::instance::{Instance, Port, Protocol, State};

/// Of every service.
pub const PORT: u16 = 8080;
/// Of every endpoint that was not changed.
pub const WEIGHT: u32 = 100;
/// Where all services are.
const NAMESPACE: &str = "shop";
/// Services with an endpoint that changes, at most.
const LIVE: u32 = 100;

/// The services with an endpoint that changes, spread over all; the first is the one that every stream subscribes to.
pub fn live_services(services: u32) -> Vec<u32> {
    let live = LIVE.min(services);
    (0..live).map(|i| i * (services / live)).collect()
}

/// The name of a service's cluster, endpoints, listener and routes.
pub fn resource(service: u32) -> String {
    format!("outbound|{PORT}||s{service}.{NAMESPACE}.svc.cluster.local")
}

/// The endpoint of a service that changes.
pub fn live(service: u32) -> Instance {
    let mut instance = instance(service, 0, Ipv4Addr::from(0x0a80_0000 + service).into());
    instance.id = format!("s{service}-live");
    instance
}

/// Registry files with so many services.
pub fn write(directory: &Path, services: u32, endpoints: u32, per_file: u32) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut file: Option<BufWriter<std::fs::File>> = None;
    for number in 0..services * endpoints {
        if number % per_file.max(1) == 0 {
            end(file.take())?;
            let path = directory.join(format!("{number:08}.json"));
            let mut new = BufWriter::new(std::fs::File::create(path)?);
            new.write_all(b"{\"instances\": [\n")?;
            file = Some(new);
        } else if let Some(file) = &mut file {
            file.write_all(b",\n")?;
        }
        let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number + 1));
        let instance = instance(number / endpoints, number % endpoints, address);
        if let Some(file) = &mut file {
            serde_json::to_writer(file, &instance)?;
        }
    }
    end(file)
}

fn end(file: Option<BufWriter<std::fs::File>>) -> Result<()> {
    let Some(mut file) = file else { return Ok(()) };
    file.write_all(b"\n]}\n")?;
    file.flush()?;
    Ok(())
}

fn instance(service: u32, number: u32, address: IpAddr) -> Instance {
    let service = format!("s{service}");
    Instance {
        id: format!("{service}-{number}"),
        service: service.clone(),
        namespace: NAMESPACE.into(),
        addresses: vec![address],
        network: String::new(),
        ports: vec![Port {
            number: PORT,
            name: String::new(),
            protocol: Protocol::Http,
            aliases: Vec::new(),
            upgrades: Vec::new(),
        }],
        labels: Default::default(),
        metadata: Default::default(),
        tags: Vec::new(),
        version: Some("v1".into()),
        weight: WEIGHT,
        zone: String::new(),
        region: String::new(),
        service_account: service,
        state: State::Running,
        sidecar: true,
        services: None,
        ttl_seconds: None,
        word: Default::default(),
    }
}
