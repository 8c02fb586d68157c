//! A cluster of Kubernetes on hosts of our own: real etcd, API server and controllers on one; [`crate::kubelet`] gives every Pod another.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::mesh::Process;
use crate::netns::Host;
use crate::require;
use crate::wait::eventually;

/// In the host's own network namespace nobody else has these.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
const ETCD: &str = "http://127.0.0.1:2379";
/// The Service of the API server in a cluster.
const IN_CLUSTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
/// Who a control plane is that was installed.
pub const INSTALLED: &str = "system:serviceaccount:outrigger-system:outrigger-control";
/// Who an agent of the CNI plugin is that was installed.
pub const INSTALLED_CNI: &str = "system:serviceaccount:kube-system:outrigger-cni";
/// The API server notes what the mesh asks of it.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "Metadata", "users": ["mesh", "cni", "system:serviceaccount:outrigger-system:outrigger-control",
        "system:serviceaccount:outrigger-system:outrigger-control-canary", "system:serviceaccount:kube-system:outrigger-cni"]}, {"level": "None"}
]}"#;
/// Of what a mesh needs; no scheduler: Pods say their node.
const CONTROLLERS: &str = "serviceaccount-controller,namespace-controller,endpointslice-controller,\
     root-ca-certificate-publisher-controller,garbage-collector-controller,deployment-controller,replicaset-controller,\
     statefulset-controller,job-controller,daemonset-controller";

/// The programs of a control plane of Kubernetes.
pub struct Programs {
    etcd: PathBuf,
    api: PathBuf,
    controllers: PathBuf,
    kubectl: PathBuf,
}

/// A cluster without nodes.
pub struct Cluster {
    directory: tempfile::TempDir,
    programs: Programs,
    /// Where it runs.
    pub host: Host,
    etcd: Option<Process>,
    api: Option<Process>,
    controllers: Option<Process>,
}

impl Programs {
    /// `None` where the machine has not got them, which was announced.
    pub fn find() -> Option<Self> {
        Some(Self {
            etcd: require::tool("etcd")?,
            api: require::tool("kube-apiserver")?,
            controllers: require::tool("kube-controller-manager")?,
            kubectl: require::tool("kubectl")?,
        })
    }
}

impl Cluster {
    /// Starts everything and waits until the API server and the default namespace are there.
    pub async fn start(programs: Programs, host: &Host) -> Self {
        let mut cluster = Self::start_alone(programs, host).await;
        cluster.start_controllers();
        eventually("the controllers work", || async {
            cluster.kubectl(&["-n", "default", "get", "serviceaccount", "default"])
        })
        .await;
        cluster
    }

    /// Without controllers: what is there, somebody has made.
    pub async fn start_alone(programs: Programs, host: &Host) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut cluster =
            Self { directory, programs, host: host.clone(), etcd: None, api: None, controllers: None };
        let key = KeyPair::generate().expect("a key");
        let (private, public) = (key.serialize_pem(), key.public_key_pem());
        std::fs::create_dir(cluster.path("pki")).expect("a directory of our own");
        let [certificate, certificate_key] = certificate(&[API.ip(), IN_CLUSTER, host.v4()]);
        for (name, text) in [
            ("pki/apiserver.crt", certificate.as_str()),
            ("pki/apiserver.key", certificate_key.as_str()),
            ("sa.key", private.as_str()),
            ("sa.pub", public.as_str()),
            (
                "tokens.csv",
                "admin-token,admin,1,system:masters\nmesh-token,mesh,2,mesh\ncni-token,cni,3,cni\n",
            ),
            ("audit.json", AUDIT),
            ("admin.kubeconfig", &cluster.kubeconfig_of("admin-token")),
            ("mesh.kubeconfig", &cluster.kubeconfig_of("mesh-token")),
            ("cni.kubeconfig", &cluster.kubeconfig_of("cni-token")),
        ] {
            std::fs::write(cluster.path(name), text).expect("a file of our own");
        }
        cluster.start_etcd();
        cluster.start_api().await;
        cluster
    }

    fn start_controllers(&mut self) {
        let mut command = self.host.command(&self.programs.controllers);
        command.current_dir(self.path("")).args([
            "--kubeconfig=admin.kubeconfig",
            "--bind-address=127.0.0.1",
            "--secure-port=10257",
            "--cert-dir=pki-controllers",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=pki/apiserver.crt",
            &format!("--controllers={CONTROLLERS}"),
        ]);
        self.controllers = Some(Process::spawn(command, self.path("controllers.log")));
    }

    fn kubeconfig_of(&self, token: &str) -> String {
        let ca = self.path("pki/apiserver.crt");
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("https://{API}"), "certificate-authority": ca}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        })
        .to_string()
    }

    /// A file of the cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_etcd(&mut self) {
        let mut command = self.host.command(&self.programs.etcd);
        command.current_dir(self.path("")).args([
            "--name=e",
            "--data-dir=etcd",
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=e=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]);
        self.etcd = Some(Process::spawn(command, self.path("etcd.log")));
    }

    /// Starts the API server (again) and waits until it is ready.
    pub async fn start_api(&mut self) {
        let mut command = self.host.command(&self.programs.api);
        command.current_dir(self.path("")).args([
            &format!("--etcd-servers={ETCD}"),
            // Pods come by its Service's address, which is that of its host.
            "--bind-address=0.0.0.0",
            &format!("--advertise-address={}", self.host.v4()),
            &format!("--secure-port={}", API.port()),
            "--tls-cert-file=pki/apiserver.crt",
            "--tls-private-key-file=pki/apiserver.key",
            "--endpoint-reconciler-type=none",
            // Services have an address of the first, unless they ask for both.
            "--service-cluster-ip-range=10.96.0.0/16,fd96::/112",
            "--authorization-mode=RBAC",
            "--token-auth-file=tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--audit-policy-file=audit.json",
            "--audit-log-path=audit.log",
            "--allow-privileged=true",
            "--profiling=false",
        ]);
        self.api = Some(Process::spawn(command, self.path("apiserver.log")));
        eventually("the API server is ready", || async { self.kubectl(&["get", "--raw", "/readyz"]) }).await;
    }

    /// Kills the API server at once.
    pub fn kill_api(&mut self) {
        if let Some(api) = self.api.take() {
            api.kill();
        }
    }

    /// `kubectl` as an administrator.
    ///
    /// # Errors
    /// All that it wrote.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let kubeconfig = format!("--kubeconfig={}", self.path("admin.kubeconfig").display());
        // It writes what it discovers into the home directory otherwise.
        let cache = format!("--cache-dir={}", self.path("cache").display());
        self.host.ask(&self.programs.kubectl, &[&[kubeconfig.as_str(), &cache], args].concat())
    }

    /// `kubectl apply`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, yaml: &str) -> String {
        self.try_apply(yaml).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `kubectl apply`.
    ///
    /// # Errors
    /// All that it wrote.
    pub fn try_apply(&self, yaml: &str) -> Result<String, String> {
        self.kubectl_with(yaml, &["apply"])
    }

    /// `kubectl` with a file of this text.
    ///
    /// # Errors
    /// All that it wrote.
    pub fn kubectl_with(&self, yaml: &str, words: &[&str]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new_in(self.path("")).map_err(|error| error.to_string())?;
        std::fs::write(file.path(), yaml).map_err(|error| error.to_string())?;
        self.kubectl(&[words, &["-f", &file.path().to_string_lossy()]].concat())
    }

    /// A client as an administrator; connections are made where it is used.
    pub async fn client(&self) -> Client {
        let file = Kubeconfig::read_from(self.path("admin.kubeconfig")).expect("our own file");
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("our own file")).expect("a client")
    }

    /// Where it is, written down as the endpoint of its Service: Pods reach it by that.
    pub fn serve_pods(&self) {
        let slice = serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "endpoints": [{"addresses": [self.host.v4()]}], "ports": [{"name": "https", "port": API.port()}],
        });
        self.apply(&slice.to_string());
    }

    /// What a user, `mesh`, `cni`, [`INSTALLED`] or its revision `canary`, or [`INSTALLED_CNI`] has asked of the API server: its audit, one event for each question and its answer.
    pub fn audit(&self, user: &str) -> Vec<serde_json::Value> {
        let log = self.log("audit");
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        events.filter(|event| event["user"]["username"] == user).collect()
    }

    /// What a program of it has written.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// A program that is no part of it, on its host.
    pub fn command(&self, program: &Path) -> Command {
        self.host.command(program)
    }
}

/// A certificate for these addresses and the names of an API server, with the authority that has signed it, and its key.
fn certificate(addresses: &[IpAddr]) -> [String; 2] {
    let key = || KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "the authority of the test's cluster");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = key();
    let authority = root.self_signed(&root_key).expect("a root");
    let issuer = Issuer::new(root, root_key);
    let mut leaf = CertificateParams::new(["kubernetes.default.svc".to_owned(), "localhost".to_owned()])
        .expect("names of DNS");
    leaf.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    leaf.distinguished_name.push(DnType::CommonName, "the API server of the test's cluster");
    let leaf_key = key();
    let leaf = leaf.signed_by(&leaf_key, &issuer).expect("a certificate");
    [leaf.pem() + &authority.pem(), leaf_key.serialize_pem()]
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Without etcd the API server waits for it.
        drop((self.controllers.take(), self.api.take(), self.etcd.take()));
    }
}
