use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// An application that answers each request with the same bytes and then closes; what it was asked.
struct App {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl App {
    async fn start(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let n = stream.read(&mut head).await.unwrap();
                hears.lock().unwrap().push(String::from_utf8_lossy(&head[..n]).into_owned());
                // Whoever has heard enough leaves.
                let _ = stream.write_all(&answer).await;
            }
        });
        Self { address, heard }
    }

    async fn saying(content_type: &str, text: &str) -> Self {
        Self::start(format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n\r\n{text}").into()).await
    }

    fn section(&self) -> Section {
        Section { port: self.address.port(), address: self.address.ip(), path: "/m?x=1".into(), tls: false }
    }

    fn application(&self, registry: &Registry) -> Arc<Application> {
        Application::new(self.section(), registry, |_| true)
    }
}

fn registry() -> Registry {
    let registry = Registry::new();
    registry.counter("istio_requests_total", "Ours.").add(7);
    registry
}

fn asking(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

async fn scrape(application: &Application, registry: &Registry, asked: &HeaderMap) -> (String, String) {
    let response = application.page(registry, asked).await;
    assert_eq!(response.status, StatusCode::OK);
    let content_type = response.headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    (content_type, String::from_utf8(response.body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_page_has_ours_and_the_application_s_but_nothing_of_ours_that_it_says() {
    let theirs = "# TYPE process_threads gauge\nprocess_threads 4\nistio_requests_total 1000\n";
    // What of ours has no sample yet, and what is not on a page before the application's is judged.
    let early = "# TYPE outrigger_app_metrics_up gauge\noutrigger_app_metrics_up 1000 99999999999999\n\
        # TYPE istio_request_bytes histogram\nistio_request_bytes_bucket{le=\"+Inf\"} 1000\n\
        istio_tcp_sent_bytes_total 1000\noutrigger_metrics_left_out 1000\n";
    // What is not ours, of their kinds.
    let others = "istio_agent_starts_total 3\nenvoy_cluster_assignment_stale 5\n";
    let theirs = &format!("{theirs}{early}{others}");
    let (app, registry) = (App::saying("text/plain; version=0.0.4", theirs).await, registry());
    let application = app.application(&registry);
    let stranger = asking(&[
        ("authorization", "Bearer x"),
        ("x-forwarded-client-cert", "URI=spiffe://mesh/ns/shop/sa/admin"),
        (WAITS, "5"),
    ]);
    let (content_type, text) = scrape(&application, &registry, &stranger).await;
    assert_eq!(content_type, page::CONTENT_TYPE);
    assert!(text.contains("\nistio_requests_total 7\n") && !text.contains("1000"), "{text}");
    let theirs =
        format!("outrigger_app_metrics_up 1\n# TYPE process_threads gauge\nprocess_threads 4\n{others}");
    assert!(text.ends_with(&theirs), "{text}");
    for once in ["# TYPE outrigger_app_metrics_up ", "\noutrigger_app_metrics_up "] {
        assert_eq!(text.matches(once).count(), 1, "{once}: {text}");
    }
    let heard = app.heard.lock().unwrap().concat().to_lowercase();
    assert!(heard.starts_with("get /m?x=1 http/1.1\r\n"), "{heard}");
    assert!(heard.contains("accept: text/plain;version=0.0.4") && !heard.contains("openmetrics"), "{heard}");
    assert!(heard.contains("x-prometheus-scrape-timeout-seconds: 4\r\n"), "{heard}");
    assert!(!heard.contains("bearer") && !heard.contains("spiffe"), "what a stranger says: {heard}");
}

#[tokio::test]
async fn open_metrics_are_asked_for_where_the_scraper_reads_them_and_end_once() {
    let theirs = "# TYPE calls counter\ncalls_total 3.0 # {trace_id=\"a\"} 1.0\n# EOF\n";
    let app = App::saying("application/openmetrics-text; version=1.0.0; charset=utf-8", theirs).await;
    let registry = registry();
    let application = app.application(&registry);
    let reads = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5";
    let (content_type, text) = scrape(&application, &registry, &asking(&[("accept", reads)])).await;
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.contains("# TYPE istio_requests counter\nistio_requests_total 7\n"), "{text}");
    assert!(text.ends_with(theirs) && text.matches("# EOF").count() == 1, "{text}");
    assert!(app.heard.lock().unwrap()[0].contains("application/openmetrics-text;version=1.0.0"));
    for (accept, takes) in [(reads, true), ("Application/OpenMetrics-Text", true), ("*/*", false)] {
        assert_eq!(takes_open_metrics(&asking(&[("accept", accept)])), takes, "{accept}");
    }
    assert!(!takes_open_metrics(&asking(&[("accept", "application/openmetrics-text;q=0")])));
    let newer = asking(&[("accept", "text/plain;version=1.0.0; escaping=allow-utf-8;q=0.5")]);
    assert!(takes_any_names(&newer) && !takes_any_names(&asking(&[("accept", reads)])));
}

/// As the application would be asked without a sidecar: or it would write other names.
#[tokio::test]
async fn names_of_any_letters_are_asked_for_where_the_scraper_reads_them() {
    let theirs = "# TYPE \"shop.calls\" counter\n{\"shop.calls\"} 3\n";
    let (app, registry) =
        (App::saying("text/plain; version=1.0.0; escaping=allow-utf-8", theirs).await, registry());
    let application = app.application(&registry);
    for (accept, is_read) in [
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3", true),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4",
            true,
        ),
        ("application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5", false),
        ("text/plain;version=0.0.4", false),
    ] {
        let (_, text) = scrape(&application, &registry, &asking(&[("accept", accept)])).await;
        assert_eq!(text.ends_with(theirs), is_read, "{accept}: {text}");
        let heard = app.heard.lock().unwrap().pop().unwrap();
        let asked = heard.lines().find(|line| line.starts_with("accept: ")).unwrap();
        for format in ["text/plain;version=1.0.0", "application/openmetrics-text;version=1.0.0"] {
            let with = format!("{format};escaping=allow-utf-8;");
            assert_eq!(asked.contains(&with), is_read && accept.contains(format), "{accept}: {asked}");
        }
        assert!(is_read || !asked.contains("escaping"), "{accept}: {asked}");
    }
}

#[tokio::test]
async fn an_application_that_fails_takes_nothing_from_ours_and_is_told_of() {
    let over = format!("HTTP/1.1 200 OK\r\n\r\n{}", "a 1\n".repeat(MOST / 4 + 1));
    for (answer, outcome) in [
        (over.as_str(), "too_large"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status"),
        ("HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n", "status"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\na 1\n", "unreadable"),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\na 1\n", "unreadable"),
        ("HTTP/1.1 200 OK\r\n\r\n<html>\n", "unreadable"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\na 1\n", "unreadable"),
        ("", "unreachable"),
    ] {
        let (app, registry) = (App::start(answer.into()).await, registry());
        let (_, text) = scrape(&app.application(&registry), &registry, &HeaderMap::new()).await;
        assert!(text.contains("\nistio_requests_total 7\n"), "{outcome}: {text}");
        assert!(text.ends_with("\noutrigger_app_metrics_up 0\n"), "{outcome}: {text}");
        let after = registry.render();
        let counted = format!("outrigger_app_metrics_scrapes_total{{outcome=\"{outcome}\"}} 1\n");
        assert!(after.contains(&counted), "{counted}: {after}");
    }
}

#[tokio::test]
async fn an_application_that_does_not_answer_is_waited_for_as_long_as_the_scraper_has() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let registry = registry();
    let section = Section { port: address.port(), address: address.ip(), path: path(), tls: false };
    let application = Application::new(section, &registry, |_| true);
    let (_, text) = scrape(&application, &registry, &asking(&[(WAITS, "0.2")])).await;
    assert!(text.contains("outrigger_app_metrics_up 0\n"), "{text}");
    assert!(registry.render().contains("outcome=\"late\"} 1\n"));
    for (said, taken) in [("10", 8.0), ("1e9", 25.0), ("-3", 0.1), ("NaN", 8.0), ("soon", 8.0)] {
        assert_eq!(patience(&asking(&[(WAITS, said)])).as_secs_f64(), taken, "{said}");
    }
}

#[tokio::test]
async fn who_does_not_take_his_page_has_a_bound_of_bytes_and_our_own_addresses_are_not_asked() {
    let (app, registry) = (App::saying("text/plain", "a 1\n").await, registry());
    let application = app.application(&registry);
    let slow = application.page(&registry, &HeaderMap::new()).await;
    let rest = application.held.available_permits();
    assert_eq!(rest, MOST_HELD - 4);
    let others = application.held.clone().try_acquire_many_owned(rest as u32).unwrap();
    let (_, text) = scrape(&application, &registry, &HeaderMap::new()).await;
    assert!(text.ends_with("outrigger_app_metrics_up 0\n"), "{text}");
    assert!(registry.render().contains("outcome=\"busy\"} 1\n"));
    drop((slow, others));
    assert_eq!(application.held.available_permits(), MOST_HELD);
    assert_eq!(application.turns.available_permits(), AT_ONCE);

    let asked = app.heard.lock().unwrap().len();
    let ours = app.address;
    let refused = Application::new(app.section(), &registry, move |address| address != ours);
    let (_, text) = scrape(&refused, &registry, &HeaderMap::new()).await;
    assert!(text.ends_with("outrigger_app_metrics_up 0\n"), "{text}");
    assert_eq!(app.heard.lock().unwrap().len(), asked);
    // Nobody listens at the Pod's address: at the loopback one, then.
    let section = Section { address: "127.0.0.77".parse().unwrap(), ..app.section() };
    let (_, text) =
        scrape(&Application::new(section, &registry, |_| true), &registry, &HeaderMap::new()).await;
    assert!(text.ends_with("\na 1\n"), "{text}");
}

#[tokio::test]
async fn the_loopback_address_is_dialled_once() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (registry, asked) = (registry(), Arc::new(Mutex::new(Vec::new())));
    let dialled = asked.clone();
    let section = Section { port: address.port(), address: address.ip(), path: path(), tls: false };
    let application = Application::new(section, &registry, move |address| {
        dialled.lock().unwrap().push(address);
        true
    });
    scrape(&application, &registry, &HeaderMap::new()).await;
    assert!(registry.render().contains("outcome=\"unreachable\"} 1\n"));
    assert_eq!(*asked.lock().unwrap(), [address]);
}

/// One that is judged has its turn and its room for as long, and the scraper does not wait for it.
#[test]
fn what_is_judged_late_is_held_all_the_while() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (busy, waits) = std::sync::mpsc::channel::<()>();
        let before = tokio::task::spawn_blocking(move || waits.recv());
        let (app, registry) = (App::saying("text/plain", "a 1\n").await, registry());
        let application = app.application(&registry);
        let (asked, ours) = (application.clone(), registry.clone());
        let scraped = tokio::spawn(async move { scrape(&asked, &ours, &HeaderMap::new()).await });
        while application.held.available_permits() == MOST_HELD {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(2 * PATIENCE).await;
        let (_, text) = scraped.await.unwrap();
        assert!(text.ends_with("outrigger_app_metrics_up 0\n"), "{text}");
        assert!(registry.render().contains("outcome=\"late\"} 1\n"));
        let left = (application.held.available_permits(), application.turns.available_permits());
        assert_eq!(left, (MOST_HELD - 4, AT_ONCE - 1));
        drop(busy);
        assert!(before.await.unwrap().is_err());
        let all = async {
            drop(application.turns.acquire_many(AT_ONCE as u32).await);
            drop(application.held.acquire_many(MOST_HELD as u32).await);
        };
        timeout(PATIENCE, all).await.expect("they are kept for ever");
    });
}

#[test]
fn a_bootstrap_that_names_a_port_of_ours_or_none_is_refused() {
    for (text, word) in [
        ("app_metrics: {port: 0}\n", "app_metrics.port"),
        ("app_metrics: {port: 15000}\n", "the sidecar's"),
        ("metrics: \"[::]:9\"\napp_metrics: {port: 9}\n", "the sidecar's"),
        ("mode: redirect\napp_metrics: {port: 15006}\n", "the sidecar's"),
        ("app_metrics: {port: 80, path: metrics}\n", "app_metrics.path"),
    ] {
        let text = format!("node: {{id: web-1}}\nstate_dir: /tmp/x\n{text}");
        let error = crate::bootstrap::Bootstrap::parse("b.yaml".as_ref(), &text).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("b.yaml"), "{error}");
    }
    let text = "node: {id: web-1}\nstate_dir: /tmp/x\napp_metrics: {port: 15006}\n";
    let bootstrap = crate::bootstrap::Bootstrap::parse("b.yaml".as_ref(), text).unwrap();
    assert_eq!(bootstrap.app_metrics.unwrap().path, "/metrics", "without interception it is nobody's");
}
