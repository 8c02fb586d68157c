//! Every sample under `config/examples` is applied to a real control plane, and real sidecars do with requests what its comment says. The
//! table of what is asked and what is wanted is in [`plays`]; what cannot be played is in [`ELSEWHERE`], with the reason.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::echo;
use outrigger_tests::http::{Client, named, whole};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::recorder::{self, recorder};
use outrigger_tests::wait::eventually;
use serde_json::json;

use crate::BINARY;
use crate::health_checks::App;
use crate::services::tls_server;
use crate::tokens::Issuer;
use crate::virtual_services::over_tls;

mod plays;

use plays::{PLAYS, Play, Step, Wanted};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");

/// A test of each sample that is played.
macro_rules! played {
    ($($test:ident $sample:literal,)*) => {
        const PLAYED: &[&str] = &[$($sample),*];
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                play($sample).await;
            }
        )*
    };
}

played! {
    an_instance_takes_as_many_requests_as_keep_it_fast "adaptive-concurrency",
    only_web_gets_in_and_nobody_deletes_a_review "authorization",
    one_request_in_ten_goes_to_the_new_version "canary",
    who_fails_five_times_in_a_row_is_taken_out "circuit-breaker",
    each_user_keeps_one_instance "consistent-hash",
    half_of_the_requests_wait_and_one_in_ten_fails "fault",
    calls_of_one_method_go_to_a_service_of_its_own "grpc-route",
    testers_see_the_third_version "header-route",
    who_fails_its_checks_gets_no_requests "health-check",
    one_slow_instance_is_not_felt "hedging",
    paths_are_rewritten_and_others_are_split "http-route",
    only_mtls_is_taken_but_by_the_port_of_scrapers "mtls-strict",
    each_user_has_five_orders_in_ten_seconds "rate-limit",
    clients_stay_where_they_were_first "session",
    sidecars_know_what_they_may_and_no_more "sidecar",
    one_connection_in_five_goes_to_the_replacement "tcp-route",
    a_request_is_repeated_three_times_and_takes_two_seconds_at_most "timeout-retry",
    tls_goes_by_the_name_that_it_asks_for "tls-route",
    who_changes_something_must_be_an_editor "tokens",
    a_page_says_the_same_of_a_service "traffic-rules",
    a_whole_page_is_obeyed "whole-page",
}

/// Samples that cannot be played, why, and the scenarios of what they say.
const ELSEWHERE: [(&str, &str, &str); 2] = [
    ("backend-tls", "nobody has the key of the authority that is written into it", "backend_tls.rs"),
    (
        "service-entry",
        "it is about a host of the world, with the world's names and authorities",
        "services.rs",
    ),
];

#[test]
fn every_sample_is_played_or_it_is_said_why_not() {
    let files = std::fs::read_dir(EXAMPLES).unwrap().map(|file| file.unwrap().path());
    let mut samples: Vec<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    samples.sort();
    let elsewhere = ELSEWHERE.iter().map(|(sample, ..)| *sample);
    let mut said: Vec<&str> = PLAYED.iter().copied().chain(elsewhere).collect();
    said.sort_unstable();
    assert_eq!(said, samples, "each is in one of the two lists, once");
    let table: Vec<&str> = PLAYS.iter().map(|play| play.sample).collect();
    assert_eq!(table, PLAYED, "and has a play");
    for (sample, why, file) in ELSEWHERE {
        let path = format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR"));
        assert!(std::fs::exists(&path).unwrap(), "{sample}: {why}, and there is no {path}");
    }
}

/// What the issuer of tokens is asked for.
static KEYS: OnceLock<String> = OnceLock::new();

/// A mesh in which a sample is in force.
struct Scene {
    play: &'static Play,
    mesh: Mesh,
    /// By service.
    servers: Vec<(&'static str, Sidecar)>,
    web: Sidecar,
    front: Option<Sidecar>,
    /// What stands for what is known only now.
    words: Vec<(&'static str, String)>,
}

impl Scene {
    async fn of(play: &'static Play) -> Self {
        let mut mesh = Mesh::start(BINARY).await;
        mesh.port = play.port;
        let mut servers = Vec::new();
        for (host, name) in (11..).zip(play.workloads.iter().copied()) {
            let (service, version) = name.rsplit_once('-').unwrap();
            let protocol = play.protocol;
            let sidecar = mesh.workload(&Spec { service, version, host, protocol, calls: &[] }).await;
            match protocol {
                _ if play.sick == name => {
                    App::serve(sidecar.app, name).await.health.store(503, Ordering::SeqCst);
                }
                Protocol::Grpc => named(sidecar.app, name).await,
                Protocol::Tls => {
                    tls_server(sidecar.app, "vault.example.com", &mesh.path(&format!("{name}.pem"))).await;
                }
                _ => echo(sidecar.app, name).await,
            }
            servers.push((service, sidecar));
        }
        let calls: Vec<String> =
            play.services().iter().map(|service| format!("{service}:{}", play.port)).collect();
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        let caller =
            |service, host| Spec { service, version: "v1", host, protocol: Protocol::Http, calls: &calls };
        let web = mesh.workload(&caller("web", 10)).await;
        let front = match play.steps.iter().any(|step| step.from == "front") {
            true => Some(mesh.workload(&caller("front", 9)).await),
            false => None,
        };
        let words = if play.sample == "tokens" { issued().await } else { Vec::new() };
        Self { play, mesh, servers, web, front, words }
    }

    /// The sample, with what is written otherwise for the play.
    fn rules(&self) -> String {
        let mut rules = std::fs::read_to_string(format!("{EXAMPLES}/{}.yaml", self.play.sample)).unwrap();
        for (written, played) in self.play.edits {
            assert!(rules.contains(written), "there is no {written} any more");
            rules = rules.replace(written, played);
        }
        self.filled(&rules)
    }

    fn filled(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(*word, value))
    }

    /// Where a step's requests go.
    fn entry(&self, step: &Step) -> SocketAddr {
        let caller = match step.from {
            "web" => &self.web,
            "front" => self.front.as_ref().unwrap(),
            "outside" => {
                let (_, server) = self.servers.iter().find(|(service, _)| *service == step.to).unwrap();
                return server.inbound;
            }
            other => panic!("{other} calls nobody"),
        };
        caller.outbound[self.play.services().iter().position(|service| *service == step.to).unwrap()]
    }

    /// The answers, as they came, if they are those that are wanted.
    async fn ask(&self, step: &Step) -> Result<Vec<String>, String> {
        let entry = self.entry(step);
        let asked = self.filled(step.ask);
        let answers = stream::iter(0..step.times).map(|n| {
            let request = asked.replace("{n}", &n.to_string());
            async move { self.answer(entry, &request).await }
        });
        let answers: Vec<String> = answers.buffered(step.at_once).collect().await;
        judge(step, &answers).map(|()| answers)
    }

    /// What is answered, and how long that took.
    async fn answer(&self, entry: SocketAddr, request: &str) -> String {
        let began = Instant::now();
        let answer = match request.split_once(' ') {
            Some(("GRPC", path)) => called(entry, path).await,
            Some(("TLS", names)) => {
                let (name, by) = names.split_once(" BY ").unwrap();
                over_tls(entry, name, &self.mesh.path(&format!("{by}.pem"))).await
            }
            _ => match recorder::ask(entry, request).await {
                Ok(answer) => answer.ok_or_else(|| "without an answer".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        };
        let mut text = answer.unwrap_or_else(|why| format!("closed: {why}"));
        for (time, words) in
            [(Duration::from_millis(300), "waited 300 ms"), (Duration::from_secs(2), "waited 2 s")]
        {
            if began.elapsed() >= time {
                text += &format!("\n{words}");
            }
        }
        text
    }
}

/// Keys where they are fetched, and tokens.
async fn issued() -> Vec<(&'static str, String)> {
    let issuer = Issuer::new("https://accounts.example.com");
    let keys = issuer.keys();
    KEYS.set(format!("200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len())).unwrap();
    let (keys, _) = recorder(str::to_owned, |_| KEYS.get().map(String::as_str)).await;
    let of = |group: &str| issuer.token(json!({"groups": [group]}));
    vec![("{keys}", keys.to_string()), ("{editor}", of("editors")), ("{reader}", of("readers"))]
}

/// The answer to a call, a line for each field, and what the application says.
async fn called(entry: SocketAddr, path: &str) -> Result<String, String> {
    let request = Request::post(format!("http://stock{path}")).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(whole(Bytes::new())).unwrap();
    let mut client = Client::h2(entry).await;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
    };
    let fields: String = head.headers.iter().map(field).collect();
    Ok(format!("{}\n{fields}\n{}", head.status, String::from_utf8_lossy(&body)))
}

/// Whether the answers are those that are wanted; if not, what is wrong with one of them.
fn judge(step: &Step, answers: &[String]) -> Result<(), String> {
    let lower: Vec<String> = answers.iter().map(|answer| answer.to_ascii_lowercase()).collect();
    for wanted in step.wanted {
        let having = |words: &str| lower.iter().filter(|answer| answer.contains(words)).count();
        let (found, right) = match *wanted {
            Wanted::Each(words) => (having(words), having(words) == answers.len()),
            Wanted::Never(words) => (having(words), having(words) == 0),
            Wanted::Of(words, least, most) => (having(words), (least..=most).contains(&having(words))),
            Wanted::Apps(least, most) => {
                let name = |answer: &String| field(answer, "x-app-name").map(str::to_owned);
                let apps: BTreeSet<String> = lower.iter().filter_map(name).collect();
                (apps.len(), (least..=most).contains(&apps.len()))
            }
        };
        if !right {
            let (asked, all) = (step.ask, answers.len());
            return Err(format!(
                "{asked:?} from {} to {}: {wanted:?}, but {found} of {all}, such as {:?}",
                step.from,
                step.to,
                answers.first()
            ));
        }
    }
    Ok(())
}

/// A field of an answer without what follows a semicolon.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = answer.lines().filter_map(|line| line.split_once(": "));
    let (_, value) = fields.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    value.split(';').next()
}

async fn play(sample: &str) {
    let play = PLAYS.iter().find(|play| play.sample == sample).unwrap();
    let mut scene = Scene::of(play).await;
    scene.mesh.apply(&scene.rules()).await;
    for step in play.steps {
        let answers = match step.patient {
            true => eventually(step.ask, || scene.ask(step)).await,
            false => scene.ask(step).await.unwrap_or_else(|why| panic!("{sample}: {why}")),
        };
        if let Some(name) = step.keeps {
            let kept = field(&answers[0], name).unwrap().to_owned();
            scene.words.retain(|(word, _)| *word != "{kept}");
            scene.words.push(("{kept}", kept));
        }
    }
}
