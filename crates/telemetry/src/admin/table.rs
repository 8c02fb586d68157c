//! The endpoint table.

use std::borrow::Cow;

use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode, Uri};

use super::endpoint::{AdminRequest, AdminResponse, Row};
use super::index;
use crate::site::Site;

/// The endpoints of one admin port.
#[derive(Clone)]
pub struct Table {
    title: Cow<'static, str>,
    rows: Vec<Row>,
    site: Site,
    /// The setting that tells names.
    setting: &'static str,
}

impl Table {
    /// No endpoints but the index and `/help`; `title` heads the index.
    pub fn new(title: impl Into<Cow<'static, str>>) -> Self {
        Self { title: title.into(), rows: Vec::new(), site: Site::default(), setting: "the settings" }
    }

    /// Answers by these names, too; `setting` is where they are from.
    #[must_use]
    pub fn known_as(mut self, names: &[String], setting: &'static str) -> Self {
        self.site = Site::new(names);
        self.setting = setting;
        self
    }

    /// Why a request for `target` is not answered, whatever it asks for.
    pub(super) fn refuse(&self, target: &Uri, request: &AdminRequest) -> Option<AdminResponse> {
        let row = self.row(request);
        if row.is_some_and(|row| row.local) && !request.peer.ip().to_canonical().is_loopback() {
            let text = format!("{} answers who asks from this host alone.\n", request.path);
            return Some(AdminResponse::status(StatusCode::FORBIDDEN, text));
        }
        if row.is_some_and(|row| row.open) {
            return None;
        }
        let text = self.site.refuse(target, &request.headers, self.setting)?;
        Some(AdminResponse::status(StatusCode::FORBIDDEN, text))
    }

    /// Whether its answer has no time of ours.
    pub(super) fn is_patient(&self, request: &AdminRequest) -> bool {
        self.row(request).is_some_and(|row| row.patient)
    }

    /// The one that will answer.
    fn row(&self, request: &AdminRequest) -> Option<&Row> {
        self.rows.iter().find(|row| row.matches(&request.path).is_some() && row.takes(&request.method))
    }

    /// Adds a row. A row with the same path takes the methods that the earlier one does not.
    #[must_use]
    pub fn with(mut self, row: Row) -> Self {
        self.push(row);
        self
    }

    /// Adds a row in place.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The rows in the order they were added.
    #[cfg(test)]
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Answers one request.
    pub async fn answer(&self, mut request: AdminRequest) -> AdminResponse {
        let mut allowed = Vec::new();
        for row in &self.rows {
            let Some(tail) = row.matches(&request.path) else { continue };
            if row.takes(&request.method) {
                request.tail = tail.to_owned();
                return (row.handler)(request).await;
            }
            allowed.extend_from_slice(row.methods);
        }
        if allowed.is_empty() && matches!(request.path.as_str(), "/" | "/help") {
            allowed.push("GET");
            if request.method == Method::GET || request.method == Method::HEAD {
                return match request.path.as_str() {
                    "/" => AdminResponse::html(index::html(&self.title, &self.rows)),
                    _ => AdminResponse::text(index::text(&self.title, &self.rows)),
                };
            }
        }
        if allowed.is_empty() {
            let help = index::text(&self.title, &self.rows);
            let text = format!("There is no {} here.\n\n{help}", request.path);
            return AdminResponse::status(StatusCode::NOT_FOUND, text);
        }
        not_allowed(&request, &allowed.join(", "))
    }
}

fn not_allowed(request: &AdminRequest, allowed: &str) -> AdminResponse {
    let (path, method) = (&request.path, &request.method);
    let text = format!("{path} takes {allowed}, not {method}; try `curl -X {allowed} …{path}`.\n");
    let text = if allowed.contains(',') { format!("{path} takes {allowed}, not {method}.\n") } else { text };
    let response = AdminResponse::status(StatusCode::METHOD_NOT_ALLOWED, text);
    match HeaderValue::from_str(allowed) {
        Ok(value) => response.with_header(ALLOW, value),
        Err(_) => response,
    }
}

/// Splits and decodes a query string; what is not valid percent-encoding stays as it is.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
