//! How durations and addresses are written.

use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use super::NodeAddress;
use super::problem::Unfit;

/// Units of time, longest first, with PostgreSQL's names and the short ones.
const UNITS: &[(&str, u64)] = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Reads "250ms", "10s", "1m", "1h30m". A number without a unit is refused: nobody agrees on what it means.
pub(super) fn parse_duration(text: &str) -> Result<Duration, Unfit> {
    let unfit =
        |why: &str| Unfit::new(format!("{text:?} {why}")).suggest("write it like \"250ms\", \"10s\", \"1m\" or \"1h\"");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(unfit("is not a duration"));
    }
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let after = after.trim_start();
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        if number.is_empty() {
            return Err(unfit("is not a duration"));
        }
        if unit.is_empty() && after.is_empty() {
            return Err(Unfit::new(format!("{text:?} has no unit")).suggest(format!("did you mean \"{number}s\"?")));
        }
        let Some((_, unit_micros)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(unfit("is not a duration"));
        };
        micros = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*unit_micros))
            .and_then(|part| micros.checked_add(part))
            .ok_or_else(|| unfit("is too long"))?;
        rest = after.trim_start();
    }
    Ok(Duration::from_micros(micros))
}

/// The shortest text that [`parse_duration`] reads as this, to the microsecond.
pub(super) fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let unit = UNITS
        .iter()
        .find(|(name, unit)| *name != "m" && micros > 0 && micros.is_multiple_of(u128::from(*unit)));
    match unit {
        Some((name, unit)) => format!("{}{name}", micros / u128::from(*unit)),
        None => "0s".to_owned(),
    }
}

/// Reads `host:port`, `192.0.2.1:5432` and `[2001:db8::1]:5432`. The port may be 0.
pub(super) fn parse_address(text: &str) -> Result<NodeAddress, Unfit> {
    let unfit = |why: &str| Unfit::new(format!("{text:?} {why}"));
    let example = "write it like \"db1.example.com:5432\" or \"[2001:db8::1]:5432\"";
    if text.contains("://") || text.contains('@') {
        return Err(unfit("is a URL, not an address").suggest(example));
    }
    if text.starts_with('/') {
        return Err(unfit("is a path, and unix sockets are not supported yet").suggest(example));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(unfit("has no port").suggest(format!("did you mean \"[{text}]:5432\"?")));
    }
    if text.parse::<u16>().is_ok() {
        return Err(unfit("has no host").suggest(format!("did you mean \"127.0.0.1:{text}\"?")));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(unfit("has no port").suggest(format!("did you mean \"{text}:5432\"?")));
    };
    let port = port
        .parse()
        .map_err(|_| unfit("has no port from 0 to 65535 after its last colon").suggest(example))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    let fits = match bracketed {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '*'))
        }
    };
    if !fits {
        return Err(unfit("has no host before its last colon").suggest(example));
    }
    Ok(NodeAddress {
        host: host.to_owned(),
        port,
    })
}

/// Reads an address to listen on. A name gives its IPv4 addresses, or else its IPv6 ones: `localhost` is often in
/// /etc/hosts for IPv6 on machines that have none, and would fail to bind. `*` is every IPv4 address.
pub(super) fn parse_listen(text: &str) -> Result<Vec<SocketAddr>, Unfit> {
    let NodeAddress { host, port } = parse_address(text)?;
    let host = if host == "*" { "0.0.0.0" } else { &host };
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| Unfit::new(format!("the host {host:?} can't be found ({error})")))?
        .collect();
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    match (v4.is_empty(), v6.is_empty()) {
        (false, _) => Ok(v4),
        (true, false) => Ok(v6),
        (true, true) => Err(Unfit::new(format!("the host {host:?} has no address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, micros, shown) in [
            ("0ms", 0, "0s"),
            ("250ms", 250_000, "250ms"),
            ("10s", 10_000_000, "10s"),
            ("1m", 60_000_000, "1min"),
            ("90 min", 5_400_000_000, "90min"),
            ("1h30m", 5_400_000_000, "90min"),
            ("1h", 3_600_000_000, "1h"),
            ("2d", 172_800_000_000, "2d"),
            ("1500us", 1_500, "1500us"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_micros(micros), "{text}");
            assert_eq!(show_duration(duration), shown, "{text}");
            assert_eq!(parse_duration(shown).unwrap(), duration, "{shown}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for (text, message) in [
            ("10", "has no unit"),
            ("", "is not a duration"),
            ("ten", "is not a duration"),
            ("s", "is not a duration"),
            ("-1s", "is not a duration"),
            ("1.5s", "is not a duration"),
            ("10 weeks", "is not a duration"),
            ("1h30", "has no unit"),
            ("99999999999999999999s", "is too long"),
            ("18446744073709551615d", "is too long"),
        ] {
            let unfit = parse_duration(text).unwrap_err();
            assert!(unfit.message.contains(message), "{text}: {}", unfit.message);
            assert!(unfit.suggestion.is_some());
        }
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, host, port) in [
            ("127.0.0.1:5432", "127.0.0.1", 5432),
            ("[::1]:0", "::1", 0),
            ("db-1.example.com:65535", "db-1.example.com", 65535),
        ] {
            let address = parse_address(text).unwrap();
            assert_eq!(
                address,
                NodeAddress {
                    host: host.to_owned(),
                    port
                }
            );
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        for (text, suggestion) in [
            ("db1", "did you mean \"db1:5432\"?"),
            ("5432", "did you mean \"127.0.0.1:5432\"?"),
            ("::1", "did you mean \"[::1]:5432\"?"),
            ("db1:", "write it like"),
            ("db1:65536", "write it like"),
            (":5432", "write it like"),
            ("::1:x", "write it like"),
            ("fe80::1%eth0:5432", "write it like"),
            ("two words:5432", "write it like"),
            ("postgres://db1:5432", "write it like"),
            ("/tmp/.s.PGSQL.5432", "write it like"),
        ] {
            let unfit = parse_address(text).unwrap_err();
            assert!(
                unfit.suggestion.as_ref().unwrap().contains(suggestion),
                "{text}: {unfit:?}"
            );
        }
    }

    #[test]
    fn a_star_listens_everywhere() {
        assert_eq!(parse_listen("*:5432").unwrap(), ["0.0.0.0:5432".parse().unwrap()]);
        assert!(
            parse_listen("localhost:5432")
                .unwrap()
                .iter()
                .all(|address| address.ip().is_loopback())
        );
    }
}
