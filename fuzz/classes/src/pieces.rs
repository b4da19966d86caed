//! Cuts a text into pieces for mutation: roughly PostgreSQL's tokens. Being wrong does no harm, since any text may come out of it.

/// The pieces of a text, without blanks; comments are pieces.
pub(crate) fn cut(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + length(&bytes[at..]);
        // Only whole characters.
        let end = (end..=bytes.len())
            .find(|&end| text.is_char_boundary(end))
            .unwrap_or(bytes.len());
        if !text[at..end].trim().is_empty() {
            pieces.push(text[at..end].to_owned());
        }
        at = end;
    }
    pieces
}

fn length(rest: &[u8]) -> usize {
    let run =
        |from: usize, belongs: fn(&u8) -> bool| from + rest[from..].iter().take_while(|byte| belongs(byte)).count();
    let until = |from: usize, end: &[u8]| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |found| from + found + end.len())
    };
    match rest {
        [b'-', b'-', ..] => until(0, b"\n"),
        [b'/', b'*', ..] => until(2, b"*/"),
        [b'e' | b'E', b'\'', ..] => escaped(rest, 2),
        [b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', ..] => until(2, b"'"),
        [b'u' | b'U', b'&', quote @ (b'\'' | b'"'), ..] => until(3, &[*quote]),
        [quote @ (b'\'' | b'"'), ..] => until(1, &[*quote]),
        [b'$', digit, ..] if digit.is_ascii_digit() => run(1, u8::is_ascii_digit),
        [b'$', ..] => {
            let tag = run(1, u8::is_ascii_alphanumeric);
            if rest.get(tag) == Some(&b'$') {
                until(tag + 1, &rest[..=tag])
            } else {
                1
            }
        }
        [byte, ..] if byte.is_ascii_digit() => run(0, |byte| byte.is_ascii_alphanumeric() || *byte == b'.'),
        [byte, ..] if is_word(byte) => run(0, |byte| is_word(byte) || byte.is_ascii_digit() || *byte == b'$'),
        [b':', b':', ..] => 2,
        [byte, ..] if b"~!@#^&|`?+-*/%<>=".contains(byte) => run(1, |byte| b"~!@#^&|`?+-*/%<>=".contains(byte)),
        _ => 1,
    }
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphabetic() || *byte == b'_' || *byte >= 0x80
}

fn escaped(rest: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A piece that is a word, quoted or not.
pub(crate) fn is_name(piece: &str) -> bool {
    piece.starts_with(|first: char| first.is_alphabetic() || first == '_' || first == '"')
        && !matches!(piece.as_bytes().get(1), Some(b'\'' | b'&'))
}

/// A piece that is a value: a string, a number, a parameter.
pub(crate) fn is_value(piece: &str) -> bool {
    piece.starts_with(|first: char| first.is_ascii_digit() || first == '\'')
        || (piece.starts_with('$') && piece.len() > 1)
        || piece.as_bytes().get(1) == Some(&b'\'')
}

/// The index behind the parenthesis that closes the one at `open`.
pub(crate) fn behind_parenthesis(pieces: &[String], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (index, piece) in pieces.iter().enumerate().skip(open) {
        match piece.as_str() {
            "(" => depth += 1,
            ")" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}
