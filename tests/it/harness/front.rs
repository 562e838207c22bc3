//! A TLS front: what comes in over TLS goes on in the clear to the address behind it, as a reverse proxy would do it. A test
//! chooses whose certificate it shows, and may change that while it runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};

/// A CA that lives as long as a test.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// What a front shows.
#[derive(Clone)]
pub(crate) enum Face {
    /// A certificate and its key, over these protocols.
    Certificate(Arc<ServerConfig>),
    /// No TLS at all.
    Plain,
    /// An end of the connection.
    Closing,
}

impl Authority {
    /// One of this name, which is in what it signs.
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, folder }
    }

    /// Its own certificate, in a PEM file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for these names and addresses.
    pub(crate) fn certificate(&self, names: &[&str]) -> Face {
        self.certificate_with(names, |_| (), &[b"h2", b"http/1.1"])
    }

    /// One that has expired.
    pub(crate) fn expired(&self, names: &[&str]) -> Face {
        let in_the_past = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        };
        self.certificate_with(names, in_the_past, &[b"http/1.1"])
    }

    /// One of a server that speaks only HTTP/2.
    pub(crate) fn only_http2(&self, names: &[&str]) -> Face {
        self.certificate_with(names, |_| (), &[b"h2"])
    }

    fn certificate_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
        protocols: &[&[u8]],
    ) -> Face {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Face::Certificate(Arc::new(config))
    }
}

/// The front. Dropping it closes the port.
pub(crate) struct Front {
    pub(crate) addr: SocketAddr,
    face: Arc<Mutex<Face>>,
    hellos: Arc<Mutex<Vec<Hello>>>,
    cut: watch::Sender<()>,
    serving: JoinHandle<()>,
}

/// What a client said in a handshake that came to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The name it asked for.
    pub(crate) name: Option<String>,
    /// The protocol that was agreed on.
    pub(crate) protocol: Option<String>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    /// A front of what is at `behind`.
    pub(crate) async fn start(behind: SocketAddr, face: Face) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (face, hellos) = (Arc::new(Mutex::new(face)), Arc::new(Mutex::default()));
        let cut = watch::Sender::new(());
        let serving = tokio::spawn({
            let cut = cut.clone();
            let (face, hellos) = (Arc::clone(&face), Arc::clone(&hellos));
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let face = face.lock().unwrap().clone();
                    let (mut cut, hellos) = (cut.subscribe(), Arc::clone(&hellos));
                    let serving = serve(stream, face, behind, hellos);
                    connections.spawn(async move { until(serving, &mut cut).await });
                }
            }
        });
        Front { addr, face, hellos, cut, serving }
    }

    /// Shows another face to who connects from now on.
    pub(crate) fn show(&self, face: Face) {
        *self.face.lock().unwrap() = face;
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(());
    }

    /// The handshakes so far.
    pub(crate) fn hellos(&self) -> Vec<Hello> {
        self.hellos.lock().unwrap().clone()
    }

    /// Its URL by this host.
    pub(crate) fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.addr.port())
    }
}

async fn until(serving: impl Future<Output = ()>, cut: &mut watch::Receiver<()>) {
    tokio::select! {
        () = serving => (),
        _ = cut.changed() => (),
    }
}

async fn serve(
    mut stream: TcpStream,
    face: Face,
    behind: SocketAddr,
    hellos: Arc<Mutex<Vec<Hello>>>,
) {
    let config = match face {
        Face::Certificate(config) => config,
        Face::Plain => {
            let Ok(mut ours) = TcpStream::connect(behind).await else { return };
            drop(copy_bidirectional(&mut stream, &mut ours).await);
            return;
        }
        Face::Closing => return,
    };
    let Ok(mut theirs) = TlsAcceptor::from(config).accept(stream).await else { return };
    let (_, session) = theirs.get_ref();
    let protocol = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let name = session.server_name().map(str::to_owned);
    hellos.lock().unwrap().push(Hello { name, protocol });
    let Ok(mut ours) = TcpStream::connect(behind).await else { return };
    drop(copy_bidirectional(&mut theirs, &mut ours).await);
}
