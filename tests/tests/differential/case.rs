//! What a case is: a virtual host in Envoy's own JSON, and requests to it.

use serde_json::{Value, json};

/// Cases of one virtual host.
pub struct Group {
    /// Its domain is this with `.test`, where `host` has none.
    pub name: String,
    /// The `VirtualHost` without its name.
    pub host: Value,
    /// Clusters of its own.
    pub clusters: Vec<Value>,
    pub cases: Vec<Case>,
    /// Which listener its requests go to.
    pub listener: usize,
    /// Its cases know of each other: they are run one after the other.
    pub ordered: bool,
}

/// Requests that are judged together.
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
    /// Endpoints are the same up to their names: which one is the first is chance.
    pub by_chance: bool,
    /// Copies may come in any order, and after the answer.
    pub copies: Option<usize>,
}

/// What is done.
#[derive(Clone)]
pub enum Step {
    /// A request, as its line without the version, its fields, and its body after an empty line.
    Ask(String),
    /// As that, but it is answered only when all other steps are done; the next step begins when it has come.
    Hold(String),
}

impl Group {
    /// Of these routes.
    pub fn new(name: impl Into<String>, routes: Value) -> Self {
        Self::host(name, json!({ "routes": routes }))
    }

    /// Of this virtual host.
    pub fn host(name: impl Into<String>, host: Value) -> Self {
        Self { name: name.into(), host, clusters: Vec::new(), cases: Vec::new(), listener: 0, ordered: false }
    }

    /// With one case for each request.
    pub fn ask<T: Into<String>>(mut self, requests: impl IntoIterator<Item = T>) -> Self {
        for request in requests {
            let request = request.into();
            self.cases.push(Case::new(request.replace('\n', " | "), [request]));
        }
        self
    }

    pub fn case(mut self, case: Case) -> Self {
        self.cases.push(case);
        self
    }

    pub fn cluster(mut self, cluster: Value) -> Self {
        self.clusters.push(cluster);
        self
    }

    pub fn at(mut self, listener: usize) -> Self {
        self.listener = listener;
        self
    }

    pub fn in_order(mut self) -> Self {
        self.ordered = true;
        self
    }
}

impl Case {
    pub fn new<T: Into<String>>(name: impl Into<String>, requests: impl IntoIterator<Item = T>) -> Self {
        let steps = requests.into_iter().map(|request| Step::Ask(request.into())).collect();
        Self { name: name.into(), steps, by_chance: false, copies: None }
    }

    pub fn by_chance(mut self) -> Self {
        self.by_chance = true;
        self
    }

    /// So many requests come to applications in all.
    pub fn copies(mut self, count: usize) -> Self {
        self.copies = Some(count);
        self
    }
}

/// A message of a type in an `Any`.
pub fn typed(kind: &str, message: Value) -> Value {
    let mut message = message;
    message["@type"] = format!("type.googleapis.com/{kind}").into();
    message
}

/// A route that forwards what it takes to the cluster, with more fields of its action.
pub fn to(matches: Value, cluster: &str, action: Value) -> Value {
    let mut action = action;
    action["cluster"] = cluster.into();
    json!({ "match": matches, "route": action })
}

/// A route that answers with a word: which one it is shows in the body.
pub fn says(matches: Value, word: &str) -> Value {
    json!({ "match": matches, "direct_response": { "status": 200, "body": { "inline_string": word } } })
}

/// A cluster of the endpoints, with more fields.
pub fn cluster(name: &str, endpoints: &[&str], fields: Value) -> Value {
    let mut cluster = fields;
    cluster["name"] = name.into();
    cluster["endpoints"] = json!(endpoints);
    cluster
}
