//! Whether the tokens of a request are what it needs: pure, the same for the proxy and `explain`.
//!
//! Of several tokens at a provider's places all must be good: an application might take the one that is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::find::{Found, From, MOST, Places, without};
use super::keys::Keys;
use super::verify::{Known, Refusal, Verified, Verifier};
use super::{ClaimHeader, JwtAuthn, JwtProvider, Requirement};
use crate::claims::Proven;
use crate::invalid::{Flaw, Under};
use crate::origin::Origin;
use crate::request::RequestView;
use crate::route::RouteMatch;
use crate::route::table::CompiledMatch;

/// A compiled filter.
#[derive(Debug)]
pub struct CompiledTokens {
    providers: BTreeMap<String, Provider>,
    /// Of every request, or of those that match.
    rules: Vec<(Option<CompiledMatch>, Requirement)>,
    bypass_preflight: bool,
    /// Headers that are ours to write.
    own: Arc<Vec<String>>,
}

/// With its name.
type Named<'a> = (&'a String, &'a Provider);

#[derive(Debug)]
struct Provider {
    config: JwtProvider,
    payload_name: Arc<str>,
    verifier: Verifier,
    places: Places,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on.
    Passes(Effects),
    /// It does not.
    Refused {
        /// Why.
        why: Refusal,
        /// The user object that wants it so.
        origin: Option<Arc<Origin>>,
    },
}

/// What becomes of a request that goes on.
#[derive(Debug, Default)]
pub struct Effects {
    /// Headers that go.
    pub remove: Vec<String>,
    /// Headers that come then, each beside what is there.
    pub add: Vec<(String, String)>,
    /// Path and query, where they change.
    pub path: Option<String>,
    /// What its tokens say.
    pub proven: Proven,
    /// Routes are to be looked for again.
    pub reroute: bool,
}

impl CompiledTokens {
    /// Compiles a filter. `fingerprint` tells providers apart by all that they are.
    ///
    /// # Errors
    /// The field that cannot be taken, and why.
    pub fn compile(config: &JwtAuthn, fingerprint: impl Fn(&str) -> [u8; 32]) -> Result<Self, Flaw> {
        let mut providers = BTreeMap::new();
        let mut own = Vec::new();
        for (name, config) in &config.providers {
            let keys = Keys::compile(&config.keys).under(format_args!("providers[{name}].local_jwks"))?;
            // Anything by which a token is good or not.
            let identity = format!("{}\0{}\0{}", config.issuer, config.spaced_claims.join(" "), config.keys);
            own.extend(config.payload_header.clone());
            own.extend(config.claim_headers.iter().map(|claim| claim.header.clone()));
            let provider = Provider {
                payload_name: config.payload_name.as_str().into(),
                verifier: Verifier { id: fingerprint(&identity), keys },
                places: Places::of(config),
                config: config.clone(),
            };
            providers.insert(name.clone(), provider);
        }
        let mut rules = Vec::with_capacity(config.rules.len());
        for (i, rule) in config.rules.iter().enumerate() {
            let at = format!("rules[{i}]");
            known(&rule.requires, &providers).under(format_args!("{at}.requires"))?;
            // CONNECT has no path; it is one of all requests nevertheless.
            let matches = match rule.matches == RouteMatch::any() {
                true => None,
                false => Some(CompiledMatch::compile(&rule.matches).under(at)?),
            };
            rules.push((matches, rule.requires.clone()));
        }
        Ok(Self { providers, rules, bypass_preflight: config.bypass_preflight, own: Arc::new(own) })
    }

    /// The headers that only good tokens write: nobody else may say them, nor what applications take for them.
    pub fn own(&self) -> &Arc<Vec<String>> {
        &self.own
    }

    /// Looks at a request; `now` in seconds since 1970.
    pub fn decide<R: RequestView>(&self, request: &R, now: u64, memory: &mut dyn Known) -> Outcome {
        let mut effects = Effects::default();
        effects.remove.extend(self.own.iter().filter(|name| request.header(name).next().is_some()).cloned());
        if self.bypass_preflight && is_preflight(request) {
            return Outcome::Passes(effects);
        }
        let rule = self
            .rules
            .iter()
            .find(|(matches, _)| matches.as_ref().is_none_or(|matches| matches.mismatch(request).is_none()));
        let Some((_, requires)) = rule else { return Outcome::Passes(effects) };
        let mut case =
            Case { tokens: self, request, now, memory, effects, refused: Vec::new(), blamed: None };
        match case.meets(requires) {
            Ok(()) => Outcome::Passes(case.effects),
            Err(why) => {
                let blamed = case.blamed.and_then(|provider| provider.config.origin.clone()).map(Arc::new);
                Outcome::Refused { why, origin: blamed.or_else(|| self.origin(requires)) }
            }
        }
    }

    /// The first that wants anything stands for all.
    fn origin(&self, requires: &Requirement) -> Option<Arc<Origin>> {
        match requires {
            Requirement::Provider { name, .. } => {
                self.providers.get(name)?.config.origin.clone().map(Arc::new)
            }
            Requirement::Any(all) | Requirement::All(all) => all.iter().find_map(|one| self.origin(one)),
            _ => None,
        }
    }
}

fn known(requires: &Requirement, providers: &BTreeMap<String, Provider>) -> Result<(), String> {
    match requires {
        Requirement::Provider { name, .. } if !providers.contains_key(name) => {
            Err(format!("there is no provider {name}"))
        }
        Requirement::Any(all) | Requirement::All(all) if all.len() < 2 => {
            Err("needs two requirements or more".to_owned())
        }
        Requirement::Any(all) | Requirement::All(all) => all.iter().try_for_each(|one| known(one, providers)),
        _ => Ok(()),
    }
}

/// OPTIONS of a browser that asks what it may do (Fetch, section 3.2.2).
fn is_preflight<R: RequestView>(request: &R) -> bool {
    let has = |name| request.header(name).next().is_some();
    request.method() == "OPTIONS" && has("origin") && has("access-control-request-method")
}

struct Case<'a, R> {
    tokens: &'a CompiledTokens,
    request: &'a R,
    now: u64,
    memory: &'a mut dyn Known,
    effects: Effects,
    /// What was found bad already, and by whom: it may be asked for again, and each signature costs.
    refused: Vec<(&'a str, String, Refusal)>,
    /// Who found something wrong last; that it is not his says nobody of his own token.
    blamed: Option<&'a Provider>,
}

impl<'a, R: RequestView> Case<'a, R> {
    fn meets(&mut self, requires: &'a Requirement) -> Result<(), Refusal> {
        match requires {
            Requirement::Nothing => Ok(()),
            Requirement::Provider { name, audiences } => {
                let provider = self.tokens.providers.get_key_value(name).ok_or(Refusal::UnknownIssuer)?;
                self.of(provider, audiences)
            }
            Requirement::Any(all) => self.any(all),
            Requirement::All(all) => all.iter().try_for_each(|one| self.meets(one)),
            Requirement::AllowMissing => self.all_good(),
            Requirement::AllowMissingOrFailed => {
                self.good_ones();
                Ok(())
            }
        }
    }

    /// Beside others, what is missing or has failed is theirs.
    fn any(&mut self, all: &'a [Requirement]) -> Result<(), Refusal> {
        let lenient =
            |one: &&Requirement| matches!(one, Requirement::AllowMissing | Requirement::AllowMissingOrFailed);
        let (lenient, strict): (Vec<_>, Vec<_>) = all.iter().partition(lenient);
        if strict.is_empty() {
            let failed = lenient.iter().find(|one| ***one == Requirement::AllowMissingOrFailed);
            return failed.or(lenient.first()).map_or(Ok(()), |one| self.meets(one));
        }
        let mut refusal = Refusal::Missing;
        for one in strict {
            match self.meets(one) {
                Ok(()) => return Ok(()),
                Err(why) => refusal = refusal.or(why),
            }
        }
        let forgiven = lenient
            .iter()
            .any(|one| **one == Requirement::AllowMissingOrFailed || refusal == Refusal::Missing);
        if forgiven { Ok(()) } else { Err(refusal) }
    }

    /// The tokens of one provider.
    fn of(&mut self, (name, provider): Named<'a>, audiences: &[String]) -> Result<(), Refusal> {
        let mut found = Vec::new();
        provider.places.find(self.request, &mut found);
        if found.is_empty() {
            return Err(Refusal::Missing);
        }
        if found.len() > MOST {
            return Err(Refusal::TooMany);
        }
        let mut good = Vec::with_capacity(found.len());
        for token in &found {
            good.push(self.verify((name, provider), audiences, &token.token)?);
        }
        found.iter().zip(good).for_each(|(found, verified)| self.take(provider, found, &verified));
        Ok(())
    }

    /// No tokens at all, or each good for one of those at whose place it is.
    fn all_good(&mut self) -> Result<(), Refusal> {
        let mut taken = Vec::new();
        for (found, whose) in self.everybody_s()? {
            let (provider, verified) = self.first_good(&found, &whose)?;
            taken.push((provider, found, verified));
        }
        taken.iter().for_each(|(provider, found, verified)| self.take(provider, found, verified));
        Ok(())
    }

    /// Uses what is good, whatever else there is.
    fn good_ones(&mut self) {
        for (found, whose) in self.everybody_s().unwrap_or_default() {
            if let Ok((provider, verified)) = self.first_good(&found, &whose) {
                self.take(provider, &found, &verified);
            }
        }
    }

    /// The tokens at all places, each with those whose place it is.
    fn everybody_s(&self) -> Result<Vec<(Found<'a, 'a>, Vec<Named<'a>>)>, Refusal> {
        let mut all: Vec<(Found<'a, 'a>, Vec<Named<'a>>)> = Vec::new();
        for named in &self.tokens.providers {
            let mut found = Vec::new();
            named.1.places.find(self.request, &mut found);
            if found.len() > MOST {
                return Err(Refusal::TooMany);
            }
            for token in found {
                match all.iter_mut().find(|(other, _)| *other == token) {
                    Some((_, whose)) => whose.push(named),
                    None => all.push((token, vec![named])),
                }
            }
        }
        Ok(all)
    }

    fn first_good(
        &mut self,
        found: &Found<'_, '_>,
        whose: &[Named<'a>],
    ) -> Result<(&'a Provider, Arc<Verified>), Refusal> {
        let mut refusal = Refusal::UnknownIssuer;
        for named in whose {
            match self.verify(*named, &[], &found.token) {
                Ok(verified) => return Ok((named.1, verified)),
                Err(why) => refusal = refusal.or(why),
            }
        }
        Err(refusal)
    }

    fn verify(
        &mut self,
        (name, of): Named<'a>,
        audiences: &[String],
        token: &str,
    ) -> Result<Arc<Verified>, Refusal> {
        // Other audiences may be content with what these are not.
        let known = |(by, other, _): &&(&str, String, Refusal)| *by == name && other == token;
        if let Some((_, _, why)) = self.refused.iter().find(known).filter(|_| audiences.is_empty()) {
            return Err(*why);
        }
        let verified = of.verifier.verify(&of.config, audiences, token, self.now, self.memory);
        if let Err(why) = &verified {
            if audiences.is_empty() {
                self.refused.push((name, token.to_owned(), *why));
            }
            if self.blamed.is_none() || *why != Refusal::UnknownIssuer {
                self.blamed = Some(of);
            }
        }
        verified
    }

    fn take(&mut self, provider: &Provider, found: &Found<'_, '_>, verified: &Verified) {
        let config = &provider.config;
        let effects = &mut self.effects;
        effects.reroute |= config.clear_route_cache;
        if !config.forward {
            match found.from {
                From::Header(name) => effects.remove.push(name.to_owned()),
                From::Param(name) => {
                    let path = effects.path.as_deref().unwrap_or(self.request.path());
                    effects.path = Some(without(path, name));
                }
                // As in Envoy: other cookies are in the header, too.
                From::Cookie => {}
            }
        }
        if let Some(header) = &config.payload_header {
            let mut payload = verified.payload.clone();
            while config.pad_payload_header && !payload.len().is_multiple_of(4) {
                payload.push('=');
            }
            effects.add.push((header.clone(), payload));
        }
        for ClaimHeader { header, claim } in &config.claim_headers {
            effects.add.extend(text_of(verified, claim).map(|text| (header.clone(), text)));
        }
        if !config.payload_name.is_empty() {
            effects.proven.put(&provider.payload_name, verified.claims.clone());
        }
    }
}

/// A claim as the value of a header.
fn text_of(token: &Verified, claim: &str) -> Option<String> {
    let value = match token.claims.get(claim) {
        // A name with dots in it, such as that of a namespace.
        Some(whole) => whole,
        None => {
            let mut parts = claim.split('.');
            let first = token.claims.get(parts.next()?)?;
            parts.try_fold(first, |value, key| value.get(key))?
        }
    };
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::Bool(is) => is.to_string(),
        _ => return None,
    };
    // Blanks at the ends are no part of a header's value.
    let text = text.trim_matches(' ');
    let fits = !text.is_empty() && text.bytes().all(|b| b >= 0x20 && b != 0x7f);
    fits.then(|| text.to_owned())
}
