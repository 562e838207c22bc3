//! The headers of a delivery by which its receiver knows that it is foreman's: Standard Webhooks, and the plain HMAC of the
//! body that many receivers know already.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use hyper::header::{HeaderMap, HeaderValue};
use sha2::Sha256;

use crate::config::SigningKey;

/// The same at each try of a delivery: by it a receiver knows a repeated one.
const ID: &str = "webhook-id";

/// When this try was made, in seconds since 1970.
const TIMESTAMP: &str = "webhook-timestamp";

const SIGNATURE: &str = "webhook-signature";

const SIGNATURE_OF_BODY: &str = "x-foreman-signature";

/// Sets the headers of a delivery; the signatures only with a key.
pub(super) fn sign(
    headers: &mut HeaderMap,
    id: &str,
    at_ms: i64,
    body: &[u8],
    key: Option<&SigningKey>,
) {
    let timestamp = (at_ms / 1_000).to_string();
    set(headers, ID, id);
    set(headers, TIMESTAMP, &timestamp);
    let Some(key) = key else { return };
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    if let Some(signature) = hmac(key, &signed) {
        set(headers, SIGNATURE, &format!("v1,{}", STANDARD.encode(signature)));
    }
    if let Some(signature) = hmac(key, &[body]) {
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        set(headers, SIGNATURE_OF_BODY, &format!("sha256={hex}"));
    }
}

/// A key may have any length, so there always is one.
fn hmac(key: &SigningKey, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).ok()?;
    for part in parts {
        mac.update(part);
    }
    Some(mac.finalize().into_bytes().to_vec())
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Ids, numbers and base64 can stand in a header.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Raw};

    fn key(secret: &str) -> SigningKey {
        let raw = Raw { webhook_secret: Some(secret.to_owned()), ..Raw::default() };
        Config::check(&raw).unwrap().webhooks.key.unwrap()
    }

    fn signed(secret: Option<&str>, id: &str, at_s: i64, body: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let key = secret.map(key);
        sign(&mut headers, id, at_s * 1_000 + 999, body.as_bytes(), key.as_ref());
        headers
    }

    /// The example of the Standard Webhooks specification and of its libraries' tests.
    #[test]
    fn the_published_vector_of_standard_webhooks_is_met() {
        let headers = signed(
            Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(headers["webhook-id"], "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
    }

    /// RFC 4231, test case 2.
    #[test]
    fn the_body_alone_is_signed_too() {
        let headers = signed(Some("Jefe"), "msg_1", 1, "what do ya want for nothing?");
        assert_eq!(
            headers["x-foreman-signature"],
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn without_a_key_there_is_no_signature() {
        let headers = signed(None, "msg_1", 1, "{}");
        assert_eq!(headers.len(), 2);
    }
}
