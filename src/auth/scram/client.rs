//! The client's role: introduce, answer the challenge, and check that the server knows the verifier too.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{MAX_ITERATIONS, ScramError, ScramKeys, decode_key, hash, hmac, is_nonce, same, take_attribute, xor};

/// No channel binding, no authorization identity.
const GS2_HEADER: &str = "n,,";

/// Introduced, waiting for the challenge.
#[derive(Debug)]
pub struct Start {
    message: String,
    nonce: String,
}

/// Challenged; the keys for this salt and these iterations are needed.
#[derive(Debug)]
pub struct Challenged {
    client_first_bare: String,
    server_first: String,
    nonce: String,
    salt: Vec<u8>,
    iterations: u32,
}

/// Answered, waiting for the server's own proof.
#[derive(Debug, Clone)]
pub struct Answered {
    message: String,
    server_signature: [u8; 32],
}

impl Start {
    /// `nonce` is fresh from [`super::nonce`]. PostgreSQL ignores the user's name here; libpq sends an empty one.
    pub fn new(user: &str, nonce: &str) -> Start {
        let escaped = user.replace('=', "=3D").replace(',', "=2C");
        Start {
            message: format!("{GS2_HEADER}n={escaped},r={nonce}"),
            nonce: nonce.to_owned(),
        }
    }

    /// client-first-message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Reads server-first-message.
    ///
    /// # Errors
    /// [`ScramError`]: a nonce that isn't ours and more, too many iterations, or a malformed message.
    pub fn challenged(self, server_first: &[u8]) -> Result<Challenged, ScramError> {
        let message = str::from_utf8(server_first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let mut rest = message;
        let nonce = take_attribute(&mut rest, 'r').ok_or(ScramError::Malformed("nonce expected"))?;
        let salt = take_attribute(&mut rest, 's').ok_or(ScramError::Malformed("salt expected"))?;
        let iterations = take_attribute(&mut rest, 'i').ok_or(ScramError::Malformed("iteration count expected"))?;
        if !is_nonce(nonce) || nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        let salt = BASE64_STANDARD
            .decode(salt)
            .map_err(|_| ScramError::Malformed("salt is not base64"))?;
        let iterations = match iterations.parse() {
            Ok(0) | Err(_) => return Err(ScramError::Malformed("invalid iteration count")),
            Ok(count) if count > MAX_ITERATIONS => return Err(ScramError::Iterations(count)),
            Ok(count) => count,
        };
        Ok(Challenged {
            client_first_bare: self.message[GS2_HEADER.len()..].to_owned(),
            server_first: message.to_owned(),
            nonce: nonce.to_owned(),
            salt,
            iterations,
        })
    }
}

impl Challenged {
    /// For [`ScramKeys::derive`].
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// For [`ScramKeys::derive`]. From 1 to a million.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Makes the proof.
    ///
    /// # Errors
    /// [`ScramError::KeysDontFit`]
    pub fn answer(self, keys: &ScramKeys) -> Result<Answered, ScramError> {
        if !keys.fit(&self.salt, self.iterations) {
            return Err(ScramError::KeysDontFit);
        }
        let without_proof = format!("c={},r={}", BASE64_STANDARD.encode(GS2_HEADER), self.nonce);
        let auth_message = [self.client_first_bare.as_str(), &self.server_first, &without_proof].join(",");
        let signature = hmac(&hash(&keys.client_key), &[auth_message.as_bytes()]);
        let proof = BASE64_STANDARD.encode(xor(&keys.client_key, &signature));
        Ok(Answered {
            message: format!("{without_proof},p={proof}"),
            server_signature: hmac(&keys.server_key, &[auth_message.as_bytes()]),
        })
    }
}

impl Answered {
    /// client-final-message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Checks server-final-message. Until this has succeeded, nothing that the server says may be believed.
    ///
    /// # Errors
    /// [`ScramError::ServerSignature`] for an impostor, [`ScramError::Server`] when it says that it gave up.
    pub fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let mut rest = str::from_utf8(server_final).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        if let Some(error) = take_attribute(&mut rest, 'e') {
            return Err(ScramError::Server(error.to_owned()));
        }
        let signature = take_attribute(&mut rest, 'v').ok_or(ScramError::Malformed("server signature expected"))?;
        let signature = decode_key(signature).ok_or(ScramError::Malformed("server signature of a wrong length"))?;
        if !same(&signature, &self.server_signature) {
            return Err(ScramError::ServerSignature);
        }
        Ok(())
    }
}
