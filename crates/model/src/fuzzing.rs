//! Bodies of fuzz targets, as plain functions: stable tests replay seeded mutations, the fuzzer does the long runs.

use crate::token::JwtProvider;

/// A key that everybody knows.
const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;

/// A token of arbitrary bytes, as a client shows one. Never panics.
///
/// # Panics
/// When something is good that is no token.
pub fn fuzz_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if JwtProvider::new("", KEYS).verify(text, 1_000).is_ok() {
        assert_eq!(text.matches('.').count(), 2, "a good token has three parts");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signed by the key: `{"alg":"HS256"}`, `{"sub":"a","exp":2000,"aud":["b"]}`.
    fn signed() -> String {
        use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
        let claims = serde_json::json!({"sub": "a", "exp": 2000, "aud": ["b"]});
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"secret")).unwrap()
    }

    #[test]
    fn a_token_that_is_changed_anywhere_is_good_no_more_and_never_a_panic() {
        let good = signed();
        let provider = JwtProvider::new("", KEYS);
        assert!(provider.verify(&good, 1_000).is_ok());
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..4000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] ^= 1 << random.u8(..7),
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, random.u8(..128)),
                    _ => bytes[at] = b'.',
                }
            }
            fuzz_token(&bytes);
            let changed = String::from_utf8_lossy(&bytes);
            let parts = |text: &str| text.rsplit_once('.').map(|(signed, _)| signed.to_owned());
            if parts(&changed) != parts(&good) {
                assert!(provider.verify(&changed, 1_000).is_err(), "{changed}");
            }
        }
    }
}
