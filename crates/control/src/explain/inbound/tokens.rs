//! What the tokens of a request say, and what becomes of it then.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::listener::HttpFilter;
use outrigger_model::route::HeaderEdits;
use outrigger_model::token::{CompiledTokens, Known, Outcome, Proven, Verified};

use super::Decided;
use crate::explain::request::Asked;

/// Each is looked at once.
struct Nothing;

impl Known for Nothing {
    fn recall(&mut self, _: &[u8; 32], _: &str) -> Option<Arc<Verified>> {
        None
    }
    fn keep(&mut self, _: &[u8; 32], _: &str, _: &Arc<Verified>) {}
}

/// Does with the request what the filter does.
///
/// # Errors
/// It goes no further.
pub(super) fn look(filter: &HttpFilter, request: &mut Asked) -> Result<Proven, Decided> {
    let HttpFilter::Tokens(config) = filter else { return Ok(Proven::default()) };
    let tokens = CompiledTokens::compile(config, |_| [0; 32])
        .map_err(|flaw| Decided::of("refused", Some(503), flaw.reason))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match tokens.decide(request, now, &mut Nothing) {
        Outcome::Passes(effects) => {
            let add = effects.add.into_iter().map(|(name, value)| (name, value.into())).collect();
            request.edit(&HeaderEdits { remove: effects.remove, add, ..HeaderEdits::default() });
            if let Some(path) = effects.path {
                request.set_path(path);
            }
            Ok(effects.proven)
        }
        Outcome::Refused { why, origin } => Err(Decided {
            origin: origin.map(|origin| origin.to_string()),
            ..Decided::of("denied", Some(why.status()), why.text())
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::explain::tests::{asked, only, shop};
    use crate::world::sample::world;
    use std::sync::Arc;

    const RULES: &str = r#"apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {version: v2}}
  jwtRules: [{issuer: 'https://a', jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: me, namespace: shop}
spec:
  selector: {matchLabels: {version: v2}}
  rules: [{from: [{source: {requestPrincipals: ['https://a/me']}}]}]
"#;
    /// `{"iss":"https://a","sub":"me"}`.
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EiLCJzdWIiOiJtZSJ9.ix1ZoTJdzreIk2TV3MRTZFCc4D7j0w85pQAps1X9gv0";

    #[test]
    fn what_a_token_says_is_looked_at() {
        let v2 = shop().into_iter().filter(|one| one.id == "web-1" || one.id == "catalog-v2").collect();
        let world = Arc::new(world(v2, RULES));
        let get = "GET http://catalog:8080/";
        let ask = |token: &str| asked(&world, "web", &format!("{get} -H authorization: Bearer {token}"));
        assert_eq!(only(&asked(&world, "web", get)), ("denied", Some(403), vec!["catalog-v2"]));
        assert_eq!(only(&ask(TOKEN)), ("forwarded", None, vec!["catalog-v2"]));
        let refused = ask("rubbish");
        assert_eq!(only(&refused), ("denied", Some(401), vec!["catalog-v2"]));
        let inbound = &refused.targets[0].inbound[0];
        assert_eq!(inbound.origin.as_deref(), Some("RequestAuthentication shop/tokens"));
    }
}
