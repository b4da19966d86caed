//! How a node's certificate is judged: not at all, by its chain, or by chain and host name.
//!
//! Whatever is believed about the certificate, the handshake's signature is always checked against it, so that a session is at least
//! with whoever holds its key. Unlike OpenSSL, names are only looked for among subject alternative names, never in the common name.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Whether the certificate must be for the host that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameCheck {
    /// `verify-ca`
    Ignored,
    /// `verify-full`
    MustMatch,
}

/// Which certificates are believed.
#[derive(Debug)]
pub(super) enum Trust {
    /// Any: encryption against those who only listen.
    Anyone,
    /// Those with a chain to a root.
    Roots {
        /// Trust anchors.
        roots: RootCertStore,
        /// The root file's certificates as they are. A server certificate that *is* one of them needs no chain: a self-signed one made
        /// by the manual's recipe is marked as a CA, which webpki takes from nobody. Its period of validity isn't looked at.
        listed: Vec<CertificateDer<'static>>,
        /// What else is asked.
        name: NameCheck,
    },
}

/// Judges servers by [`Trust`].
#[derive(Debug)]
pub(super) struct Judge {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Judge {
    pub(super) fn new(trust: Trust, algorithms: WebPkiSupportedAlgorithms) -> Judge {
        Judge { trust, algorithms }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Roots { roots, listed, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !listed.contains(end_entity) {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        if *name == NameCheck::MustMatch {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
