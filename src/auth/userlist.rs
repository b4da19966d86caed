//! The users file, in PgBouncer's `userlist.txt` format.
//!
//! ```text
//! ; a comment, as is # at the beginning of a line
//! "app"     "SCRAM-SHA-256$4096:…"     as in pg_authid.rolpassword: the best choice
//! "legacy"  "md5…"
//! "batch"   "a plain password; "" is a quotation mark"
//! "nobody"  ""                         known, but no password lets them in
//! ```
//!
//! What follows the second text on a line is ignored, as PgBouncer does. A name may appear once.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::md5::Md5Hash;
use super::scram::{DEFAULT_ITERATIONS, ScramKeys, Verifier, hmac, random};
use super::secret::{NodeSecret, Password};

/// A file that is longer is no users file.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Who may log in, and what proves them. `Debug` shows how many they are.
pub struct UserList {
    users: HashMap<String, UserSecret>,
    /// Makes the salts of those who have none: the same file always gives the same ones, so that a restart doesn't show who is real.
    salt_key: [u8; 32],
    /// What the first verifier in the file uses, so that users who don't exist look like one who does.
    mock_iterations: u32,
    warnings: Vec<UserListWarning>,
}

/// What the file says of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserSecret {
    /// A password in the clear.
    Plain(Arc<Password>),
    /// `md5…`
    Md5(Md5Hash),
    /// `SCRAM-SHA-256$…`
    Scram(Verifier),
    /// Empty: as in PostgreSQL, an empty password is no password.
    Missing,
}

/// Something about the file that its owner should change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserListWarning {
    /// Everyone on the machine can read the secrets.
    #[error("{} can be read by every user of this machine: chmod 600", .0.display())]
    WorldReadable(PathBuf),
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UserListError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line isn't as it should be.
    #[error("{path}:{line}: {fault}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Not in quotation marks.
    #[error("expected \"name\" \"secret\", both in quotation marks")]
    NotQuoted,
    /// A quotation mark without its partner.
    #[error("the quotation marks don't end on this line")]
    Unterminated,
    /// `""`
    #[error("the name is empty")]
    EmptyName,
    /// The name has been there before: one of them would silently not work.
    #[error("user \"{0}\" is listed twice")]
    Duplicate(String),
    /// Begins like a verifier and isn't one: it would otherwise be taken for a password.
    #[error("the secret of user \"{0}\" begins with SCRAM-SHA-256$ but is no SCRAM verifier")]
    BrokenVerifier(String),
    /// A zero byte.
    #[error("a zero byte can't be part of a name or a secret")]
    ZeroByte,
}

impl UserList {
    /// Nobody.
    pub fn empty() -> UserList {
        UserList {
            users: HashMap::new(),
            salt_key: random(),
            mock_iterations: DEFAULT_ITERATIONS,
            warnings: Vec::new(),
        }
    }

    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// [`UserListError`], with the file and the line, and never with a secret.
    pub fn load(path: &Path) -> Result<UserList, UserListError> {
        let (text, mode) = read(path).map_err(|source| UserListError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let mut list = UserList::parse(&text).map_err(|(line, fault)| UserListError::Line {
            path: path.to_owned(),
            line,
            fault,
        })?;
        if mode & 0o004 != 0 {
            list.warnings.push(UserListWarning::WorldReadable(path.to_owned()));
        }
        Ok(list)
    }

    fn parse(text: &str) -> Result<UserList, (usize, LineFault)> {
        let mut list = UserList {
            salt_key: Sha256::digest(text).into(),
            ..UserList::empty()
        };
        let mut iterations = None;
        for (index, line) in text.lines().enumerate() {
            let Some((name, secret)) = parse_line(line).map_err(|fault| (index + 1, fault))? else {
                continue;
            };
            if let UserSecret::Scram(verifier) = &secret {
                iterations.get_or_insert(verifier.iterations());
            }
            if list.users.contains_key(&name) {
                return Err((index + 1, LineFault::Duplicate(name)));
            }
            list.users.insert(name, secret);
        }
        list.mock_iterations = iterations.unwrap_or(DEFAULT_ITERATIONS);
        Ok(list)
    }

    /// What the file says of a user; `None` if nothing.
    pub fn lookup(&self, user: &str) -> Option<&UserSecret> {
        self.users.get(user)
    }

    /// What lets the proxy log in to nodes as this user without the client's help. A verifier alone doesn't.
    pub fn node_secret(&self, user: &str) -> Option<NodeSecret> {
        match self.lookup(user)? {
            UserSecret::Plain(password) => Some(NodeSecret::Plain(Arc::clone(password))),
            UserSecret::Md5(hash) => Some(NodeSecret::Md5(hash.clone())),
            UserSecret::Scram(_) | UserSecret::Missing => None,
        }
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// What to tell the operator.
    pub fn warnings(&self) -> &[UserListWarning] {
        &self.warnings
    }

    /// The verifier that a user's proof is checked against, and whether there is a user behind it. Those who can't log in by SCRAM get
    /// one that no proof matches.
    pub(super) async fn scram_verifier(&self, user: &str) -> Verifier {
        match self.lookup(user) {
            Some(UserSecret::Scram(verifier)) => verifier.clone(),
            Some(UserSecret::Plain(password)) => {
                let keys: ScramKeys = password.scram_keys(&self.salt(user), DEFAULT_ITERATIONS).await;
                Verifier::from(&keys)
            }
            Some(UserSecret::Md5(_) | UserSecret::Missing) | None => {
                Verifier::mock(self.salt(user), self.mock_iterations)
            }
        }
    }

    /// 16 bytes, as PostgreSQL's salts have.
    fn salt(&self, user: &str) -> Vec<u8> {
        hmac(&self.salt_key, &[user.as_bytes()])[..16].to_vec()
    }
}

impl fmt::Debug for UserList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserList({} users)", self.users.len())
    }
}

/// The text and the permission bits.
fn read(path: &Path) -> io::Result<(String, u32)> {
    let file = std::fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = String::new();
    let length = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 64 MB"));
    }
    Ok((text, mode))
}

fn parse_line(line: &str) -> Result<Option<(String, UserSecret)>, LineFault> {
    let line = line.trim_start();
    if line.is_empty() || line.starts_with([';', '#']) {
        return Ok(None);
    }
    if line.contains('\0') {
        return Err(LineFault::ZeroByte);
    }
    let (name, rest) = take_quoted(line)?;
    let (secret, _ignored) = take_quoted(rest.trim_start())?;
    if name.is_empty() {
        return Err(LineFault::EmptyName);
    }
    let secret = parse_secret(&name, secret)?;
    Ok(Some((name, secret)))
}

/// A text in quotation marks, and what follows it.
fn take_quoted(text: &str) -> Result<(String, &str), LineFault> {
    let mut rest = text.strip_prefix('"').ok_or(LineFault::NotQuoted)?;
    let mut taken = String::new();
    loop {
        let (before, after) = rest.split_once('"').ok_or(LineFault::Unterminated)?;
        taken.push_str(before);
        let Some(escaped) = after.strip_prefix('"') else {
            return Ok((taken, after));
        };
        taken.push('"');
        rest = escaped;
    }
}

fn parse_secret(name: &str, secret: String) -> Result<UserSecret, LineFault> {
    if secret.is_empty() {
        Ok(UserSecret::Missing)
    } else if let Some(hash) = Md5Hash::parse(&secret) {
        Ok(UserSecret::Md5(hash))
    } else if let Some(verifier) = Verifier::parse(&secret) {
        Ok(UserSecret::Scram(verifier))
    } else if secret.starts_with("SCRAM-SHA-256$") {
        Err(LineFault::BrokenVerifier(name.to_owned()))
    } else {
        Ok(UserSecret::Plain(Arc::new(Password::new(secret))))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use proptest::prelude::*;

    use super::*;

    const VERIFIER: &str = "SCRAM-SHA-256$4097:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn every_kind_of_line_is_read() {
        let text = format!(
            "; comment\n# comment\n\n  \"app\" \"{VERIFIER}\"\r\n\"old\"\t\"md54a0a68b43b6cd5cf266fa02f196e2371\" rest\n\
             \"a \"\"b\"\"\" \"p\"\"w;#\"\n\"none\"\"\"\"\" \"\"\n\"md5ish\" \"md5sum\""
        );
        let list = UserList::parse(&text).unwrap();
        assert_eq!(list.len(), 5);
        assert_eq!(
            list.lookup("app"),
            Verifier::parse(VERIFIER).map(UserSecret::Scram).as_ref()
        );
        assert_eq!(
            list.lookup("old"),
            Some(&UserSecret::Md5(Md5Hash::of("secret", "alice")))
        );
        assert_eq!(
            list.lookup("a \"b\""),
            Some(&UserSecret::Plain(Arc::new(Password::new("p\"w;#"))))
        );
        assert_eq!(list.lookup("none\"\""), Some(&UserSecret::Missing));
        assert!(matches!(list.lookup("md5ish"), Some(UserSecret::Plain(_))));
        assert_eq!(list.lookup("App"), None);
        assert_eq!(list.mock_iterations, 4097);
        assert_eq!(list.node_secret("app"), None);
        assert_eq!(list.node_secret("a \"b\""), Some(NodeSecret::plain("p\"w;#")));
    }

    #[test]
    fn a_wrong_line_is_named_with_its_fault_and_without_its_secret() {
        let cases = [
            ("\"a\" \"b\"\nc d", 2, LineFault::NotQuoted),
            ("\"a\"", 1, LineFault::NotQuoted),
            ("\"a\" \"b", 1, LineFault::Unterminated),
            ("\"a\" \"b\"\"", 1, LineFault::Unterminated),
            ("\"\" \"b\"", 1, LineFault::EmptyName),
            ("\"a\" \"b\"\n\n\"a\" \"c\"", 3, LineFault::Duplicate("a".to_owned())),
            (
                "\"a\" \"SCRAM-SHA-256$4096:zzz\"",
                1,
                LineFault::BrokenVerifier("a".to_owned()),
            ),
            ("\"a\" \"b\0\"", 1, LineFault::ZeroByte),
        ];
        for (text, line, fault) in cases {
            assert_eq!(UserList::parse(text).unwrap_err(), (line, fault), "{text}");
        }
    }

    #[test]
    fn loading_names_the_file_and_warns_when_everyone_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.txt");
        assert!(UserList::load(&path).unwrap_err().to_string().contains("users.txt"));
        fs::write(&path, "\"a\" \"b\"\noops\n").unwrap();
        assert!(
            UserList::load(&path)
                .unwrap_err()
                .to_string()
                .contains("users.txt:2: expected")
        );
        fs::write(&path, "\"a\" \"b\"\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            UserList::load(&path).unwrap().warnings(),
            [UserListWarning::WorldReadable(path.clone())]
        );
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(UserList::load(&path).unwrap().warnings(), []);
        assert_eq!(format!("{:?}", UserList::load(&path).unwrap()), "UserList(1 users)");
    }

    #[tokio::test]
    async fn who_does_not_exist_looks_the_same_after_a_restart() {
        let text = "\"a\" \"b\"\n";
        let (before, after) = (UserList::parse(text).unwrap(), UserList::parse(text).unwrap());
        assert_eq!(before.salt("ghost"), after.salt("ghost"));
        assert_ne!(before.salt("ghost"), before.salt("spook"));
        assert_eq!(before.scram_verifier("a").await, after.scram_verifier("a").await);
        assert_ne!(
            before.scram_verifier("ghost").await,
            after.scram_verifier("ghost").await
        );
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(text in "[\"a ;#\n\0S]{0,60}|\\PC{0,60}") {
            let _ = UserList::parse(&text);
        }

        #[test]
        fn every_name_and_secret_survives_quoting(name in "[^\n\r\0]{1,20}", secret in "[^\n\r\0]{1,20}") {
            prop_assume!(!secret.starts_with("SCRAM"));
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let list = UserList::parse(&format!("{} {}", quoted(&name), quoted(&secret))).unwrap();
            prop_assert_eq!(list.lookup(&name), Some(&UserSecret::Plain(Arc::new(Password::new(secret)))));
        }
    }
}
