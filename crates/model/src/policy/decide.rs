//! Authorization decisions: pure, the same for the proxy, the analyzer and `explain`.
//!
//! Filters are evaluated in order, as Envoy does: the first that denies decides. A filter of action DENY denies what it
//! matches; one of action ALLOW denies what it does not match. A condition on the path of a request without one (CONNECT, a
//! tunnel to any path) decides for denial, on either side and under any negation.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::invalid::{Flaw, Under};
use crate::matcher::Matcher;
use crate::matcher::header::CompiledHeader;
use crate::origin::Origin;
use crate::policy::claim::Claim;
use crate::policy::{Permission, Principal, Rbac, RbacAction};
use crate::request::{ConnectionView, RequestView};

mod explain;

pub use explain::{Looked, look};

/// Compiled RBAC filters.
#[derive(Debug, Default)]
pub struct PolicySet {
    filters: Vec<CompiledRbac>,
}

/// The outcome of an authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Nothing denies it.
    Allow,
    /// A filter denies it.
    Deny(Denial<'a>),
}

/// Why something is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial<'a> {
    /// A DENY policy matched.
    Matched {
        /// Its name.
        policy: &'a str,
        /// The user object that it comes from.
        origin: Option<&'a Origin>,
    },
    /// There are ALLOW policies and none matched; the first of them stands for all.
    NoneMatched {
        /// The name of the first ALLOW policy, if there is any.
        policy: Option<&'a str>,
        /// The user object that it comes from.
        origin: Option<&'a Origin>,
    },
}

impl Decision<'_> {
    /// Whether it is allowed.
    pub fn is_allow(&self) -> bool {
        *self == Decision::Allow
    }
}

impl<'a> Denial<'a> {
    /// The user object behind it.
    pub fn origin(&self) -> Option<&'a Origin> {
        match self {
            Self::Matched { origin, .. } | Self::NoneMatched { origin, .. } => *origin,
        }
    }
}

impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched { policy, .. } => write!(f, "denied by policy {policy}"),
            Self::NoneMatched { policy: Some(policy), .. } => {
                write!(f, "no ALLOW policy matches (such as {policy})")
            }
            Self::NoneMatched { policy: None, .. } => {
                f.write_str("ALLOW without any policy denies everything")
            }
        }
    }
}

impl PolicySet {
    /// Compiles filters; a malformed one is named by its field path.
    ///
    /// # Errors
    /// The first matcher that cannot be compiled.
    pub fn compile<'a>(filters: impl IntoIterator<Item = &'a Rbac>) -> Result<Self, Flaw> {
        let compile = |(i, rbac)| CompiledRbac::compile(rbac).under(format_args!("rbac[{i}]"));
        Ok(Self { filters: filters.into_iter().enumerate().map(compile).collect::<Result<_, _>>()? })
    }

    /// Whether there is nothing to decide.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Decides on a connection (`request` absent) or a request.
    pub fn decide<R: RequestView>(
        &self,
        connection: &ConnectionView<'_>,
        request: Option<&R>,
    ) -> Decision<'_> {
        for filter in &self.filters {
            let case = Case { connection, request, forbids: filter.action == RbacAction::Deny };
            let matched = filter.policies.iter().find(|policy| policy.matches(case));
            match (filter.action, matched) {
                (RbacAction::Deny, Some(policy)) => {
                    return Decision::Deny(Denial::Matched {
                        policy: &policy.name,
                        origin: policy.origin.as_ref(),
                    });
                }
                (RbacAction::Allow, None) => {
                    let first = filter.policies.first();
                    return Decision::Deny(Denial::NoneMatched {
                        policy: first.map(|policy| policy.name.as_str()),
                        origin: first.and_then(|policy| policy.origin.as_ref()),
                    });
                }
                _ => {}
            }
        }
        Decision::Allow
    }

    /// Decides on a connection before anything of HTTP is known.
    pub fn decide_connection(&self, connection: &ConnectionView<'_>) -> Decision<'_> {
        self.decide::<NoRequest>(connection, None)
    }
}

/// Stands for "no request" where a type is needed.
enum NoRequest {}

impl RequestView for NoRequest {
    fn method(&self) -> &str {
        match *self {}
    }
    fn path(&self) -> &str {
        match *self {}
    }
    fn authority(&self) -> &str {
        match *self {}
    }
    fn scheme(&self) -> &str {
        match *self {}
    }
    fn header<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        std::iter::empty()
    }
}

#[derive(Debug)]
struct CompiledRbac {
    action: RbacAction,
    policies: Vec<CompiledPolicy>,
}

#[derive(Debug)]
struct CompiledPolicy {
    name: String,
    origin: Option<Origin>,
    permissions: Vec<Condition>,
    principals: Vec<Condition>,
}

impl CompiledRbac {
    fn compile(rbac: &Rbac) -> Result<Self, Flaw> {
        let mut policies = Vec::with_capacity(rbac.policies.len());
        for (name, policy) in &rbac.policies {
            let at = |list: &str, i: usize| format!("policies[{name}].{list}[{i}]");
            let permissions = policy.permissions.iter().enumerate();
            let principals = policy.principals.iter().enumerate();
            policies.push(CompiledPolicy {
                name: name.clone(),
                origin: policy.origin.clone(),
                permissions: permissions
                    .map(|(i, p)| permission(p).under(at("permissions", i)))
                    .collect::<Result<_, _>>()?,
                principals: principals
                    .map(|(i, p)| principal(p).under(at("principals", i)))
                    .collect::<Result<_, _>>()?,
            });
        }
        Ok(Self { action: rbac.action, policies })
    }
}

/// What conditions look at.
struct Case<'a, R> {
    connection: &'a ConnectionView<'a>,
    request: Option<&'a R>,
    /// A match leads to denial.
    forbids: bool,
}

// Derived, they would ask the same of R.
impl<R> Clone for Case<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Case<'_, R> {}

impl CompiledPolicy {
    fn matches<R: RequestView>(&self, case: Case<'_, R>) -> bool {
        self.permissions.iter().any(|c| c.holds(case)) && self.principals.iter().any(|c| c.holds(case))
    }
}

/// Permissions and principals differ only in what they may ask for; they run the same.
#[derive(Debug)]
enum Condition {
    Any,
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Header(CompiledHeader),
    Path(Matcher),
    DestinationPort(u16),
    DestinationIp(IpNet),
    ServerName(Matcher),
    Authenticated(Option<Matcher>),
    SourceIp(IpNet),
    Claim(Claim),
}

fn permission(p: &Permission) -> Result<Condition, String> {
    let all = |list: &[Permission]| list.iter().map(permission).collect::<Result<Vec<_>, _>>();
    Ok(match p {
        Permission::Any => Condition::Any,
        Permission::And(list) => Condition::And(all(list)?),
        Permission::Or(list) => Condition::Or(all(list)?),
        Permission::Not(inner) => Condition::Not(Box::new(permission(inner)?)),
        Permission::Header(header) => Condition::Header(CompiledHeader::compile(header)?),
        Permission::Path(path) => Condition::Path(path.compile()?),
        Permission::DestinationPort(port) => Condition::DestinationPort(*port),
        Permission::DestinationIp(net) => Condition::DestinationIp(*net),
        Permission::ServerName(name) => Condition::ServerName(name.compile()?),
    })
}

fn principal(p: &Principal) -> Result<Condition, String> {
    let all = |list: &[Principal]| list.iter().map(principal).collect::<Result<Vec<_>, _>>();
    Ok(match p {
        Principal::Any => Condition::Any,
        Principal::And(list) => Condition::And(all(list)?),
        Principal::Or(list) => Condition::Or(all(list)?),
        Principal::Not(inner) => Condition::Not(Box::new(principal(inner)?)),
        Principal::Authenticated(id) => {
            Condition::Authenticated(id.as_ref().map(|m| m.compile()).transpose()?)
        }
        Principal::SourceIp(net) => Condition::SourceIp(*net),
        Principal::Header(header) => Condition::Header(CompiledHeader::compile(header)?),
        Principal::Claim(claim) => Condition::Claim(Claim::compile(claim)?),
    })
}

impl Condition {
    fn holds<R: RequestView>(&self, case: Case<'_, R>) -> bool {
        let Case { connection, request, forbids } = case;
        match self {
            Self::Any => true,
            Self::And(list) => list.iter().all(|c| c.holds(case)),
            Self::Or(list) => list.iter().any(|c| c.holds(case)),
            Self::Not(inner) => !inner.holds(Case { forbids: !forbids, ..case }),
            Self::Header(header) => request.is_some_and(|request| header.matches(request, forbids)),
            Self::Path(path) => request.is_some_and(|request| {
                let text = request.path();
                let is_met = || path.matches(text.split_once('?').map_or(text, |(path, _)| path).as_bytes());
                if text.is_empty() { forbids } else { is_met() }
            }),
            Self::DestinationPort(port) => connection.destination.port() == *port,
            Self::DestinationIp(net) => contains(net, connection.destination.ip()),
            Self::ServerName(name) => {
                connection.server_name.is_some_and(|text| name.matches(text.as_bytes()))
            }
            Self::Authenticated(None) => connection.peer.is_some(),
            Self::Authenticated(Some(id)) => {
                connection.peer.is_some_and(|peer| id.matches(peer.as_str().as_bytes()))
            }
            Self::SourceIp(net) => contains(net, connection.source.ip()),
            Self::Claim(claim) => request.is_some_and(|request| {
                let says = |tokens| claim.matches(tokens);
                request.supposed().unwrap_or_else(|| request.tokens().is_some_and(says))
            }),
        }
    }
}

/// An IPv4 peer of a dual-stack socket has a mapped address.
fn contains(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address.to_canonical())
}

#[cfg(test)]
mod tests;
