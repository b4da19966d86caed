//! PostgreSQL's md5 challenge: `"md5" + md5(md5(password + user) + salt)`. Pure.
//!
//! What is stored (`"md5" + md5(password + user)`) is as good as the password wherever md5 is asked for.
//! Manual: "Password Authentication", section 21.5.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// `md5` and 32 hexadecimal digits, as in `pg_authid.rolpassword`. Never shown by `Debug`.
#[derive(Clone)]
pub struct Md5Hash(String);

impl Md5Hash {
    /// Reads what a server stores. `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Md5Hash> {
        let digits = text.strip_prefix("md5")?;
        let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Md5Hash(text.to_ascii_lowercase()))
    }

    /// What a server would store for this password.
    pub fn of(password: &str, user: &str) -> Md5Hash {
        Md5Hash(md5_text(&[password.as_bytes(), user.as_bytes()]))
    }

    /// What a client sends when it is challenged with `salt`, without the zero byte at its end.
    pub fn answer(&self, salt: [u8; 4]) -> String {
        md5_text(&[&self.0.as_bytes()["md5".len()..], &salt])
    }

    /// Whether a client's answer is right. Takes the same time wherever they differ.
    pub fn accepts(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        self.answer(salt).as_bytes().ct_eq(answer).into()
    }
}

impl PartialEq for Md5Hash {
    fn eq(&self, other: &Md5Hash) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Md5Hash {}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(…)")
    }
}

fn md5_text(parts: &[&[u8]]) -> String {
    let digest = parts
        .iter()
        .fold(Md5::new(), |hasher, part| hasher.chain_update(part))
        .finalize();
    digest
        .iter()
        .fold(String::from("md5"), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_and_answer_are_the_servers() {
        let hash = Md5Hash::of("secret", "alice");
        assert_eq!(hash.0, "md54a0a68b43b6cd5cf266fa02f196e2371");
        assert_eq!(hash.answer([1, 2, 3, 4]), "md598a0412b9c31436fc53776e863350083");
        assert!(hash.accepts([1, 2, 3, 4], b"md598a0412b9c31436fc53776e863350083"));
        for wrong in [&b""[..], b"md5", b"md598a0412b9c31436fc53776e863350084"] {
            assert!(!hash.accepts([1, 2, 3, 4], wrong));
        }
        assert!(!hash.accepts([1, 2, 3, 5], b"md598a0412b9c31436fc53776e863350083"));
    }

    #[test]
    fn only_a_stored_hash_is_one() {
        assert!(Md5Hash::parse("md54A0A68B43B6CD5CF266FA02F196E2371").unwrap() == Md5Hash::of("secret", "alice"));
        for password in [
            "",
            "md5",
            "md5sum",
            "md54a0a68b43b6cd5cf266fa02f196e237",
            "md54a0a68b43b6cd5cf266fa02f196e237x",
        ] {
            assert!(Md5Hash::parse(password).is_none(), "{password}");
        }
        assert_eq!(format!("{:?}", Md5Hash::of("secret", "alice")), "Md5Hash(…)");
    }
}
