//! A PostgreSQL of the test's own: a directory, a port from the kernel, TLS, and one role for each way of logging in.

use std::fs::{self, Permissions};
use std::io::{Read, Seek};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, Weak};

use nix::unistd::{Uid, User};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Who may log in, and how. `tls_only` and `plain_only` fail with 28000 on the other kind of connection.
const HBA: &str = "
local   all  all         trust
host    all  trusted     127.0.0.0/8  trust
host    all  md5_user    127.0.0.0/8  md5
host    all  scram_user  127.0.0.0/8  scram-sha-256
host    all  plain_user  127.0.0.0/8  password
hostssl all  tls_only    127.0.0.0/8  scram-sha-256
hostssl all  cert_user   127.0.0.0/8  cert
hostnossl all plain_only 127.0.0.0/8  trust
host    all  full        127.0.0.0/8  trust
";

const ROLES: &str = "
CREATE ROLE trusted LOGIN;
CREATE ROLE full LOGIN CONNECTION LIMIT 0;
CREATE ROLE cert_user LOGIN;
CREATE ROLE plain_only LOGIN;
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN PASSWORD 'pass word';
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram_user LOGIN PASSWORD 'pass word';
CREATE ROLE plain_user LOGIN PASSWORD 'pass word';
CREATE ROLE tls_only LOGIN PASSWORD 'pass word';
";

/// A running server; stopped and deleted on drop.
pub(crate) struct Server {
    directory: TempDir,
    /// On 127.0.0.1, which the certificate names, and 127.0.0.2, which it doesn't.
    pub(crate) port: u16,
}

/// The tests that run at the same time share one.
static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    pub(crate) fn shared() -> Arc<Server> {
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Server {
        let directory = tempfile::tempdir().unwrap();
        give_away(directory.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server { directory, port };
        let data = server.path("data");
        server.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "--auth=trust",
                "--no-sync",
                "--no-locale",
                "-E",
                "UTF8",
            ],
        );
        server.make_certificates();
        let settings = format!(
            "listen_addresses = '127.0.0.1,127.0.0.2'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\nssl = on\n\
             ssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'\nlog_connections = on\n",
            server.directory.path().display(),
            server.path("server.crt"),
            server.path("server.key"),
            server.path("ca.crt"),
        );
        let configuration = fs::read_to_string(format!("{data}/postgresql.conf")).unwrap();
        fs::write(format!("{data}/postgresql.conf"), configuration + &settings).unwrap();
        fs::write(format!("{data}/pg_hba.conf"), HBA).unwrap();
        server.run(
            "pg_ctl",
            &["-D", &data, "-w", "-t", "60", "-l", &server.path("log"), "start"],
        );
        server.sql(ROLES);
        server
    }

    /// A file in the server's directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs SQL as the superuser; gives back what `psql -At` prints.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let (port, socket) = (self.port.to_string(), self.path(""));
        let arguments = [
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            &socket,
            "-p",
            &port,
            "-U",
            "postgres",
            "-c",
            sql,
        ];
        let output = self.run("psql", &arguments);
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        // Files, not pipes: the server that pg_ctl starts would keep a pipe open.
        let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = Command::new(binaries().join(program));
        command.args(arguments).current_dir(self.directory.path());
        command
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap());
        if let Some(user) = unprivileged() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let status = command.status().unwrap();
        let output = Output {
            status,
            stdout: contents(&mut stdout),
            stderr: contents(&mut stderr),
        };
        assert!(
            status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// A CA, a server certificate for localhost and 127.0.0.1, a client certificate for `cert_user`, and a CA that signed none of them.
    fn make_certificates(&self) {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            (params.self_signed(&key).unwrap(), Issuer::new(params, key))
        };
        let (ca, issuer) = authority("test CA");
        let leaf = |name: &str, alternatives: &[&str]| {
            let alternatives: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(alternatives).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let (server_crt, server_key) = leaf("server", &["localhost", "127.0.0.1"]);
        let (client_crt, client_key) = leaf("cert_user", &[]);
        let files = [
            ("ca.crt", ca.pem()),
            ("other-ca.crt", authority("other CA").0.pem()),
            ("server.crt", server_crt),
            ("server.key", server_key),
            ("client.crt", client_crt),
            ("client.key", client_key),
        ];
        for (name, pem) in files {
            let path = self.directory.path().join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            give_away(&path);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if Path::new(&self.path("data/postmaster.pid")).exists() {
            self.run("pg_ctl", &["-D", &self.path("data"), "-m", "immediate", "-w", "stop"]);
        }
    }
}

fn contents(file: &mut fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).unwrap();
    bytes
}

/// PostgreSQL doesn't run as root.
fn unprivileged() -> Option<User> {
    Uid::effective().is_root().then(|| {
        User::from_name("postgres")
            .unwrap()
            .expect("root needs a postgres user to run PostgreSQL as")
    })
}

fn give_away(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// `PGSLUICE_TEST_PG_BIN`, or the newest one that Debian's packages installed.
fn binaries() -> PathBuf {
    if let Some(configured) = std::env::var_os("PGSLUICE_TEST_PG_BIN") {
        return configured.into();
    }
    let installed = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    installed
        .max()
        .expect("these tests need PostgreSQL: install it, or set PGSLUICE_TEST_PG_BIN")
}
