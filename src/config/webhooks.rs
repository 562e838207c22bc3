//! How receivers are told: the key that signs, and how often a delivery is tried.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::values::{attempts, positive};
use super::{Faults, Raw};

/// What a secret that stands for bytes begins with, by Standard Webhooks.
const ENCODED: &str = "whsec_";

/// The settings of webhooks.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// What deliveries are signed with; `None` leaves them unsigned.
    pub key: Option<SigningKey>,
    /// The first delay before a delivery is tried again.
    pub retry_delay: Duration,
    /// Tries of a delivery, at least 1.
    pub tries_max: u32,
}

/// A key that must not be shown; at least one byte.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// The bytes themselves: for a signature only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("<secret>")
    }
}

/// Reads the settings of webhooks; all of them, so that all faults are collected.
pub(super) fn webhooks(raw: &Raw, faults: &mut Faults) -> Option<Webhooks> {
    let secret = raw.webhook_secret.as_ref();
    let key = faults.read("FOREMAN_WEBHOOK_SECRET", secret, "", signing_key);
    let delay = raw.webhook_retry_delay.as_ref();
    let retry_delay = faults.read("FOREMAN_WEBHOOK_RETRY_DELAY", delay, "5s", positive);
    let tries = faults.read("FOREMAN_WEBHOOK_TRIES", raw.webhook_tries.as_ref(), "10", attempts);
    Some(Webhooks { key: key?, retry_delay: retry_delay?, tries_max: tries? })
}

fn signing_key(text: &str) -> Result<Option<SigningKey>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let Some(encoded) = text.strip_prefix(ENCODED) else {
        return Ok(Some(SigningKey(text.as_bytes().to_vec())));
    };
    // Generators differ in whether they write the padding.
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    match GeneralPurpose::new(&STANDARD, config).decode(encoded) {
        Ok(bytes) if !bytes.is_empty() => Ok(Some(SigningKey(bytes))),
        Ok(_) | Err(_) => {
            Err("whsec_ and base64 of at least one byte, or any other text".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn key(text: &str) -> Result<Vec<u8>, String> {
        signing_key(text).map(|key| key.unwrap().expose().to_vec())
    }

    #[test]
    fn a_secret_is_base64_after_its_prefix_and_bytes_without() {
        assert_eq!(key("whsec_aGVsbG8="), Ok(b"hello".to_vec()));
        assert_eq!(key("whsec_aGVsbG8"), Ok(b"hello".to_vec()));
        assert_eq!(key("hello"), Ok(b"hello".to_vec()));
        assert_eq!(signing_key(""), Ok(None));
        for text in ["whsec_", "whsec_!", "whsec_aGVs bG8=", "whsec_a"] {
            assert!(key(text).unwrap_err().contains("base64"), "{text}");
        }
    }

    #[test]
    fn a_faulty_secret_is_told_without_repeating_it_and_a_good_one_is_never_printed() {
        let secret = |text: &str| Raw { webhook_secret: Some(text.to_owned()), ..Raw::default() };
        let faults = Config::check(&secret("whsec_hunter2!")).unwrap_err();
        assert_eq!(faults[0].key, "FOREMAN_WEBHOOK_SECRET");
        assert!(!faults[0].to_string().contains("hunter2"), "{}", faults[0]);
        let config = Config::check(&secret("hunter2")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.webhooks.key.unwrap().expose(), b"hunter2");
    }
}
