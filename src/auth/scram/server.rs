//! The server's role: challenge a client, then check its proof.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{ScramError, ScramKeys, Verifier, decode_key, hash, hmac, is_nonce, same, take_attribute, xor};

/// A client has introduced itself and must now prove itself.
#[derive(Debug)]
pub struct Challenge {
    verifier: Verifier,
    /// `n,,` or `y,,`: repeated, encoded, in the client's last message.
    gs2_header: String,
    client_first_bare: String,
    /// The client's and ours.
    nonce: String,
    message: String,
}

/// A client has proven itself.
#[derive(Debug)]
pub struct Proven {
    /// server-final-message: our proof that we know the verifier.
    pub message: String,
    /// What the client's proof revealed.
    pub keys: ScramKeys,
}

impl Challenge {
    /// Answers client-first-message. `server_nonce` is fresh from [`super::nonce`].
    ///
    /// `y` (the client could bind channels and thinks that we can't) is right: nothing else was offered.
    ///
    /// # Errors
    /// [`ScramError`]: what isn't supported, or is malformed.
    pub fn new(client_first: &[u8], verifier: Verifier, server_nonce: &str) -> Result<Challenge, ScramError> {
        let message = str::from_utf8(client_first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let mut rest = match message.split_once(',') {
            Some(("n" | "y", rest)) => rest,
            Some((flag, _)) if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed("channel-binding flag expected")),
        };
        rest = match rest.split_once(',') {
            Some(("", rest)) => rest,
            Some((identity, _)) if identity.starts_with("a=") => return Err(ScramError::AuthorizationIdentity),
            _ => return Err(ScramError::Malformed("authorization identity or comma expected")),
        };
        let client_first_bare = rest.to_owned();
        let gs2_header = message[..message.len() - rest.len()].to_owned();

        // The name is ignored, as PostgreSQL does: the start-up packet has said who it is.
        take_attribute(&mut rest, 'n').ok_or(ScramError::Malformed("user name expected"))?;
        let client_nonce = take_attribute(&mut rest, 'r').ok_or(ScramError::Malformed("nonce expected"))?;
        if !is_nonce(client_nonce) {
            return Err(ScramError::Malformed("unprintable nonce"));
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let message = format!(
            "r={nonce},s={},i={}",
            BASE64_STANDARD.encode(&verifier.salt),
            verifier.iterations
        );
        Ok(Challenge {
            verifier,
            gs2_header,
            client_first_bare,
            nonce,
            message,
        })
    }

    /// server-first-message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Checks client-final-message.
    ///
    /// # Errors
    /// [`ScramError::Proof`] for a wrong password, others for messages that don't follow the RFC.
    pub fn check(&self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let message = str::from_utf8(client_final).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("proof expected"))?;
        let proof = decode_key(proof).ok_or(ScramError::Malformed("proof of a wrong length"))?;
        let mut rest = without_proof;
        let binding = take_attribute(&mut rest, 'c').ok_or(ScramError::Malformed("channel binding expected"))?;
        let nonce = take_attribute(&mut rest, 'r').ok_or(ScramError::Malformed("nonce expected"))?;
        if binding != BASE64_STANDARD.encode(&self.gs2_header) {
            return Err(ScramError::ChannelBindingMismatch);
        }
        if nonce != self.nonce {
            return Err(ScramError::Nonce);
        }

        let auth_message = [self.client_first_bare.as_str(), self.message.as_str(), without_proof].join(",");
        let signature = hmac(&self.verifier.stored_key, &[auth_message.as_bytes()]);
        let client_key = xor(&proof, &signature);
        if !same(&hash(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::Proof);
        }
        let server_signature = hmac(&self.verifier.server_key, &[auth_message.as_bytes()]);
        Ok(Proven {
            message: format!("v={}", BASE64_STANDARD.encode(server_signature)),
            keys: ScramKeys {
                iterations: self.verifier.iterations,
                salt: self.verifier.salt.clone(),
                client_key,
                server_key: self.verifier.server_key,
            },
        })
    }
}
