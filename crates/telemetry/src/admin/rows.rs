//! Rows that every process wants: readiness, metrics, log filter, end.

use http::{Method, StatusCode};

use super::endpoint::{AdminResponse, Row};
use crate::drain::Drain;
use crate::logging::LogControl;
use crate::metrics::{Registry, page};
use crate::ready::Readiness;

/// Readiness at `path` (`/ready`, `/healthz/ready`): 200 `LIVE`, or 503 and what is missing.
pub fn ready(path: &'static str, readiness: Readiness) -> Row {
    Row::new(path, &["GET"], "200 LIVE when ready, else 503 and what is missing", move |_| {
        let readiness = readiness.clone();
        async move {
            let report = readiness.report().await;
            let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            AdminResponse::status(status, report.text())
        }
    })
    .open()
}

/// Metrics at `path` (`/stats/prometheus`, `/metrics`).
pub fn metrics(path: &'static str, registry: Registry) -> Row {
    Row::get(path, "metrics in Prometheus text format", move |_| {
        AdminResponse::new(StatusCode::OK, page::CONTENT_TYPE, registry.render())
    })
}

/// `/logging`: GET shows the filter, POST `?level=` replaces it.
pub fn logging(control: LogControl) -> Row {
    let help = "log filter in force; POST ?level=info,outrigger_proxy=debug changes it";
    Row::new("/logging", &["GET", "POST"], help, move |request| {
        let level = request.query("level").map(str::to_owned);
        let response = match (request.method == Method::POST, level) {
            (false, None) => AdminResponse::text(format!("{}\n", control.current())),
            (false, Some(_)) => AdminResponse::bad_request("Changing the log filter takes POST.\n"),
            (true, None) => AdminResponse::bad_request(
                "Which filter? Try POST /logging?level=debug or ?level=info,outrigger_proxy=debug\n",
            ),
            (true, Some(directives)) => match control.set(&directives) {
                Ok(()) => AdminResponse::text(format!("{}\n", control.current())),
                Err(error) => AdminResponse::bad_request(format!("{error}\n")),
            },
        };
        std::future::ready(response)
    })
    .local()
}

/// `/quitquitquit`: POST begins the drain, after which the process ends.
pub fn quit(drain: Drain) -> Row {
    Row::new("/quitquitquit", &["POST"], "drain and exit", move |_| {
        let text = if drain.begin() { "draining, then exiting\n" } else { "already draining\n" };
        std::future::ready(AdminResponse::text(text))
    })
    .local()
}
