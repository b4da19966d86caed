//! A few statements through the proxy, and which server answered.

use crate::lab::error::LabError;
use crate::lab::lab::Lab;
use crate::lab::node::for_shell;
use crate::lab::status::NodeStatus;

/// Asks the server that answers for its port. It is a function of the node, so without the hint it would go to the primary.
const READ: &str = "/* pgsluice: standby */ select inet_server_port()";
const CREATE: &str = "create table if not exists pgsluice_demo (id bigserial primary key, said text)";
const INSERT: &str = "insert into pgsluice_demo (said) values ('hello') returning inet_server_port()";

/// Reads are shown at least this often, and on until every standby has answered one,
const FEWEST_READS: usize = 4;
/// but no more often than this.
const MOST_READS: usize = 16;

pub(super) fn show_where_statements_go(lab: &Lab, port: u16) -> Result<(), LabError> {
    let nodes = lab.status();
    ask(lab, port, CREATE)?;
    say!("  {CREATE}\n      done");
    for _ in 0..2 {
        let answered = ask(lab, port, INSERT)?;
        say!("  {INSERT}\n      {}", who(&nodes, &answered));
    }
    say!("  {READ}");
    let mut seen = Vec::new();
    for count in 1..=MOST_READS {
        let answered = ask(lab, port, READ)?;
        say!("      {}", who(&nodes, &answered));
        if !seen.contains(&answered) {
            seen.push(answered);
        }
        if count >= FEWEST_READS && seen.len() >= lab.nodes().len() - 1 {
            break;
        }
    }
    Ok(())
}

/// For when the reader has seen enough.
pub(super) fn what_to_try(lab: &Lab, port: u16) -> String {
    let dir = for_shell(lab.dir());
    let trigger = for_shell(&lab.trigger_file());
    format!(
        "Try, in another terminal:\n\
         \x20 pgbench -i -h 127.0.0.1 -p {port} -U postgres postgres && pgbench -S -c 4 -T 10 -h 127.0.0.1 -p {port} -U postgres postgres\n\
         \x20     reads are spread over the standbys\n\
         \x20 touch {trigger}\n\
         \x20     the failover of the original recipe: pgsluice promotes a standby and holds writes meanwhile\n\
         \x20 pgsluice lab stop primary --mode kill --dir {dir}\n\
         \x20     as if the primary's machine were lost\n\
         \x20 pgsluice lab promote node2 --dir {dir}\n\
         \x20     a promotion from outside, which pgsluice notices\n\
         \x20 pgsluice lab rejoin node1 --dir {dir}\n\
         \x20     an old primary comes back as a standby\n\
         Ctrl-C takes everything down."
    )
}

/// The answer to one statement through the proxy.
pub(super) fn ask(lab: &Lab, port: u16, statement: &str) -> Result<String, LabError> {
    lab.psql(port, "psql through pgsluice", statement)
}

/// The node of a port, in words.
fn who(nodes: &[NodeStatus], port: &str) -> String {
    match nodes.iter().find(|status| status.port.to_string() == port) {
        Some(status) => format!("answered by {}, port {port}: {}", status.name, status.role),
        None => format!("answered by port {port}"),
    }
}
