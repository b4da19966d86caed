//! The proxy's configuration for a lab.

use std::fmt::Write;

use super::lab::Lab;
use super::node::SUPERUSER;

/// Where the proxy listens unless told otherwise.
pub(super) const LISTEN: &str = "127.0.0.1:5432";
/// Where its status page is unless told otherwise.
pub(super) const ADMIN: &str = "127.0.0.1:9432";

/// `pgsluice.toml`. Paths need no escaping: `up` refuses folders with quotes or backslashes in them.
pub(super) fn for_lab(lab: &Lab, listen: &str, admin: &str) -> String {
    let dir = lab.dir().display();
    let mut text = format!(
        "# written by `pgsluice lab`, for `pgsluice serve -c`\n\n\
         [listen]\naddresses = [\"{listen}\"]\n\n\
         [cluster]\nstate_file = \"{dir}/pgsluice.state\"\n"
    );
    for node in lab.nodes() {
        write!(
            text,
            "\n[[cluster.node]]\nname = \"{}\"\naddress = \"{}\"\n",
            node.name(),
            node.address()
        )
        .expect("writing to a String can't fail");
    }
    text.push_str(&format!(
        "\n[monitor]\nuser = \"{SUPERUSER}\"\ndatabase = \"postgres\"\n\n\
         [failover]\ntrigger_file = \"{}\"\n\n\
         [admin]\nhttp = \"{admin}\"\n",
        lab.trigger_file().display()
    ));
    text
}
