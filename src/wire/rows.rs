//! Rows: those of the proxy's own answers, in text and in binary, and those that it reads itself. What is relayed never comes here.
//! Manual: 55.7 "Message Formats", `RowDescription` and `DataRow`.

use std::borrow::Cow;

use bytes::{Buf, Bytes};

use super::frontend::{Format, c_string};

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `boolean`
    Bool,
    /// `bigint`
    Int8,
    /// `double precision`
    Float8,
    /// `text`
    Text,
}

impl Type {
    /// Its OID in `pg_type`, and its size; -1 is any.
    fn oid_and_size(self) -> (u32, i16) {
        match self {
            Type::Bool => (16, 1),
            Type::Int8 => (20, 8),
            Type::Float8 => (701, 8),
            Type::Text => (25, -1),
        }
    }
}

/// A column of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What its values are.
    pub kind: Type,
}

impl<'a> Column<'a> {
    /// A column of this type.
    pub const fn new(name: &'a str, kind: Type) -> Column<'a> {
        Column { name, kind }
    }
}

/// A value, of its column's type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// NULL, which every type has.
    Null,
    /// Of [`Type::Bool`].
    Bool(bool),
    /// Of [`Type::Int8`].
    Int8(i64),
    /// Of [`Type::Float8`].
    Float8(f64),
    /// Of [`Type::Text`].
    Text(Cow<'a, str>),
}

impl<'a> Value<'a> {
    /// A text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Value<'a> {
        Value::Text(text.into())
    }

    /// A count; one beyond `bigint` is the greatest.
    pub fn count(count: impl TryInto<i64>) -> Value<'a> {
        Value::Int8(count.try_into().unwrap_or(i64::MAX))
    }

    /// NULL where there is none.
    pub fn or_null<T>(value: Option<T>, of: impl FnOnce(T) -> Value<'a>) -> Value<'a> {
        value.map_or(Value::Null, of)
    }

    fn put(&self, out: &mut Vec<u8>, format: Format) {
        match (self, format) {
            (Value::Null, _) => out.extend_from_slice(&(-1_i32).to_be_bytes()),
            (Value::Text(text), _) => put_bytes(out, text.as_bytes()),
            (Value::Bool(flag), Format::Text) => put_bytes(out, if *flag { b"t" } else { b"f" }),
            (Value::Bool(flag), Format::Binary) => put_bytes(out, &[u8::from(*flag)]),
            (Value::Int8(number), Format::Text) => put_bytes(out, number.to_string().as_bytes()),
            (Value::Int8(number), Format::Binary) => put_bytes(out, &number.to_be_bytes()),
            (Value::Float8(number), Format::Text) => put_bytes(out, float_text(*number).as_bytes()),
            (Value::Float8(number), Format::Binary) => put_bytes(out, &number.to_be_bytes()),
        }
    }
}

/// As `float8out` writes what isn't finite, and what is as its shortest digits.
fn float_text(number: f64) -> String {
    match number {
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => number.to_string(),
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The format of column `index`, as the formats in a Bind say: none is text, one is for all.
fn format_of(formats: &[Format], index: usize) -> Format {
    match formats {
        [all] => *all,
        _ => formats.get(index).copied().unwrap_or(Format::Text),
    }
}

/// Appends a `RowDescription`.
pub fn put_columns(out: &mut Vec<u8>, columns: &[Column<'_>], formats: &[Format]) {
    message(out, b'T', |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (index, column) in columns.iter().enumerate() {
            let (oid, size) = column.kind.oid_and_size();
            out.extend_from_slice(column.name.as_bytes());
            // The end of the name, and no table's column.
            out.extend_from_slice(&[0; 7]);
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&size.to_be_bytes());
            // No type modifier.
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&[0, u8::from(format_of(formats, index) == Format::Binary)]);
        }
    });
}

/// Appends a `DataRow`.
pub fn put_row(out: &mut Vec<u8>, values: &[Value<'_>], formats: &[Format]) {
    message(out, b'D', |out| {
        out.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for (index, value) in values.iter().enumerate() {
            value.put(out, format_of(formats, index));
        }
    });
}

fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = (out.len() - length_at) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// The names in a `RowDescription` body; `None` if it is malformed.
pub fn column_names(body: &[u8]) -> Option<Vec<String>> {
    /// Table, column, type, size, modifier, format.
    const BEHIND_NAME: usize = 18;
    let (count, mut rest) = body.split_first_chunk()?;
    let mut names = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (name, behind) = c_string(rest)?;
        names.push(String::from_utf8_lossy(name).into_owned());
        rest = behind.get(BEHIND_NAME..)?;
    }
    Some(names)
}

/// The values of a `DataRow` body, NULL as `None`; `None` if it is malformed.
pub fn row_values(mut body: Bytes) -> Option<Vec<Option<Bytes>>> {
    let count = body.try_get_u16().ok()?;
    let mut row = Vec::with_capacity(usize::from(count).min(64));
    for _ in 0..count {
        let length = body.try_get_i32().ok()?;
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) if length <= body.len() => Some(body.split_to(length)),
            Ok(_) => return None,
        });
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use pgwire::messages::data::{DataRow, RowDescription};
    use pgwire::messages::{DecodeContext, Message};

    use super::*;
    use crate::wire::frame::HEADER;

    const COLUMNS: [Column<'_>; 4] = [
        Column::new("b", Type::Bool),
        Column::new("i", Type::Int8),
        Column::new("f", Type::Float8),
        Column::new("t", Type::Text),
    ];

    fn values() -> [Value<'static>; 4] {
        [
            Value::Bool(true),
            Value::Int8(-7),
            Value::Float8(0.25),
            Value::text("é"),
        ]
    }

    #[test]
    fn columns_are_what_another_implementation_reads() {
        let mut out = Vec::new();
        put_columns(&mut out, &COLUMNS, &[Format::Binary]);
        assert_eq!(column_names(&out[HEADER..]).expect("whole"), ["b", "i", "f", "t"]);
        assert_eq!(column_names(&out[HEADER..out.len() - 1]), None);
        let read = RowDescription::decode(&mut BytesMut::from(&out[..]), &DecodeContext::default());
        let read = read.expect("well-formed").expect("whole");
        let fields: Vec<_> = read
            .fields
            .iter()
            .map(|field| (&*field.name, field.type_id, field.type_size, field.format_code))
            .collect();
        assert_eq!(
            fields,
            [("b", 16, 1, 1), ("i", 20, 8, 1), ("f", 701, 8, 1), ("t", 25, -1, 1)]
        );
    }

    #[test]
    fn rows_are_what_another_implementation_reads() {
        for (formats, expected) in [
            (&[][..], [&b"t"[..], b"-7", b"0.25", "é".as_bytes()]),
            (
                &[Format::Binary],
                [
                    b"\x01",
                    b"\xff\xff\xff\xff\xff\xff\xff\xf9",
                    b"\x3f\xd0\0\0\0\0\0\0",
                    "é".as_bytes(),
                ],
            ),
            (
                &[Format::Text, Format::Text, Format::Text, Format::Binary],
                [b"t", b"-7", b"0.25", "é".as_bytes()],
            ),
        ] {
            let mut out = Vec::new();
            put_row(&mut out, &values(), formats);
            let read = row_values(Bytes::copy_from_slice(&out[HEADER..])).expect("well-formed");
            let read: Vec<&[u8]> = read.iter().map(|value| value.as_deref().expect("no NULL")).collect();
            assert_eq!(read, expected);
            let other = DataRow::decode(&mut BytesMut::from(&out[..]), &DecodeContext::default());
            assert_eq!(other.expect("well-formed").expect("whole").field_count, 4);
        }
    }

    #[test]
    fn null_and_what_is_not_finite_are_said_as_a_server_says_them() {
        let mut out = Vec::new();
        put_row(
            &mut out,
            &[
                Value::Null,
                Value::Float8(f64::INFINITY),
                Value::Float8(f64::NAN),
                Value::count(u64::MAX),
                Value::or_null(Some(7_u32), Value::count),
                Value::or_null(None::<u32>, Value::count),
            ],
            &[],
        );
        let read = row_values(Bytes::copy_from_slice(&out[HEADER..])).expect("well-formed");
        let texts: Vec<_> = read
            .iter()
            .map(|value| value.as_deref().map(String::from_utf8_lossy))
            .collect();
        let max = i64::MAX.to_string();
        let expected = [None, Some("Infinity"), Some("NaN"), Some(&*max), Some("7"), None];
        assert_eq!(texts, expected.map(|text| text.map(Cow::Borrowed)));
        assert_eq!(row_values(Bytes::from_static(b"\0\x01\0\0\0\x02x")), None);
    }
}
