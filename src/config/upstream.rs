//! What only shows when the settings of the upstream are seen together.

use crate::ollama::url::Scheme;

use super::{Config, Fault, Raw};

/// What is wrong with the upstream, beside its own values.
pub(super) fn fault(config: &Config, raw: &Raw) -> Option<Fault> {
    loops_to_itself(config).or_else(|| ca_of_nobody(config, raw))
}

/// An upstream that is foreman itself would pass every request to itself until the ports run out.
fn loops_to_itself(config: &Config) -> Option<Fault> {
    let url = &config.ollama_url;
    let is_here = url.is_loopback() || url.host() == config.addr.ip().to_string();
    (is_here && url.port() == config.addr.port()).then(|| Fault {
        key: "FOREMAN_OLLAMA_URL",
        value: url.to_string(),
        allowed: format!(
            "this is where foreman itself listens ({}); name Ollama's address",
            config.addr
        ),
    })
}

/// Who names a CA means a connection over TLS: with http there would be none, without a word.
fn ca_of_nobody(config: &Config, raw: &Raw) -> Option<Fault> {
    let is_plain = config.ollama_url.scheme() == Scheme::Http;
    (is_plain && config.ollama_ca.is_some()).then(|| Fault {
        key: "FOREMAN_OLLAMA_CA",
        value: raw.ollama_ca.clone().unwrap_or_default(),
        allowed: format!(
            "only with an https:// upstream; FOREMAN_OLLAMA_URL is {}",
            config.ollama_url
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn foreman_in_front_of_itself_is_refused() {
        let raw = Raw {
            addr: given("127.0.0.1:9000"),
            ollama_url: given("http://localhost:9000"),
            ..Raw::default()
        };
        let faults = Config::check(&raw).unwrap_err();
        assert_eq!(faults[0].key, "FOREMAN_OLLAMA_URL");
    }

    #[test]
    fn an_upstream_over_https_may_name_its_ca_and_one_over_http_may_not() {
        let raw = Raw { ollama_url: given("https://gpu.example"), ..Raw::default() };
        let config = Config::check(&raw).unwrap();
        assert_eq!(config.ollama_url.to_string(), "https://gpu.example:443");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let raw = Raw { ollama_ca: given(path.to_str().unwrap()), ..raw };
        let faults = Config::check(&raw).unwrap_err();
        assert!(
            faults[0].to_string().contains("a PEM file of certificates; this one cannot be read")
        );
        let certificate = rcgen::generate_simple_self_signed(["gpu.example".to_owned()]).unwrap();
        std::fs::write(&path, certificate.cert.pem()).unwrap();
        assert!(Config::check(&raw).unwrap().ollama_ca.is_some());
        let faults = Config::check(&Raw { ollama_url: None, ..raw }).unwrap_err();
        assert!(faults[0].to_string().ends_with(
            "only with an https:// upstream; FOREMAN_OLLAMA_URL is http://127.0.0.1:11434"
        ));
    }
}
