//! TLS towards others, as their client: whom to trust, the handshake, and in words why there is none.
//!
//! Nothing here lets a certificate pass that is not trusted, and there is no switch for it. `ollama` and `webhook` call it;
//! `config` has it read the file of a CA.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, InvalidMessage,
    RootCertStore, crypto,
};

pub use tokio_rustls::client::TlsStream;

/// A handshake is two round trips and some arithmetic. Below the five seconds of a probe, so that the probe tells this reason.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(4);

/// All the roots of the web are a quarter of this.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// The one protocol spoken: nothing here speaks HTTP/2.
const ALPN: &[u8] = b"http/1.1";

/// Names told of a certificate that is somebody else's, and characters of each: they are the peer's own words.
const NAMES_TOLD_MAX: usize = 3;
const NAME_CHARS_MAX: usize = 80;

/// Certificates that are trusted to vouch for others. Clones share them.
#[derive(Clone)]
pub struct Roots(Arc<RootCertStore>);

impl fmt::Debug for Roots {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "<{} roots>", self.0.len())
    }
}

impl Roots {
    /// What this system trusts, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Blocks on the disk.
    ///
    /// # Errors
    /// If that is nothing.
    pub fn of_system() -> Result<Roots, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        match roots.is_empty() {
            true => Err("this system has no root certificates".to_owned()),
            false => Ok(Roots(Arc::new(roots))),
        }
    }

    /// The certificates in a PEM file, all of which must be usable. Blocks on the disk.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_file(path: &Path) -> Result<Roots, String> {
        let mut pem = Vec::new();
        let file = std::fs::File::open(path).map_err(|fault| format!("cannot be read: {fault}"))?;
        let read = file.take(PEM_BYTES_MAX + 1).read_to_end(&mut pem);
        read.map_err(|fault| format!("cannot be read: {fault}"))?;
        if u64::try_from(pem.len()).unwrap_or(u64::MAX) > PEM_BYTES_MAX {
            return Err(format!("is larger than {PEM_BYTES_MAX} bytes"));
        }
        Roots::of_pem(&pem)
    }

    fn of_pem(pem: &[u8]) -> Result<Roots, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let number = roots.len() + 1;
            let certificate = certificate.map_err(|_| format!("part {number} is no PEM"))?;
            let added = roots.add(certificate);
            added.map_err(|_| format!("certificate {number} in it is damaged"))?;
        }
        match roots.is_empty() {
            true => Err("has no certificate in it (-----BEGIN CERTIFICATE-----)".to_owned()),
            false => Ok(Roots(Arc::new(roots))),
        }
    }
}

/// Makes TLS connections to whom these roots vouch for. Clones share the sessions that can be taken up again.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client that trusts these roots and nobody else.
    ///
    /// # Errors
    /// If TLS cannot be set up at all.
    pub fn new(roots: Roots) -> Result<Client, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|fault| format!("TLS cannot be set up: {fault}"))?;
        let mut config = config.with_root_certificates(roots.0).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Client { config: Arc::new(config) })
    }

    /// Shakes hands with the peer of a connection, which must prove to be `peer`.
    ///
    /// Cancellation: dropping the future closes the connection.
    ///
    /// # Errors
    /// A sentence without the host.
    pub async fn handshake<S>(&self, peer: &Peer, stream: S) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let shaking = connector.connect(peer.name.clone(), stream);
        let why = match tokio::time::timeout(HANDSHAKE_LIMIT, shaking).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(fault)) => explain(&fault),
            Err(_) => format!("the handshake did not end within {} s", HANDSHAKE_LIMIT.as_secs()),
        };
        Err(format!("no TLS: {why}"))
    }
}

/// Whom a certificate must be for: a name, which is also sent (SNI), or an address.
#[derive(Debug, Clone)]
pub struct Peer {
    name: ServerName<'static>,
}

impl Peer {
    /// The peer at this name or address, which has no brackets.
    ///
    /// # Errors
    /// If no certificate can be for it.
    pub fn at(host: &str) -> Result<Peer, String> {
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned());
        let name = name.map_err(|_| format!("no certificate can be for the name \"{host}\""))?;
        Ok(Peer { name })
    }
}

/// Why there was no handshake, in words.
fn explain(fault: &io::Error) -> String {
    let inner = fault.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match inner {
        Some(TlsError::InvalidCertificate(fault)) => explain_certificate(fault),
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "it does not speak TLS; is it plain http?".to_owned()
        }
        Some(
            TlsError::NoApplicationProtocol
            | TlsError::AlertReceived(AlertDescription::NoApplicationProtocol),
        ) => "it does not speak HTTP/1.1 over TLS".to_owned(),
        Some(TlsError::AlertReceived(alert)) => format!("it refused with {alert:?}"),
        Some(fault) => fault.to_string(),
        None => match fault.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "it closed the connection".to_owned()
            }
            _ => fault.to_string(),
        },
    }
}

fn explain_certificate(fault: &CertificateError) -> String {
    match fault {
        CertificateError::UnknownIssuer => {
            "its certificate is issued by nobody who is trusted here (unknown issuer)".to_owned()
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("its certificate expired at {} (here it is {})", at(*not_after), at(*time))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            let (from, now) = (at(*not_before), at(*time));
            format!("its certificate is not valid before {from} (here it is {now})")
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("its certificate is for another name ({})", told(presented))
        }
        CertificateError::BadSignature => "its certificate is not signed by the CA whose name it \
            bears; was that CA made anew under the same name?"
            .to_owned(),
        // webpki's own; rustls has no variant for it.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it shows the certificate of a CA as its own; it needs one that is issued for its name"
                .to_owned()
        }
        other => format!("its certificate cannot be used: {other}"),
    }
}

fn at(time: UnixTime) -> String {
    // Beyond any calendar is as late as can be told.
    const LAST_S: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(time.as_secs().min(LAST_S));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The first names of a certificate, which anybody may have written.
fn told(names: &[String]) -> String {
    let readable = |name: &String| {
        let graphic = name.chars().filter(char::is_ascii_graphic);
        graphic.take(NAME_CHARS_MAX).collect::<String>()
    };
    let told: Vec<String> = names.iter().take(NAMES_TOLD_MAX).map(readable).collect();
    match (told.is_empty(), names.len() > NAMES_TOLD_MAX) {
        (true, _) => "it names none".to_owned(),
        (false, false) => told.join(", "),
        (false, true) => format!("{}, and others", told.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_roots_is_read_whole_or_refused() {
        let key = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let pem = key.cert.pem();
        let two = format!("words before\n{pem}{pem}");
        assert_eq!(format!("{:?}", Roots::of_pem(two.as_bytes()).unwrap()), "<2 roots>");
        let cut = &pem[..pem.len() / 2];
        for (text, fault) in [
            ("", "has no certificate in it"),
            ("no PEM at all", "has no certificate in it"),
            (key.signing_key.serialize_pem().as_str(), "has no certificate in it"),
            (cut, "part 1 is no PEM"),
            (&format!("{pem}{cut}"), "part 2 is no PEM"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 in it is damaged",
            ),
        ] {
            let told = Roots::of_pem(text.as_bytes()).unwrap_err();
            assert!(told.contains(fault), "{text:?} gave: {told}");
        }
        let nowhere = Roots::of_file(Path::new("/nowhere/ca.pem")).unwrap_err();
        assert!(nowhere.starts_with("cannot be read"), "{nowhere}");
    }

    #[test]
    fn a_peer_is_a_name_or_an_address() {
        for host in ["a.example", "a.example.", "my_box", "127.0.0.1", "::1", "localhost"] {
            assert!(Peer::at(host).is_ok(), "{host}");
        }
        for host in ["", ".", "-", "a..b", "a b"] {
            assert!(Peer::at(host).is_err(), "{host}");
        }
    }

    #[test]
    fn the_names_of_a_strange_certificate_are_told_within_bounds() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(told(&[]), "it names none");
        assert_eq!(told(&names(&["a", "b"])), "a, b");
        assert_eq!(
            told(&names(&["a\r\n2026 ERROR b", "b", "c", "d"])),
            "a2026ERRORb, b, c, and others"
        );
        assert_eq!(told(&names(&["x".repeat(500).as_str()])).len(), NAME_CHARS_MAX);
    }

    #[test]
    fn each_kind_of_fault_has_its_words() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(86_400));
        let cases = [
            (CertificateError::UnknownIssuer, "unknown issuer"),
            (CertificateError::Expired, "has expired"),
            (
                CertificateError::ExpiredContext {
                    time,
                    not_after: UnixTime::since_unix_epoch(Duration::ZERO),
                },
                "expired at 1970-01-01T00:00:00Z (here it is 1970-01-02T00:00:00Z)",
            ),
            (
                CertificateError::NotValidYetContext {
                    time,
                    not_before: UnixTime::since_unix_epoch(Duration::MAX),
                },
                "not valid before 9999-12-31T23:59:59Z",
            ),
            (CertificateError::BadSignature, "made anew under the same name?"),
            (CertificateError::BadEncoding, "cannot be used"),
        ];
        for (fault, words) in cases {
            let told = explain(&io::Error::other(TlsError::InvalidCertificate(fault)));
            assert!(told.contains(words), "{told}");
        }
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(explain(&eof), "it closed the connection");
    }

    /// A certificate that signed itself may be named as its own CA, unless it is marked as one: then it cannot be a server's.
    #[tokio::test]
    async fn a_certificate_that_signed_itself_vouches_for_itself() {
        for (is_ca, outcome) in [
            (rcgen::IsCa::NoCa, Ok(())),
            (
                rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
                Err("it shows the certificate of a CA as its own"),
            ),
        ] {
            let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let serving =
                tokio_rustls::TlsAcceptor::from(server(&certificate, &key)).accept(theirs);
            let client = Client::new(Roots::of_pem(certificate.pem().as_bytes()).unwrap()).unwrap();
            let peer = Peer::at("a.example").unwrap();
            let (shaken, _served) = tokio::join!(client.handshake(&peer, ours), serving);
            match outcome {
                Ok(()) => assert!(shaken.is_ok()),
                Err(words) => {
                    let told = shaken.unwrap_err();
                    assert!(told.contains(words), "{told}");
                }
            }
        }
    }

    fn server(
        certificate: &rcgen::Certificate,
        key: &rcgen::KeyPair,
    ) -> Arc<tokio_rustls::rustls::ServerConfig> {
        let key = tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(crypto::ring::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into());
        Arc::new(config.unwrap())
    }

    /// Whoever says nothing is not waited for.
    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_a_limit() {
        let key = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let client = Client::new(Roots::of_pem(key.cert.pem().as_bytes()).unwrap()).unwrap();
        let (ours, _theirs) = tokio::io::duplex(64 * 1024);
        let told = client.handshake(&Peer::at("a.example").unwrap(), ours).await.unwrap_err();
        assert_eq!(told, "no TLS: the handshake did not end within 4 s");
    }
}
