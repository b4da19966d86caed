//! What proves a user to a node. `Debug` never shows any of it, and comparing takes no telling time.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use super::md5::Md5Hash;
use super::scram::ScramKeys;

/// What can be used to log in to nodes as a user. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeSecret {
    /// The password itself: fits every method.
    Plain(Arc<Password>),
    /// A stored md5 hash: fits nodes that ask for md5.
    Md5(Md5Hash),
    /// Keys that a client's own SCRAM login revealed, or that were derived: fit nodes whose verifier has the same salt and iterations.
    Scram(ScramKeys),
}

impl NodeSecret {
    /// From a password, such as the monitor's.
    pub fn plain(password: &str) -> NodeSecret {
        NodeSecret::Plain(Arc::new(Password::new(password)))
    }

    /// For messages: what kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            NodeSecret::Plain(_) => "a password",
            NodeSecret::Md5(_) => "an md5 hash",
            NodeSecret::Scram(_) => "SCRAM keys",
        }
    }
}

/// A password, and the SCRAM keys that were already derived from it: that takes milliseconds, and all nodes of a cluster use one salt.
pub struct Password {
    text: String,
    /// Oldest first, at most [`Password::KEPT`].
    derived: Mutex<Vec<ScramKeys>>,
    /// Held while deriving, so that a hundred logins at once derive once.
    deriving: Mutex<()>,
}

impl Password {
    /// The proxy's own salt, the cluster's, and those from before and after somebody set the same password again.
    const KEPT: usize = 4;

    /// Keeps the text.
    pub fn new(text: impl Into<String>) -> Password {
        Password {
            text: text.into(),
            derived: Mutex::new(Vec::new()),
            deriving: Mutex::new(()),
        }
    }

    /// The password itself, for a cleartext request or md5.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Keys for this salt and number of iterations: remembered, or derived on a thread that may block.
    pub(super) async fn scram_keys(self: &Arc<Password>, salt: &[u8], iterations: u32) -> ScramKeys {
        if let Some(keys) = self.known(salt, iterations) {
            return keys;
        }
        let (password, owned_salt) = (Arc::clone(self), salt.to_vec());
        let derived = tokio::task::spawn_blocking(move || password.derive(&owned_salt, iterations)).await;
        // It only fails while the runtime is shutting down, when blocking no longer disturbs anyone.
        derived.unwrap_or_else(|_| self.derive(salt, iterations))
    }

    fn known(&self, salt: &[u8], iterations: u32) -> Option<ScramKeys> {
        self.derived
            .lock()
            .iter()
            .find(|keys| keys.fit(salt, iterations))
            .cloned()
    }

    fn derive(&self, salt: &[u8], iterations: u32) -> ScramKeys {
        let _one_at_a_time = self.deriving.lock();
        if let Some(keys) = self.known(salt, iterations) {
            return keys;
        }
        let keys = ScramKeys::derive(&self.text, salt, iterations);
        let mut derived = self.derived.lock();
        if derived.len() == Password::KEPT {
            derived.remove(0);
        }
        derived.push(keys.clone());
        keys
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Password) -> bool {
        self.text.as_bytes().ct_eq(other.text.as_bytes()).into()
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_derived_once_per_salt_and_few_are_kept() {
        let password = Arc::new(Password::new("pencil"));
        let first = password.scram_keys(b"salt 0", 10).await;
        assert_eq!(password.known(b"salt 0", 10), Some(first));
        assert_eq!(password.known(b"salt 0", 11), None);
        for number in 1..=Password::KEPT {
            password.scram_keys(format!("salt {number}").as_bytes(), 10).await;
        }
        assert_eq!(password.known(b"salt 0", 10), None);
        assert_eq!(password.derived.lock().len(), Password::KEPT);
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let secrets = [NodeSecret::plain("pencil"), NodeSecret::Md5(Md5Hash::of("pencil", "u"))];
        for secret in secrets {
            let shown = format!("{secret:?}");
            assert!(shown.contains('…') && !shown.contains("pencil"), "{shown}");
        }
    }
}
