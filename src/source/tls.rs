//! TLS to the source, with libpq's `sslmode` meanings.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::SourceError;
use super::url::{SourceUrl, SslMode};

/// The connector for a URL.
pub(super) fn connector(url: &SourceUrl) -> Result<MakeRustlsConnect, SourceError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: &dyn std::error::Error| SourceError::Tls(error.to_string());
    let (chain, pinned) = match url.ssl_mode {
        SslMode::Disable | SslMode::Prefer | SslMode::Require => (None, Vec::new()),
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let (roots, pinned) = roots(url)?;
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            (Some(builder.build().map_err(|error| failed(&error))?), pinned)
        }
    };
    let check_host = url.ssl_mode == SslMode::VerifyFull;
    let verifier = Arc::new(Verifier { chain, pinned, check_host, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// The authorities to trust, and the certificates of `sslrootcert` themselves.
fn roots(url: &SourceUrl) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), SourceError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &url.ssl_root_cert else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok((roots, Vec::new()));
    };
    let failed = |why: String| SourceError::Certificate { path: path.clone(), why };
    let mut pinned = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
        pinned.push(certificate);
    }
    if roots.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok((roots, pinned)) }
}

/// Checks as much of the server's certificate as the mode asks for. That the server holds the certificate's key is
/// always checked.
#[derive(Debug)]
struct Verifier {
    /// Checks the chain; `None` where the mode only encrypts.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted as the server's own. A self-signed one is its own authority, which OpenSSL, and so
    /// libpq, takes, and webpki does not.
    pinned: Vec<CertificateDer<'static>>,
    check_host: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref()) {
            if self.check_host {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verdict = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // The name is looked at last: the chain stands.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_host => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
