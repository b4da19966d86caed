//! TLS on both sides: what is needed to accept it from clients, and libpq's `sslmode`s towards nodes; and plain `https`.
//!
//! rustls with the ring provider, TLS 1.2 and 1.3. `verify` holds how a node's certificate is judged. Nothing here falls back on its
//! own except `prefer` and `allow`, which take a node's `N` for an answer; a handshake that fails is an error in every mode.
//! Manual: "SSL Support", section 34.19.

mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use self::verify::{Judge, NameCheck, Trust};
use super::startup::{ALPN, SSL_REQUEST};
use super::stream::Stream;
use super::stream::has_more;
use crate::config::{NodeTls, SslMode};

/// Why TLS can't be set up as configured. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file can't be read, or isn't PEM.
    #[error("{path}: {source}")]
    File {
        /// As configured.
        path: PathBuf,
        /// From the file system or the PEM reader.
        source: rustls_pki_types::pem::Error,
    },
    /// PEM without a CERTIFICATE section.
    #[error("{0}: no certificate in it")]
    NoCertificate(PathBuf),
    /// The private key isn't the certificate's.
    #[error("{key}: this private key does not belong to the certificate in {cert}")]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A root certificate that rustls can't use.
    #[error("{path}: {source}")]
    Root {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// `verify-…` without `root_cert`, on a system whose store is empty.
    #[error("certificates are to be verified, but no root_cert is set and the system has no trusted certificates{0}")]
    NoSystemRoots(String),
    /// A certificate or key that rustls can't use.
    #[error("{path}: {source}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A fault in the build: the provider lacks what TLS needs.
    #[error("TLS: {0}")]
    Provider(#[source] rustls::Error),
}

/// What a [`tokio_rustls::TlsAcceptor`] is made of: PEM certificate chain and key, no client certificates, ALPN for those who ask.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, private) = (read_certificates(cert)?, read_key(key)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|source| unusable(cert, key, source))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(TlsError::NoCertificate(path.to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(TlsError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

fn unusable(cert: &Path, key: &Path, source: rustls::Error) -> TlsError {
    match source {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
        source => TlsError::Unusable {
            path: cert.to_owned(),
            source,
        },
    }
}

/// What an `https` client is made of: the server's certificate must lead to one of these roots (the system's without a file), and be
/// for the host that was asked.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn https_config(root_cert: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let trust = match root_cert {
        Some(path) => file_roots(path, NameCheck::MustMatch)?,
        None => system_roots(NameCheck::MustMatch)?,
    };
    Ok(Arc::new(judging(trust)?.with_no_client_auth()))
}

fn judging(trust: Trust) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = provider();
    let judge = Judge::new(trust, provider.signature_verification_algorithms);
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge)))
}

/// How connections to nodes are encrypted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeTlsConnector {
    mode: SslMode,
    /// `None` for `disable`.
    config: Option<Arc<ClientConfig>>,
}

/// Why a connection to a node could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The node answered `N` and `sslmode` insists.
    #[error("the server does not support SSL, but SSL was required")]
    Refused,
    /// Neither `S` nor `N`: not a PostgreSQL server, or one out of resources (`E`).
    #[error("the server answered SSLRequest with byte 0x{0:02x}")]
    Answer(u8),
    /// Bytes came between `S` and the handshake: CVE-2021-23222.
    #[error("received unencrypted data after SSL response")]
    DataInTheClear,
    /// `verify-full` needs a name that a certificate can hold.
    #[error("\"{0}\" is no host name or address that a certificate could be checked against")]
    HostName(String),
    /// The handshake itself: a certificate that isn't trusted, a wrong host name, no common version, ….
    #[error("TLS handshake with the server failed: {0}")]
    Handshake(#[source] io::Error),
    /// The connection broke.
    #[error("connection lost before it was encrypted: {0}")]
    Io(#[from] io::Error),
}

impl NodeTlsConnector {
    /// Reads the files that `[cluster.tls]` names.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn new(settings: &NodeTls) -> Result<NodeTlsConnector, TlsError> {
        if settings.mode == SslMode::Disable {
            return Ok(NodeTlsConnector::disabled());
        }
        let builder = judging(trust(settings)?)?;
        let mut config = match &settings.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(read_certificates(cert)?, read_key(key)?)
                .map_err(|source| unusable(cert, key, source))?,
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(NodeTlsConnector {
            mode: settings.mode,
            config: Some(Arc::new(config)),
        })
    }

    /// Never encrypts.
    pub fn disabled() -> NodeTlsConnector {
        NodeTlsConnector {
            mode: SslMode::Disable,
            config: None,
        }
    }

    /// Asks the node for encryption, as far as the mode wants it. `host` is what was configured: a name, or an address.
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`HandshakeError`]
    pub async fn secure(&self, mut tcp: TcpStream, host: &str) -> Result<Stream, HandshakeError> {
        let Some(config) = &self.config else {
            return Ok(Stream::Plain(tcp));
        };
        tcp.write_all(&SSL_REQUEST).await?;
        match (tcp.read_u8().await?, self.mode) {
            (b'S', _) => {}
            (b'N', SslMode::Disable | SslMode::Allow | SslMode::Prefer) => return Ok(Stream::Plain(tcp)),
            (b'N', SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => return Err(HandshakeError::Refused),
            (other, _) => return Err(HandshakeError::Answer(other)),
        }
        if has_more(&tcp) {
            return Err(HandshakeError::DataInTheClear);
        }
        let name = self.server_name(&tcp, host)?;
        let encrypted = TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await
            .map_err(HandshakeError::Handshake)?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(encrypted))))
    }

    /// Where names aren't checked, one that DNS wouldn't take (such as an alias in /etc/hosts) is no obstacle.
    fn server_name(&self, tcp: &TcpStream, host: &str) -> Result<ServerName<'static>, HandshakeError> {
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(name),
            Err(_) if self.mode == SslMode::VerifyFull => Err(HandshakeError::HostName(host.to_owned())),
            Err(_) => Ok(ServerName::from(tcp.peer_addr()?.ip())),
        }
    }
}

/// The table of `sslmode`s (manual, table 34.1).
fn trust(settings: &NodeTls) -> Result<Trust, TlsError> {
    match (settings.mode, &settings.root_cert) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => Ok(Trust::Anyone),
        (SslMode::Require, Some(path)) => file_roots(path, NameCheck::Ignored),
        (SslMode::VerifyCa, Some(path)) => file_roots(path, NameCheck::Ignored),
        (SslMode::VerifyFull, Some(path)) => file_roots(path, NameCheck::MustMatch),
        (SslMode::VerifyCa, None) => system_roots(NameCheck::Ignored),
        (SslMode::VerifyFull, None) => system_roots(NameCheck::MustMatch),
    }
}

fn file_roots(path: &Path, name: NameCheck) -> Result<Trust, TlsError> {
    let listed = read_certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &listed {
        roots.add(certificate.clone()).map_err(|source| TlsError::Root {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(Trust::Roots { roots, listed, name })
}

fn system_roots(name: NameCheck) -> Result<Trust, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found
            .errors
            .first()
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        return Err(TlsError::NoSystemRoots(reason));
    }
    Ok(Trust::Roots {
        roots,
        listed: Vec::new(),
        name,
    })
}
