//! Why each policy of a filter matches or not, by the conditions that decide.

use super::{Case, CompiledRbac, permission, principal};
use crate::invalid::Flaw;
use crate::origin::Origin;
use crate::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use crate::request::{ConnectionView, RequestView};

/// One policy, looked at alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked<'a> {
    /// Its name.
    pub name: &'a str,
    /// The user object that it comes from.
    pub origin: Option<&'a Origin>,
    /// The condition that does not hold; `None`: the policy matches.
    pub unmet: Option<String>,
}

/// Looks at every policy of a filter, in order.
///
/// # Errors
/// The first matcher that cannot be compiled.
pub fn look<'a, R: RequestView>(
    rbac: &'a Rbac,
    connection: &ConnectionView<'_>,
    request: Option<&R>,
) -> Result<Vec<Looked<'a>>, Flaw> {
    let case = Case { connection, request, forbids: rbac.action == RbacAction::Deny };
    let compiled = CompiledRbac::compile(rbac)?;
    let policies = rbac.policies.iter().zip(&compiled.policies);
    let looked = policies.map(|((name, policy), compiled)| Looked {
        name,
        origin: policy.origin.as_ref(),
        unmet: if compiled.matches(case) { None } else { Some(unmet(policy, case)) },
    });
    Ok(looked.collect())
}

fn unmet<R: RequestView>(policy: &RbacPolicy, case: Case<'_, R>) -> String {
    let asked = match policy.permissions.as_slice() {
        [only] => of_permission(only, case),
        list => (!list.iter().any(|p| holds_permission(p, case)))
            .then(|| Permission::Or(list.to_vec()).to_string()),
    };
    let who = || match policy.principals.as_slice() {
        [only] => of_principal(only, case),
        list => {
            (!list.iter().any(|p| holds_principal(p, case))).then(|| Principal::Or(list.to_vec()).to_string())
        }
    };
    asked.or_else(who).unwrap_or_default()
}

fn holds_permission<R: RequestView>(p: &Permission, case: Case<'_, R>) -> bool {
    permission(p).is_ok_and(|condition| condition.holds(case))
}

fn holds_principal<R: RequestView>(p: &Principal, case: Case<'_, R>) -> bool {
    principal(p).is_ok_and(|condition| condition.holds(case))
}

/// The innermost condition that all others wait for.
fn of_permission<R: RequestView>(p: &Permission, case: Case<'_, R>) -> Option<String> {
    if holds_permission(p, case) {
        return None;
    }
    match p {
        Permission::And(list) => list.iter().find_map(|p| of_permission(p, case)),
        Permission::Or(list) if list.len() == 1 => list.iter().find_map(|p| of_permission(p, case)),
        other => Some(other.to_string()),
    }
}

fn of_principal<R: RequestView>(p: &Principal, case: Case<'_, R>) -> Option<String> {
    if holds_principal(p, case) {
        return None;
    }
    match p {
        Principal::And(list) => list.iter().find_map(|p| of_principal(p, case)),
        Principal::Or(list) if list.len() == 1 => list.iter().find_map(|p| of_principal(p, case)),
        other => Some(other.to_string()),
    }
}
