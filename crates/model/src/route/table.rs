//! Route matching: pure, the same for the proxy, the analyzer and `explain`.
//!
//! A [`RouteTable`] is compiled once per route configuration. Finding a route allocates nothing, unless the authority has
//! upper-case letters or a header occurs several times.

use std::collections::HashMap;

use crate::invalid::{Flaw, Invalid, Under};
use crate::kind::ResourceKind;
use crate::matcher::header::{without_dots, without_port};
use crate::matcher::{Matcher, regex_within};
use crate::request::RequestView;
use crate::route::{
    AuthorityOf, Forward, PathMatch, RetryHeaders, RetryPolicy, Route, RouteAction, RouteConfig, VirtualHost,
    WeightedCluster,
};

mod conditions;

use conditions::path_of;
pub use conditions::{CompiledMatch, Mismatch};

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {
    name: String,
    hosts: Vec<CompiledHost>,
    exact: HashMap<String, usize, foldhash::quality::RandomState>,
    /// `*suffix`, longest first.
    suffixes: Vec<(String, usize)>,
    /// `prefix*`, longest first.
    prefixes: Vec<(String, usize)>,
    any: Option<usize>,
}

/// A compiled virtual host.
#[derive(Debug)]
pub struct CompiledHost {
    /// Its name.
    pub name: String,
    /// Its routes, in order.
    pub routes: Vec<CompiledRoute>,
    /// Retries of routes that have none of their own.
    pub retry: Option<RetryPolicy>,
}

/// A compiled route.
#[derive(Debug)]
pub struct CompiledRoute {
    /// Dense over the table, so that callers can keep their own data by it.
    pub id: u32,
    /// What it was compiled from.
    pub config: Route,
    matcher: CompiledMatch,
    total_weight: u64,
    /// Compiled `regex_rewrite` of what it forwards or redirects, with its substitution in the syntax of `regex`.
    rewrite: Option<(regex::Regex, String)>,
    /// The same of what makes its authority from the path.
    authority: Option<Box<(regex::Regex, String)>>,
    /// Of its policy for other origins.
    origins: Vec<Matcher>,
    retry_headers: Option<Box<RetryHeaders>>,
}

/// The route of a request.
#[derive(Debug, Clone, Copy)]
pub struct RouteRef<'a> {
    /// The virtual host that it was found in.
    pub host: &'a CompiledHost,
    /// The route.
    pub route: &'a CompiledRoute,
}

impl RouteTable {
    /// Compiles a route configuration.
    ///
    /// # Errors
    /// The field that cannot be taken: a duplicate domain, a bad regular expression, weights that sum to 0.
    pub fn compile(config: &RouteConfig) -> Result<Self, Invalid> {
        let mut table = Self {
            name: config.name.clone(),
            hosts: Vec::with_capacity(config.virtual_hosts.len()),
            exact: HashMap::default(),
            suffixes: Vec::new(),
            prefixes: Vec::new(),
            any: None,
        };
        let mut next_id = 0;
        for (index, host) in config.virtual_hosts.iter().enumerate() {
            table
                .add_host(host, index, &mut next_id)
                .under(format_args!("virtual_hosts[{index}]"))
                .map_err(|flaw| flaw.of(ResourceKind::Routes, &config.name))?;
        }
        table.suffixes.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        table.prefixes.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Ok(table)
    }

    /// The name of the route configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The virtual hosts, in order.
    pub fn hosts(&self) -> &[CompiledHost] {
        &self.hosts
    }

    /// All routes, ordered by [`CompiledRoute::id`].
    pub fn routes(&self) -> impl Iterator<Item = &CompiledRoute> {
        self.hosts.iter().flat_map(|host| &host.routes)
    }

    /// The first route of the request's virtual host that takes it.
    pub fn find<R: RequestView>(&self, request: &R) -> Option<RouteRef<'_>> {
        let host = self.find_host(request.authority())?;
        let route = host.routes.iter().find(|route| route.matcher.mismatch(request).is_none())?;
        Some(RouteRef { host, route })
    }

    /// The virtual host for an authority: exact with port, exact without it, longest suffix, longest prefix, `*`. Dots at the end
    /// of a name do not count.
    pub fn find_host(&self, authority: &str) -> Option<&CompiledHost> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any.map(|index| &self.hosts[index]);
        }
        let lowered;
        let authority = if authority.bytes().any(|b| b.is_ascii_uppercase()) {
            lowered = authority.to_ascii_lowercase();
            &lowered
        } else {
            authority
        };
        let (mut authority, mut host) = (authority, without_port(authority));
        let bare;
        if host.ends_with('.')
            && let Some(cut) = without_dots(authority)
        {
            bare = cut;
            (authority, host) = (&bare, without_port(&bare));
        }
        let index = self.exact.get(authority).or_else(|| self.exact.get(host)).copied();
        let index = index.or_else(|| {
            let longer = |text: &str| host.len() > text.len();
            let suffix = self.suffixes.iter().find(|(text, _)| longer(text) && host.ends_with(text.as_str()));
            let found = suffix.or_else(|| {
                self.prefixes.iter().find(|(text, _)| longer(text) && host.starts_with(text.as_str()))
            });
            found.map(|(_, index)| *index).or(self.any)
        });
        index.map(|index| &self.hosts[index])
    }

    /// Why each route of the request's virtual host takes it or not: those before the one that does, and those behind it.
    pub fn explain<'a, R: RequestView>(&'a self, request: &R) -> Explanation<'a> {
        let Some(host) = self.find_host(request.authority()) else { return Explanation::default() };
        let mut found = Explanation { host: Some(host), ..Explanation::default() };
        for route in &host.routes {
            match (route.matcher.mismatch(request), found.route) {
                (why, Some(_)) => found.behind.push((route, why)),
                (Some(why), None) => found.rejected.push((route, why)),
                (None, None) => found.route = Some(route),
            }
        }
        found
    }

    fn add_host(&mut self, host: &VirtualHost, index: usize, next_id: &mut u32) -> Result<(), Flaw> {
        for (i, domain) in host.domains.iter().enumerate() {
            self.add_domain(domain, index).under(format_args!("domains[{i}]"))?;
        }
        let mut routes = Vec::with_capacity(host.routes.len());
        for (i, route) in host.routes.iter().enumerate() {
            let retry = host.retry.as_ref();
            routes.push(CompiledRoute::compile(route, *next_id, retry).under(format_args!("routes[{i}]"))?);
            *next_id += 1;
        }
        self.hosts.push(CompiledHost { name: host.name.clone(), routes, retry: host.retry.clone() });
        Ok(())
    }

    fn add_domain(&mut self, domain: &str, index: usize) -> Result<(), String> {
        let duplicate =
            || format!("the domain \"{domain}\" occurs twice; each may occur once in a route configuration");
        let domain = domain.to_ascii_lowercase();
        if domain == "*" {
            return if self.any.replace(index).is_some() { Err(duplicate()) } else { Ok(()) };
        }
        let wildcards = domain.matches('*').count();
        if domain.is_empty() || wildcards > 1 {
            return Err(format!("\"{domain}\" is no domain: write host, host:port, *.suffix, prefix.* or *"));
        }
        let list = if let Some(suffix) = domain.strip_prefix('*') {
            (&mut self.suffixes, suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            (&mut self.prefixes, prefix)
        } else if wildcards == 1 {
            return Err(format!("\"{domain}\": the * of a domain must be its first or its last character"));
        } else {
            return if self.exact.insert(domain.clone(), index).is_some() {
                Err(duplicate())
            } else {
                Ok(())
            };
        };
        if list.0.iter().any(|(text, _)| text == list.1) {
            return Err(duplicate());
        }
        list.0.push((list.1.to_owned(), index));
        Ok(())
    }
}

/// What [`RouteTable::explain`] found.
#[derive(Debug, Default)]
pub struct Explanation<'a> {
    /// The virtual host; absent if no domain matched.
    pub host: Option<&'a CompiledHost>,
    /// Routes that do not take the request, and why.
    pub rejected: Vec<(&'a CompiledRoute, Mismatch<'a>)>,
    /// The route that takes it.
    pub route: Option<&'a CompiledRoute>,
    /// Routes behind that one: what does not match, or `None` where it only comes too late.
    pub behind: Vec<(&'a CompiledRoute, Option<Mismatch<'a>>)>,
}

impl CompiledRoute {
    /// `retry` is that of its virtual host.
    fn compile(route: &Route, id: u32, retry: Option<&RetryPolicy>) -> Result<Self, Flaw> {
        let matcher = CompiledMatch::compile(&route.matches).under("match")?;
        let mut total_weight = 0;
        let (mut rewrite, mut authority, mut retry_headers) = (None, None, None);
        if let RouteAction::Forward(forward) = &route.action {
            total_weight = forward.clusters.iter().map(|c| u64::from(c.weight)).sum();
            if total_weight == 0 {
                let reason =
                    "the weights sum to 0, so no cluster could be picked; give at least one a weight";
                return Err(Flaw::new(reason).under("route.weighted_clusters"));
            }
            let regex = forward.rewrite.regex.as_ref().map(substitution).transpose();
            rewrite = regex.under("route.regex_rewrite")?;
            if let Some(AuthorityOf::Path(pattern, text)) = &forward.rewrite.authority_of {
                let regex = substitution(&(pattern.clone(), text.clone()));
                authority = Some(Box::new(regex.under("route.host_rewrite_path_regex")?));
            }
            retry_headers =
                RetryHeaders::compile(forward.retry.as_ref().or(retry)).under("route.retry_policy")?;
        }
        if let RouteAction::Redirect(redirect) = &route.action {
            let regex = redirect.regex.as_ref().map(substitution).transpose();
            rewrite = regex.under("redirect.regex_rewrite")?;
        }
        let origins = match &route.cors {
            Some(cors) => cors.origins().under("cors.allow_origin_string_match")?,
            None => Vec::new(),
        };
        let config = route.clone();
        Ok(Self { id, config, matcher, total_weight, rewrite, authority, origins, retry_headers })
    }

    /// Whether pages of this origin may call it.
    pub fn allows_origin(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|allowed| allowed.matches(origin))
    }

    /// What its retries ask of headers.
    pub fn retry_headers(&self) -> Option<&RetryHeaders> {
        self.retry_headers.as_deref()
    }

    /// Why it does not take the request, if it does not.
    pub fn mismatch<R: RequestView>(&self, request: &R) -> Option<Mismatch<'_>> {
        self.matcher.mismatch(request)
    }

    /// The cluster for a uniformly random number, by weight; its index in [`Forward::clusters`] comes with it.
    pub fn pick_cluster<'a>(
        &self,
        forward: &'a Forward,
        random: u64,
    ) -> Option<(usize, &'a WeightedCluster)> {
        if let [only] = forward.clusters.as_slice() {
            return Some((0, only));
        }
        // A 64-bit number modulo a sum below 2^40 is biased by less than one in sixteen million.
        let mut ticket = random.checked_rem(self.total_weight)?;
        for (index, cluster) in forward.clusters.iter().enumerate() {
            let weight = u64::from(cluster.weight);
            if ticket < weight {
                return Some((index, cluster));
            }
            ticket -= weight;
        }
        None
    }

    /// The path (its query stays) after the regular-expression rewrite, if the route has one.
    pub fn replace_regex(&self, path_and_query: &str) -> Option<String> {
        let (regex, substitution) = self.rewrite.as_ref()?;
        let path = path_of(path_and_query);
        let query = &path_and_query[path.len()..];
        Some(format!("{}{query}", regex.replace_all(path, substitution.as_str())))
    }

    /// What the regular expression for the authority makes of the path.
    pub(super) fn authority_of_path(&self, path_and_query: &str) -> Option<String> {
        let (regex, substitution) = self.authority.as_deref()?;
        Some(regex.replace_all(path_of(path_and_query), substitution.as_str()).into_owned())
    }

    /// The path with its matched prefix replaced, for prefix rewrites.
    pub fn replace_prefix(&self, path: &str, replacement: &str) -> String {
        let matched = match &self.config.matches.path {
            PathMatch::Exact(p) | PathMatch::Prefix(p) | PathMatch::Segments(p) => p.len(),
            PathMatch::Regex(_) | PathMatch::Connect => path_of(path).len(),
        };
        let rest = path.get(matched..).unwrap_or("");
        format!("{replacement}{rest}")
    }
}

/// A regular expression and what replaces it, compiled.
fn substitution((pattern, text): &(String, String)) -> Result<(regex::Regex, String), String> {
    Ok((regex_within(pattern)?, rust_substitution(text)))
}

/// RE2's `\\1` as `${1}`; a literal `$` is doubled.
fn rust_substitution(substitution: &str) -> String {
    let mut out = String::with_capacity(substitution.len() + 8);
    let mut chars = substitution.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                out.push_str(&format!("${{{digit}}}"));
                chars.next();
            }
            ('\\', Some('\\')) => {
                out.push('\\');
                chars.next();
            }
            ('$', _) => out.push_str("$$"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
