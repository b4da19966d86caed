//! The few things that are read inside of a client's messages: the names of statements and portals, and SQL texts.
//! Bodies are what follows the header. Manual: 55.7 "Message Formats".

/// A C string at the front of `bytes`, and what follows its terminator.
pub fn c_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// `Parse`: a statement's name, its text, and the parameter types as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Empty for the unnamed statement.
    pub name: &'a [u8],
    /// Without its terminator.
    pub sql: &'a [u8],
    /// The count and the type OIDs, as sent.
    pub types: &'a [u8],
}

/// Reads a `Parse` body; `None` if it is malformed.
pub fn parse(body: &[u8]) -> Option<Parse<'_>> {
    let (name, rest) = c_string(body)?;
    let (sql, types) = c_string(rest)?;
    let count = u16::from_be_bytes([*types.first()?, *types.get(1)?]) as usize;
    (types.len() == 2 + 4 * count).then_some(Parse { name, sql, types })
}

/// `Bind`: the names at its front, and the rest as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Empty for the unnamed portal.
    pub portal: &'a [u8],
    /// Empty for the unnamed statement.
    pub statement: &'a [u8],
    /// Formats and values.
    pub rest: &'a [u8],
}

/// Reads the front of a `Bind` body, which need not be whole; `None` if it is malformed.
pub fn bind(body: &[u8]) -> Option<Bind<'_>> {
    let (portal, rest) = c_string(body)?;
    let (statement, rest) = c_string(rest)?;
    Some(Bind {
        portal,
        statement,
        rest,
    })
}

/// How a value is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As SQL would have it between quotes.
    Text,
    /// As the type's send function has it.
    Binary,
}

/// The format of value `index` of a whole `Bind`, and where it stands in its `rest`; `None` if there is none, or it is NULL.
pub fn value(rest: &[u8], index: usize) -> Option<(Format, std::ops::Range<usize>)> {
    let int16 = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?) as usize);
    let formats = int16(0)?;
    let format = match formats {
        0 => 0,
        1 => int16(2)?,
        _ => int16(2 + 2 * index)?,
    };
    let mut at = 2 + 2 * formats;
    let count = int16(at)?;
    at += 2;
    for _ in 0..index {
        let length = i32::from_be_bytes(*rest.get(at..)?.first_chunk()?);
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    let length = usize::try_from(i32::from_be_bytes(*rest.get(at..)?.first_chunk()?)).ok()?;
    let value = at + 4..at + 4 + length;
    let format = if format == 0 { Format::Text } else { Format::Binary };
    (index < count && value.end <= rest.len()).then_some((format, value))
}

/// How many values a whole `Bind` has, and the formats that it asks for, from its `rest`; `None` if it is malformed.
pub fn bound(rest: &[u8]) -> Option<(usize, Vec<Format>)> {
    let int16 = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    let mut at = 2 + 2 * usize::from(int16(0)?);
    let count = int16(at)?;
    at += 2;
    for _ in 0..count {
        let length = i32::from_be_bytes(*rest.get(at..)?.first_chunk()?);
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    let formats = usize::from(int16(at)?);
    let whole = rest.len() == at + 2 + 2 * formats;
    let formats = (0..formats).map(|index| match int16(at + 2 + 2 * index)? {
        0 => Some(Format::Text),
        1 => Some(Format::Binary),
        _ => None,
    });
    Some((count.into(), formats.collect::<Option<_>>()?)).filter(|_| whole)
}

/// The portal of an `Execute`, and how many rows it takes at most; `None` if it is malformed.
pub fn execute(body: &[u8]) -> Option<(&[u8], Option<usize>)> {
    let (portal, rest) = c_string(body)?;
    let most = i32::from_be_bytes(rest.try_into().ok()?);
    Some((portal, usize::try_from(most).ok().filter(|most| *most > 0)))
}

/// What a `Describe` or a `Close` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement's name.
    Statement(&'a [u8]),
    /// A portal's name.
    Portal(&'a [u8]),
}

/// Reads a `Describe` or `Close` body; `None` if it is malformed.
pub fn named(body: &[u8]) -> Option<Named<'_>> {
    let (&kind, rest) = body.split_first()?;
    let (name, rest) = c_string(rest)?;
    match (kind, rest) {
        (b'S', []) => Some(Named::Statement(name)),
        (b'P', []) => Some(Named::Portal(name)),
        _ => None,
    }
}

/// The text of a `Query` body; `None` if it is not one C string.
pub fn query(body: &[u8]) -> Option<&[u8]> {
    match c_string(body)? {
        (sql, []) => Some(sql),
        _ => None,
    }
}

fn message(out: &mut Vec<u8>, tag: u8, body_len: usize) {
    out.push(tag);
    out.extend_from_slice(&(body_len as u32 + 4).to_be_bytes());
}

/// Appends a `Query`.
pub fn put_query(out: &mut Vec<u8>, sql: &[u8]) {
    message(out, b'Q', sql.len() + 1);
    out.extend_from_slice(sql);
    out.push(0);
}

/// Appends a `Parse`; `types` are the count and the OIDs as they were sent.
pub fn put_parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], types: &[u8]) {
    message(out, b'P', name.len() + sql.len() + types.len() + 2);
    out.extend_from_slice(name);
    out.push(0);
    out.extend_from_slice(sql);
    out.push(0);
    out.extend_from_slice(types);
}

/// Appends the head of a `Bind` whose formats and values are `rest_len` bytes long; the caller sends those next.
pub fn put_bind_head(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], rest_len: usize) {
    message(out, b'B', portal.len() + statement.len() + 2 + rest_len);
    out.extend_from_slice(portal);
    out.push(0);
    out.extend_from_slice(statement);
    out.push(0);
}

/// Appends a `Describe` (`D`) or a `Close` (`C`) of a prepared statement.
pub fn put_statement(out: &mut Vec<u8>, tag: u8, name: &[u8]) {
    message(out, tag, name.len() + 2);
    out.push(b'S');
    out.extend_from_slice(name);
    out.push(0);
}

/// A `Sync`.
pub const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];
/// A Flush.
pub const FLUSH: [u8; 5] = [b'H', 0, 0, 0, 4];
/// A `Terminate`.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::HEADER;

    #[test]
    fn what_is_put_is_read_again() {
        let mut out = Vec::new();
        put_parse(&mut out, b"s1", b"select $1", &[0, 1, 0, 0, 0, 23]);
        assert_eq!(
            parse(&out[HEADER..]),
            Some(Parse {
                name: b"s1",
                sql: b"select $1",
                types: &[0, 1, 0, 0, 0, 23]
            })
        );
        let mut out = Vec::new();
        put_bind_head(&mut out, b"p", b"s1", 2);
        out.extend_from_slice(b"xy");
        assert_eq!(
            bind(&out[HEADER..]),
            Some(Bind {
                portal: b"p",
                statement: b"s1",
                rest: b"xy"
            })
        );
        let mut out = Vec::new();
        put_statement(&mut out, b'D', b"s1");
        assert_eq!(named(&out[HEADER..]), Some(Named::Statement(b"s1")));
        let mut out = Vec::new();
        put_query(&mut out, b"select 1");
        assert_eq!(query(&out[HEADER..]), Some(&b"select 1"[..]));
    }

    #[test]
    fn what_a_bind_and_an_execute_ask_for_is_read() {
        let rest = b"\0\x01\0\0\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x02\0\0\0\x01";
        assert_eq!(bound(rest), Some((2, vec![Format::Text, Format::Binary])));
        assert_eq!(bound(b"\0\0\0\0\0\0"), Some((0, vec![])));
        assert_eq!(bound(&rest[..rest.len() - 1]), None);
        assert_eq!(bound(b"\0\0\0\0\0\x01\0\x02"), None);
        assert_eq!(bound(b"\0\0\0\x01\x7f\xff\xff\xff"), None);
        assert_eq!(execute(b"p\0\0\0\0\0"), Some((&b"p"[..], None)));
        assert_eq!(execute(b"\0\0\0\0\x05"), Some((&b""[..], Some(5))));
        assert_eq!(execute(b"p\0\0\0\0"), None);
    }

    #[test]
    fn malformed_bodies_are_none() {
        assert_eq!(parse(b"s\0select"), None);
        assert_eq!(parse(b"s\0select\0\0\x01"), None);
        assert_eq!(named(b"Xs\0"), None);
        assert_eq!(named(b"Ss\0junk"), None);
        assert_eq!(query(b"select 1"), None);
        assert_eq!(query(b"select 1\0; drop\0"), None);
        assert_eq!(bind(b"p\0"), None);
    }
}
