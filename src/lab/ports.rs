//! Free ports, and who has the ones that aren't.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use super::error::LabError;

/// The first port that the kernel may give to outgoing connections, where it doesn't say.
const USUAL_FIRST_EPHEMERAL: u16 = 32768;

/// The ports `base_port`, `base_port + 1`, …, if all of them are free.
pub(super) fn in_a_row(base_port: u16, count: usize) -> Result<Vec<u16>, LabError> {
    let out_of_range = || LabError::PortRange {
        base_port,
        nodes: count,
    };
    let last = u16::try_from(count.saturating_sub(1))
        .ok()
        .and_then(|more| base_port.checked_add(more));
    let last = last.filter(|_| base_port >= 1024).ok_or_else(out_of_range)?;
    let ports: Vec<u16> = (base_port..=last).collect();
    for &port in &ports {
        check_free(port)?;
    }
    Ok(ports)
}

/// Free ports anywhere below the kernel's ephemeral range. Inside it, any outgoing connection could take the port of a node
/// that is stopped for a moment, and the node would not come back.
pub fn anywhere(count: usize) -> Result<Vec<u16>, LabError> {
    let first_ephemeral = first_ephemeral();
    let mut held: Vec<(u16, TcpListener)> = Vec::new();
    for _ in 0..1000 {
        if held.len() == count {
            break;
        }
        let port = 10_240 + random() % first_ephemeral.saturating_sub(10_240).max(1);
        // Held until all are found, so that none is found twice.
        if let Ok(listener) = bind(port) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(LabError::PortRange {
            base_port: 10_240,
            nodes: count,
        });
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// `wanted`, or the next port after it that is free.
pub(super) fn at_or_after(wanted: u16) -> Option<u16> {
    (wanted..=u16::MAX).take(1000).find(|&port| bind(port).is_ok())
}

/// Fails with whoever listens on 127.0.0.1 or everywhere.
pub(super) fn check_free(port: u16) -> Result<(), LabError> {
    match bind(port) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(LabError::PortTaken { port, by: holder(port) }),
        Err(source) => Err(LabError::Io {
            what: format!("can't listen on port {port}"),
            source,
        }),
    }
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn first_ephemeral() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|&first: &u16| first > 11_000)
        .unwrap_or(USUAL_FIRST_EPHEMERAL)
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u16::from_ne_bytes(bytes),
        Err(_) => std::process::id() as u16,
    }
}

/// Which process listens on a port, as `postgres (pid 4711)`; only Linux tells, and only of processes that we may look at.
pub(super) fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .find_map(|table| listening_inode(table, port))?;
    let socket = format!("socket:[{inode}]");
    let is_process = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<i32>().is_ok();
    for process in fs::read_dir("/proc").ok()?.flatten().filter(is_process) {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds =
            |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == &*socket);
        if descriptors.flatten().any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!(
                "{} (pid {})",
                name.trim(),
                process.file_name().to_string_lossy()
            ));
        }
    }
    None
}

/// The socket in state LISTEN (0A) on a port, from the kernel's table: `sl local rem st tx:rx tr:when retrnsmt uid timeout inode`.
fn listening_inode(table: &str, port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    let text = fs::read_to_string(table).ok()?;
    text.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_holder() {
        let holding = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = holding.local_addr().unwrap().port();
        let refused = check_free(port).unwrap_err().to_string();
        assert!(refused.contains(&port.to_string()), "{refused}");
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
    }

    #[test]
    fn free_ports_differ_and_stay_out_of_the_ephemeral_range() {
        let mut ports = anywhere(20).unwrap();
        assert!(ports.iter().all(|&port| port < first_ephemeral()));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_row_that_ends_past_the_last_port_is_refused() {
        assert!(matches!(in_a_row(65_535, 2), Err(LabError::PortRange { .. })));
        assert!(matches!(in_a_row(80, 1), Err(LabError::PortRange { .. })));
    }
}
