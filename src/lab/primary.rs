//! What makes a server a primary that standbys can follow.
//!
//! Manual: "Log-Shipping Standby Servers" (Preparing the Primary for Standby Servers) and "Continuous Archiving".

use super::error::LabError;
use super::lab::Lab;
use super::node::Node;
use super::settings::Settings;

/// Who may connect: everyone on this machine, for replication too.
const HBA: &str = "\
# written by `pgsluice lab`: everyone on this machine is trusted
# TYPE  DATABASE     USER  ADDRESS        METHOD
local   all          all                  trust
local   replication  all                  trust
host    all          all   127.0.0.1/32   trust
host    all          all   ::1/128        trust
host    replication  all   127.0.0.1/32   trust
host    replication  all   ::1/128        trust
";

/// Every node's settings. Standbys have them too, since any of them may be promoted.
pub(super) fn settings(lab: &Lab, node: &Node) -> Settings {
    let mut settings = Settings::default();
    settings.set("listen_addresses", "127.0.0.1");
    settings.set("port", node.port().to_string());
    settings.set("unix_socket_directories", "");
    settings.set("cluster_name", node.name());
    settings.set("max_connections", "200");
    settings.set("shared_buffers", "32MB");

    settings.set("wal_level", "replica");
    settings.set("max_wal_senders", "16");
    settings.set("max_replication_slots", "16");
    let (keep, how_much) = lab.dialect().keep_wal;
    settings.set(keep, how_much);
    settings.set("hot_standby", "on");
    // pg_rewind has to know every page that changed, hint bits too.
    settings.set("wal_log_hints", "on");
    settings.set("full_page_writes", "on");

    // Each node archives into a folder of its own: an old primary that runs on after a promotion archives WAL that belongs to no
    // one else, and a standby that restored it would be lost.
    let archive = lab.archive_of(node);
    let archive = archive.display();
    settings.set("archive_mode", "on");
    settings.set(
        "archive_command",
        format!("test ! -f \"{archive}/%f\" && cp \"%p\" \"{archive}/%f\""),
    );

    settings.set("logging_collector", "off");
    settings.set("log_line_prefix", "%m [%p] %q%u@%d %a ");
    settings.set("log_connections", "on");
    settings.set("log_replication_commands", "on");
    settings.set("lc_messages", "C");
    if lab.is_fast() {
        settings.set("fsync", "off");
        settings.set("wal_init_zero", "off");
    }
    settings
}

/// Writes `postgresql.conf` and `pg_hba.conf`.
pub(super) fn configure(lab: &Lab, node: &Node) -> Result<Settings, LabError> {
    let settings = settings(lab, node);
    settings.write_to(&node.data().join("postgresql.conf"), lab.run_as())?;
    lab.run_as().write(&node.data().join("pg_hba.conf"), HBA)?;
    Ok(settings)
}
