//! PostgreSQL's lexical rules over raw bytes (manual, 4.1; `scan.l`).
//!
//! Nested comments, dollar quotes, `E''` and `U&''` strings, strings continued on the next line, operators of any length. The
//! lexer works on bytes, so that the client's encoding doesn't matter as long as it is a superset of ASCII whose further bytes
//! have the high bit set; texts that aren't UTF-8 never become reads. It never fails: what doesn't end is one
//! [`Kind::Unterminated`] token, and what no rule knows is [`Kind::Other`].

use super::hint::Hint;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A keyword or an unquoted identifier.
    Word,
    /// A `"quoted"` identifier.
    Quoted,
    /// A `U&"…"` identifier, whose escapes aren't decoded here.
    UnicodeQuoted,
    /// Any string or bit string constant.
    String,
    /// A plain string that holds a backslash while `standard_conforming_strings` is off.
    BackslashString,
    /// A numeric constant.
    Number,
    /// `$1`.
    Param,
    /// An operator; also `*`, `=`, `=>`.
    Operator,
    /// One of `( ) [ ] , ; . :`.
    Punct(u8),
    /// `::`
    Cast,
    /// `:=`
    ColonEquals,
    /// `/* pgsluice: … */`; other comments are skipped.
    Hint(Hint),
    /// A quote or comment that doesn't end; covers the rest of the text.
    Unterminated,
    /// A byte that starts no token, such as a backslash.
    Other,
}

/// A token and the bytes it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: Kind,
    /// Offset of its first byte.
    pub(crate) start: usize,
    /// Offset behind its last byte.
    pub(crate) end: usize,
}

impl Token {
    /// The token as it was written.
    pub(crate) fn bytes<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.start..self.end).unwrap_or_default()
    }
}

/// How plain strings read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlainStrings {
    /// `standard_conforming_strings = on`: a backslash is a letter.
    Conforming,
    /// `off`: a backslash escapes, as in `E''`.
    Escaping,
}

/// An iterator over the tokens of a text.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    plain_strings: PlainStrings,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of `text`.
    pub(crate) fn new(text: &'a [u8], plain_strings: PlainStrings) -> Self {
        Lexer {
            text,
            at: 0,
            plain_strings,
        }
    }

    fn peek(&self, offset: usize) -> u8 {
        // NUL can't occur in a query's text: the protocol ends it there. So 0 is "nothing".
        self.text.get(self.at + offset).copied().unwrap_or(0)
    }

    fn token(&self, kind: Kind, start: usize) -> Token {
        Token {
            kind,
            start,
            end: self.at,
        }
    }

    fn unterminated(&mut self, start: usize) -> Token {
        self.at = self.text.len();
        self.token(Kind::Unterminated, start)
    }

    fn skip_while(&mut self, belongs: impl Fn(u8) -> bool) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|&byte| !belongs(byte)).unwrap_or(rest.len());
    }

    fn line_comment(&mut self) {
        self.skip_while(|byte| byte != b'\n' && byte != b'\r');
    }

    /// At `/*`; false if it doesn't end.
    fn block_comment(&mut self) -> bool {
        let mut depth = 0usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return true;
                    }
                }
                _ if self.at >= self.text.len() => return false,
                _ => self.at += 1,
            }
        }
    }

    /// Behind an opening quote: to behind the closing one, doubled ones included. False if there is none.
    fn quoted(&mut self, quote: u8, escapes: bool, saw_backslash: &mut bool) -> bool {
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(next) = rest.iter().position(|&byte| byte == quote || byte == b'\\') else {
                return false;
            };
            self.at += next + 1;
            if rest[next] == b'\\' {
                *saw_backslash = true;
                self.at += usize::from(escapes);
            } else if self.peek(0) == quote {
                self.at += 1;
            } else {
                return true;
            }
        }
    }

    /// A string whose opening quote is at the cursor, with its continuations on following lines.
    fn string(&mut self, start: usize, escapes: bool, plain: bool) -> Token {
        let mut saw_backslash = false;
        loop {
            self.at += 1;
            if !self.quoted(b'\'', escapes, &mut saw_backslash) {
                return self.unterminated(start);
            }
            let end = self.at;
            if !self.skip_to_continuation() {
                self.at = end;
                let backslash = plain && escapes && saw_backslash;
                return self.token(if backslash { Kind::BackslashString } else { Kind::String }, start);
            }
        }
    }

    /// Blanks and line comments with a newline among them, and then a quote: the string goes on there.
    fn skip_to_continuation(&mut self) -> bool {
        let mut newline = false;
        loop {
            match self.peek(0) {
                b'\n' | b'\r' => newline = true,
                b' ' | b'\t' | b'\x0c' => {}
                b'-' if self.peek(1) == b'-' => {
                    self.line_comment();
                    continue;
                }
                b'\'' => return newline,
                _ => return false,
            }
            self.at += 1;
        }
    }

    /// At a `$` that starts no parameter.
    fn dollar_quoted(&mut self, start: usize) -> Token {
        let rest = self.text.get(self.at + 1..).unwrap_or_default();
        let tag_len = rest
            .iter()
            .position(|&byte| !is_word_part(byte) || byte == b'$')
            .unwrap_or(rest.len());
        let starts_well = rest.first().is_some_and(|byte| !byte.is_ascii_digit());
        if rest.get(tag_len) != Some(&b'$') || (tag_len > 0 && !starts_well) {
            self.at += 1;
            return self.token(Kind::Other, start);
        }
        let delimiter = &self.text[self.at..self.at + tag_len + 2];
        self.at += delimiter.len();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(next) = rest.iter().position(|&byte| byte == b'$') else {
                return self.unterminated(start);
            };
            self.at += next;
            if rest[next..].starts_with(delimiter) {
                self.at += delimiter.len();
                return self.token(Kind::String, start);
            }
            self.at += 1;
        }
    }

    fn quoted_word(&mut self, start: usize, kind: Kind) -> Token {
        self.at += 1;
        let mut ignored = false;
        // `quoted` stops at backslashes too, which mean nothing here.
        if self.quoted(b'"', false, &mut ignored) {
            self.token(kind, start)
        } else {
            self.unterminated(start)
        }
    }

    fn word(&mut self, start: usize) -> Token {
        match (self.peek(0) | 0x20, self.peek(1)) {
            (b'e', b'\'') => {
                self.at += 1;
                return self.string(start, true, false);
            }
            (b'b' | b'x' | b'n', b'\'') => {
                self.at += 1;
                let national = self.text[start] | 0x20 == b'n';
                let escapes = national && self.plain_strings == PlainStrings::Escaping;
                return self.string(start, escapes, national);
            }
            (b'u', b'&') if self.peek(2) == b'\'' => {
                self.at += 2;
                return self.string(start, false, false);
            }
            (b'u', b'&') if self.peek(2) == b'"' => {
                self.at += 2;
                return self.quoted_word(start, Kind::UnicodeQuoted);
            }
            _ => {}
        }
        self.skip_while(is_word_part);
        self.token(Kind::Word, start)
    }

    fn number(&mut self, start: usize) -> Token {
        if self.peek(0) == b'0' && matches!(self.peek(1) | 0x20, b'x') && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            self.skip_while(|byte| byte.is_ascii_hexdigit());
            return self.token(Kind::Number, start);
        }
        self.digits();
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.digits();
        }
        if self.peek(0) | 0x20 == b'e' {
            let signed = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + signed).is_ascii_digit() {
                self.at += 1 + signed;
                self.digits();
            }
        }
        self.token(Kind::Number, start)
    }

    /// Digits, with single underscores between them (PostgreSQL 16).
    fn digits(&mut self) {
        self.skip_while(|byte| byte.is_ascii_digit());
        while self.peek(0) == b'_' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
    }

    fn operator(&mut self, start: usize) -> Token {
        self.skip_while(is_operator_char);
        let mut run = &self.text[start..self.at];
        if let Some(comment) = run.windows(2).position(|pair| pair == b"--" || pair == b"/*") {
            run = &run[..comment];
        }
        // "A multiple-character operator name cannot end in + or -, unless the name also contains one of these" (manual, 4.1.3).
        if !run.iter().any(|byte| b"~!@#^&|`?%".contains(byte)) {
            while run.len() > 1 && matches!(run.last(), Some(b'+' | b'-')) {
                run = &run[..run.len() - 1];
            }
        }
        self.at = start + run.len();
        self.token(Kind::Operator, start)
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        loop {
            let byte = *self.text.get(self.at)?;
            let start = self.at;
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' => self.at += 1,
                b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => return Some(self.word(start)),
                b'-' if self.peek(1) == b'-' => {
                    self.line_comment();
                    if let Some(hint) = Hint::in_comment(&self.text[start..self.at]) {
                        return Some(self.token(Kind::Hint(hint), start));
                    }
                }
                b'/' if self.peek(1) == b'*' => {
                    if !self.block_comment() {
                        return Some(self.unterminated(start));
                    }
                    if let Some(hint) = Hint::in_comment(&self.text[start..self.at]) {
                        return Some(self.token(Kind::Hint(hint), start));
                    }
                }
                b'\'' => {
                    let escapes = self.plain_strings == PlainStrings::Escaping;
                    return Some(self.string(start, escapes, true));
                }
                b'"' => return Some(self.quoted_word(start, Kind::Quoted)),
                b'0'..=b'9' => return Some(self.number(start)),
                b'.' if self.peek(1) == b'.' => {
                    // PL/pgSQL's range: a syntax error everywhere else.
                    self.at += 2;
                    return Some(self.token(Kind::Other, start));
                }
                b'.' if self.peek(1).is_ascii_digit() => return Some(self.number(start)),
                b'$' if self.peek(1).is_ascii_digit() => {
                    self.at += 1;
                    self.skip_while(|byte| byte.is_ascii_digit());
                    return Some(self.token(Kind::Param, start));
                }
                b'$' => return Some(self.dollar_quoted(start)),
                b':' if self.peek(1) == b':' => {
                    self.at += 2;
                    return Some(self.token(Kind::Cast, start));
                }
                b':' if self.peek(1) == b'=' => {
                    self.at += 2;
                    return Some(self.token(Kind::ColonEquals, start));
                }
                b'(' | b')' | b'[' | b']' | b',' | b';' | b'.' | b':' => {
                    self.at += 1;
                    return Some(self.token(Kind::Punct(byte), start));
                }
                _ if is_operator_char(byte) => return Some(self.operator(start)),
                _ => {
                    self.at += 1;
                    return Some(self.token(Kind::Other, start));
                }
            }
        }
    }
}

fn is_word_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn is_operator_char(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str) -> Vec<&str> {
        Lexer::new(text.as_bytes(), PlainStrings::Conforming)
            .map(|token| &text[token.start..token.end])
            .collect()
    }

    #[test]
    fn tokens_are_postgresqls() {
        let table: &[(&str, &[&str])] = &[
            ("select 1", &["select", "1"]),
            ("a/* x /* y */ z */b", &["a", "b"]),
            ("a--x\nb", &["a", "b"]),
            ("$$ ; $$ $a$ $$ ; $a$;", &["$$ ; $$", "$a$ $$ ; $a$", ";"]),
            ("a$b$c", &["a$b$c"]),
            ("$1+$2", &["$1", "+", "$2"]),
            (
                "'it''s' E'it\\'s' U&'\\0041' x'ff'",
                &["'it''s'", "E'it\\'s'", "U&'\\0041'", "x'ff'"],
            ),
            ("'a'\n  'b' 'c'", &["'a'\n  'b'", "'c'"]),
            ("'a' -- x\n 'b'", &["'a' -- x\n 'b'"]),
            ("\"a\"\"b\".c", &["\"a\"\"b\"", ".", "c"]),
            ("U&\"x\" u&y", &["U&\"x\"", "u", "&", "y"]),
            ("1.5e-3 .5 1..2 1e", &["1.5e-3", ".5", "1", "..", "2", "1", "e"]),
            ("1into", &["1", "into"]),
            ("a=-1", &["a", "=", "-", "1"]),
            ("a@-1", &["a", "@-", "1"]),
            ("a+--x", &["a", "+"]),
            ("a */* c */ b", &["a", "*", "b"]),
            ("x::int[] := =>", &["x", "::", "int", "[", "]", ":=", "=>"]),
            ("a &>nextval", &["a", "&>", "nextval"]),
            ("'open", &["'open"]),
            ("/* open", &["/* open"]),
            ("$x$ open", &["$x$ open"]),
        ];
        for (text, tokens) in table {
            assert_eq!(&lex(text), tokens, "{text}");
        }
    }

    #[test]
    fn backslashes_escape_when_strings_do_not_conform() {
        let text = br"'a\'; b' c";
        let tokens: Vec<Token> = Lexer::new(text, PlainStrings::Escaping).collect();
        assert_eq!(
            tokens[0],
            Token {
                kind: Kind::BackslashString,
                start: 0,
                end: 8
            }
        );
        assert_eq!(tokens.len(), 2);
    }
}
