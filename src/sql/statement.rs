//! One statement of a text: its tokens, and ways to look at them.
//!
//! A text is split at semicolons outside of parentheses, as the server's grammar does it: CREATE RULE may hold some inside, and
//! anything else that does is a syntax error of the whole text. The body of a function in standard SQL (`BEGIN ATOMIC … END`)
//! holds some too.

use std::borrow::Cow;

use super::MAX_TOKENS;
use super::hint::Hint;
use super::lexer::{Kind, Lexer, PlainStrings, Token};
use super::names::{BuiltIn, Catalog, FunctionRoute, Name};
use super::prepared_view::is_view;
use super::signals;
use crate::config::Consistency;

/// A statement's tokens, without comments and the semicolon. Tokens beyond [`MAX_TOKENS`] are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Statement<'a> {
    /// The whole text that the tokens point into.
    pub(crate) text: &'a [u8],
    /// Its tokens, the first [`MAX_TOKENS`] of them.
    pub(crate) tokens: Vec<Token>,
    /// Built-in functions with an effect on the session, wherever the text calls them, in order, also beyond `tokens`.
    pub(crate) calls: Vec<FunctionRoute>,
    /// It calls a function that signals a server process, also beyond `tokens`.
    pub(crate) signals: bool,
    /// It calls `pg_backend_pid()`, also beyond `tokens`.
    pub(crate) tells_process: bool,
    /// It names `pg_prepared_statements`, also beyond `tokens`.
    pub(crate) reads_prepared: bool,
    /// There were more tokens.
    pub(crate) truncated: bool,
    /// A quote or comment in it doesn't end.
    pub(crate) unterminated: bool,
    /// A plain string in it holds a backslash while that escapes.
    pub(crate) backslash_string: bool,
}

impl<'a> Statement<'a> {
    fn new(text: &'a [u8]) -> Self {
        Statement {
            text,
            tokens: Vec::new(),
            calls: Vec::new(),
            signals: false,
            tells_process: false,
            reads_prepared: false,
            truncated: false,
            unterminated: false,
            backslash_string: false,
        }
    }

    /// The kind of token `index`.
    pub(crate) fn kind(&self, index: usize) -> Option<Kind> {
        self.tokens.get(index).map(|token| token.kind)
    }

    /// Token `index` as it was written; nothing behind the end.
    pub(crate) fn bytes(&self, index: usize) -> &'a [u8] {
        self.tokens.get(index).map_or(b"", |token| token.bytes(self.text))
    }

    /// Whether token `index` is this unquoted word, in any letter case.
    pub(crate) fn is_word(&self, index: usize, word: &str) -> bool {
        self.kind(index) == Some(Kind::Word) && self.bytes(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Whether token `index` is one of these unquoted words.
    pub(crate) fn is_any_word(&self, index: usize, words: &[&str]) -> bool {
        self.kind(index) == Some(Kind::Word)
            && words
                .iter()
                .any(|word| self.bytes(index).eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Whether token `index` is this punctuation.
    pub(crate) fn is_punct(&self, index: usize, punct: u8) -> bool {
        self.kind(index) == Some(Kind::Punct(punct))
    }

    /// Whether token `index` is this operator.
    pub(crate) fn is_operator(&self, index: usize, operator: &str) -> bool {
        self.kind(index) == Some(Kind::Operator) && self.bytes(index) == operator.as_bytes()
    }

    /// Whether token `index` is a word or a quoted identifier.
    pub(crate) fn is_name(&self, index: usize) -> bool {
        matches!(self.kind(index), Some(Kind::Word | Kind::Quoted | Kind::UnicodeQuoted))
    }

    /// Token `index` as an identifier, folded as PostgreSQL does; empty if it is none.
    pub(crate) fn identifier(&self, index: usize) -> Cow<'a, str> {
        match self.kind(index) {
            Some(kind @ (Kind::Word | Kind::Quoted | Kind::UnicodeQuoted)) => identifier(kind, self.bytes(index)),
            _ => Cow::Borrowed(""),
        }
    }

    /// The value of token `index` if it is a string in plain quotes or dollar quotes; not where escapes or several parts make it up.
    pub(crate) fn string(&self, index: usize) -> Option<String> {
        if self.kind(index) != Some(Kind::String) {
            return None;
        }
        let written = std::str::from_utf8(self.bytes(index)).ok()?;
        if let Some(rest) = written.strip_prefix('$') {
            let delimiter = &written[..rest.find('$')? + 2];
            let inner = written.strip_prefix(delimiter)?.strip_suffix(delimiter)?;
            return Some(inner.to_owned());
        }
        let inner = written.strip_prefix('\'')?.strip_suffix('\'')?;
        let pieces: Vec<&str> = inner.split("''").collect();
        (!pieces.iter().any(|piece| piece.contains('\''))).then(|| pieces.join("'"))
    }

    /// What was written from token `from` up to, not including, token `to`.
    pub(crate) fn written(&self, from: usize, to: usize) -> Cow<'a, str> {
        let start = self.tokens.get(from).map_or(0, |token| token.start);
        let end = to
            .checked_sub(1)
            .and_then(|last| self.tokens.get(last))
            .map_or(start, |token| token.end);
        String::from_utf8_lossy(self.text.get(start..end).unwrap_or_default())
    }

    /// How many tokens there are to look at.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The same statement from token `from` on.
    pub(crate) fn tail(&self, from: usize) -> Statement<'a> {
        self.slice(from, self.len())
    }

    /// The same statement's tokens from `from` up to, not including, `to`. Its calls stay those of the whole.
    pub(crate) fn slice(&self, from: usize, to: usize) -> Statement<'a> {
        let tokens = self.tokens.get(from..to).unwrap_or_default().to_vec();
        Statement {
            tokens,
            calls: self.calls.clone(),
            ..*self
        }
    }

    /// The index behind the parenthesis that closes the one at `open`; the end if none does.
    pub(crate) fn behind_parenthesis(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for index in open..self.len() {
            if self.is_punct(index, b'(') {
                depth += 1;
            } else if self.is_punct(index, b')') {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index + 1;
                }
            }
        }
        self.len()
    }

    /// The parenthesis that token `index` stands in; `None` if it stands in none.
    pub(crate) fn enclosing_parenthesis(&self, index: usize) -> Option<usize> {
        let mut depth = 0usize;
        for at in (0..index).rev() {
            if self.is_punct(at, b')') {
                depth += 1;
            } else if self.is_punct(at, b'(') {
                match depth.checked_sub(1) {
                    Some(left) => depth = left,
                    None => return Some(at),
                }
            }
        }
        None
    }

    /// Whether the name at `index` is a field of a value, as in `(x).f`, `$1.f` and `a[1].f.g`, rather than of what has a name.
    pub(crate) fn is_of_value(&self, index: usize) -> bool {
        let mut at = index;
        while at >= 2 && self.is_punct(at - 1, b'.') {
            at -= 2;
            if !self.is_name(at) {
                return matches!(self.kind(at), Some(Kind::Param | Kind::Punct(b')' | b']')));
            }
        }
        false
    }

    /// The parenthesis that the one at `close` closes; `None` if that is no closing one.
    pub(crate) fn parenthesis_before(&self, close: usize) -> Option<usize> {
        if !self.is_punct(close, b')') {
            return None;
        }
        let mut depth = 0usize;
        for index in (0..=close).rev() {
            if self.is_punct(index, b')') {
                depth += 1;
            } else if self.is_punct(index, b'(') {
                depth -= 1;
                if depth == 0 {
                    return Some(index);
                }
            }
        }
        None
    }
}

/// Folds an identifier: letters of unquoted ones to lower case, quotes off from quoted ones. Escapes of `U&""` are those without UESCAPE.
pub(crate) fn identifier(kind: Kind, bytes: &[u8]) -> Cow<'_, str> {
    match kind {
        Kind::Quoted | Kind::UnicodeQuoted => {
            let inner = bytes
                .splitn(2, |&byte| byte == b'"')
                .nth(1)
                .and_then(|rest| rest.strip_suffix(b"\""))
                .unwrap_or(bytes);
            let inner = String::from_utf8_lossy(inner);
            let inner = if inner.contains("\"\"") {
                Cow::Owned(inner.replace("\"\"", "\""))
            } else {
                inner
            };
            if kind == Kind::UnicodeQuoted && inner.contains('\\') {
                Cow::Owned(unescaped(&inner))
            } else {
                inner
            }
        }
        _ if bytes.iter().any(u8::is_ascii_uppercase) => {
            Cow::Owned(String::from_utf8_lossy(bytes).to_ascii_lowercase())
        }
        _ => String::from_utf8_lossy(bytes),
    }
}

/// `\XXXX`, `\+XXXXXX` and `\\` for what they stand for; what is no escape stays.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        out.push_str(before);
        let digits = if behind.starts_with('+') { 1..7 } else { 0..4 };
        let end = digits.end;
        let code = behind
            .get(digits)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let (letter, length) = match code.and_then(char::from_u32) {
            Some(letter) => (letter, end),
            None => ('\\', usize::from(behind.starts_with('\\'))),
        };
        out.push(letter);
        rest = behind.get(length..).unwrap_or_default();
    }
    out + rest
}

/// Splits a text into its statements, one at a time, so that a long text never holds more than one statement's tokens.
#[derive(Debug)]
pub(crate) struct Statements<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    /// The first hint met so far.
    pub(crate) hint: Option<Hint>,
    /// The first consistency level that a hint has asked for.
    pub(crate) consistency: Option<Consistency>,
    /// A hint has asked for a position.
    pub(crate) positioned: bool,
    ended: bool,
}

impl<'a> Statements<'a> {
    /// Splits `text`.
    pub(crate) fn new(text: &'a [u8], plain_strings: PlainStrings) -> Self {
        Statements {
            text,
            lexer: Lexer::new(text, plain_strings),
            hint: None,
            consistency: None,
            positioned: false,
            ended: false,
        }
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = Statement<'a>;

    /// The next statement that isn't empty.
    fn next(&mut self) -> Option<Statement<'a>> {
        if self.ended {
            return None;
        }
        let mut statement = Statement::new(self.text);
        let mut depth = 0usize;
        let mut body = FunctionBody::default();
        let mut last: [Option<Token>; 3] = [None; 3];
        let mut field = Field::None;
        loop {
            let Some(token) = self.lexer.next() else {
                self.ended = true;
                break;
            };
            field = field.next(token.kind);
            if field == Field::Named {
                note_function(&mut statement, token);
            }
            match token.kind {
                Kind::Hint(Hint::Consistency(level)) => {
                    self.consistency = self.consistency.or(Some(level));
                    continue;
                }
                Kind::Hint(Hint::MinPosition) => {
                    self.positioned = true;
                    continue;
                }
                Kind::Hint(hint) => {
                    self.hint = self.hint.or(Some(hint));
                    continue;
                }
                Kind::Punct(b'(') => {
                    depth += 1;
                    note_call(&mut statement, last);
                }
                Kind::Punct(b')') => depth = depth.saturating_sub(1),
                Kind::Punct(b';') if depth == 0 && !body.is_open() => {
                    if statement.tokens.is_empty() {
                        continue;
                    }
                    break;
                }
                Kind::Unterminated => statement.unterminated = true,
                Kind::BackslashString => statement.backslash_string = true,
                Kind::Word => {
                    let before = last[2].map_or(&b""[..], |token| token.bytes(self.text));
                    body.word(token.bytes(self.text), before, depth);
                    statement.reads_prepared |= is_view(&token, self.text);
                }
                Kind::Quoted => statement.reads_prepared |= is_view(&token, self.text),
                _ => {}
            }
            if statement.tokens.len() < MAX_TOKENS {
                statement.tokens.push(token);
            } else {
                statement.truncated = true;
            }
            last = [last[1], last[2], Some(token)];
        }
        (!statement.tokens.is_empty()).then_some(statement)
    }
}

/// Notes the call of a built-in function with an effect on the session, or about server processes. `last` are the three tokens before a parenthesis.
fn note_call(statement: &mut Statement<'_>, last: [Option<Token>; 3]) {
    let [schema, dot, Some(name)] = last else { return };
    let text = statement.text;
    if dot.is_some_and(|token| token.kind == Kind::Punct(b'.'))
        && schema.is_none_or(|token| {
            token.kind != Kind::UnicodeQuoted && identifier(token.kind, token.bytes(text)) != "pg_catalog"
        })
    {
        return;
    }
    note_function(statement, name);
}

/// Notes a built-in function with an effect on the session, by its name. A name in escapes, and TREAT(x AS f), may be any.
fn note_function(statement: &mut Statement<'_>, name: Token) {
    let bytes = name.bytes(statement.text);
    let route = match name.kind {
        Kind::UnicodeQuoted => FunctionRoute::Unknown,
        Kind::Word if bytes.eq_ignore_ascii_case(b"treat") => FunctionRoute::Unknown,
        Kind::Word | Kind::Quoted => {
            let name = identifier(name.kind, bytes);
            statement.signals |= signals::signals(&name);
            statement.tells_process |= name == "pg_backend_pid";
            let called = Name {
                schema: None,
                name: &name,
            };
            match BuiltIn.function(called, None) {
                FunctionRoute::Unknown => return,
                route => route,
            }
        }
        _ => return,
    };
    let effective = matches!(
        route,
        FunctionRoute::MovesSequence
            | FunctionRoute::AdvisorySession
            | FunctionRoute::AdvisoryUnlock
            | FunctionRoute::SetConfig
            | FunctionRoute::SetSeed
            | FunctionRoute::Pinning
            | FunctionRoute::Unknown
    );
    if effective && !statement.calls.contains(&route) {
        statement.calls.push(route);
    }
}

/// Follows `(x).f`, `$1.f` and `a[1].f.g`, which call f if the value has no such field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    None,
    /// Behind a value.
    Value,
    /// Behind the dot that follows it.
    Dot,
    /// At the field's name, which is a value again.
    Named,
}

impl Field {
    /// The state behind a token.
    fn next(self, kind: Kind) -> Field {
        match (self, kind) {
            (state, Kind::Hint(_)) => state,
            (_, Kind::Param | Kind::Punct(b')' | b']')) => Field::Value,
            (Field::Value | Field::Named, Kind::Punct(b'.')) => Field::Dot,
            (Field::Dot, Kind::Word | Kind::Quoted | Kind::UnicodeQuoted) => Field::Named,
            _ => Field::None,
        }
    }
}

/// Follows `CREATE FUNCTION … BEGIN ATOMIC …; END`, whose semicolons belong to the statement.
#[derive(Debug, Default)]
struct FunctionBody {
    head: Head,
    after_begin: bool,
    /// What END closes, the innermost last.
    open: Vec<Block>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// BEGIN ATOMIC
    Body,
    Case,
}

/// How far CREATE [OR REPLACE] { FUNCTION | PROCEDURE } has been read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Head {
    #[default]
    Nothing,
    Create,
    Function,
    /// Something else.
    Other,
}

impl Head {
    fn next(self, word: &[u8]) -> Head {
        let is = |words: &[&[u8]]| words.iter().any(|one| word.eq_ignore_ascii_case(one));
        match self {
            Head::Nothing if is(&[b"create"]) => Head::Create,
            Head::Create if is(&[b"or", b"replace"]) => Head::Create,
            Head::Create if is(&[b"function", b"procedure"]) => Head::Function,
            Head::Function => Head::Function,
            Head::Nothing | Head::Create | Head::Other => Head::Other,
        }
    }
}

impl FunctionBody {
    /// The next word, what stands before it, and in how many parentheses: an argument may be called `begin`.
    fn word(&mut self, word: &[u8], before: &[u8], depth: usize) {
        let is = |expected: &[u8]| word.eq_ignore_ascii_case(expected);
        let behind = |expected: &[u8]| before.eq_ignore_ascii_case(expected);
        if behind(b".") || behind(b"as") {
            return;
        }
        // A statement of a body, which may define a function itself.
        if self.is_open() && (behind(b";") || behind(b"atomic")) {
            self.head = Head::Nothing;
        }
        self.head = self.head.next(word);
        if self.head != Head::Function && !self.is_open() {
            return;
        }
        if self.head == Head::Function && self.after_begin && is(b"atomic") && depth == 0 {
            self.open.push(Block::Body);
        } else if self.is_open() && is(b"case") {
            self.open.push(Block::Case);
        } else if is(b"end") && (self.open.last() == Some(&Block::Case) || behind(b";") || behind(b"atomic")) {
            self.open.pop();
        }
        self.after_begin = is(b"begin");
    }

    fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        Statements::new(text.as_bytes(), PlainStrings::Conforming)
            .map(|statement| statement.written(0, statement.len()).into_owned())
            .collect()
    }

    #[test]
    fn texts_split_where_the_server_splits_them() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            (";; /* ; */ ;", &[]),
            ("select 1; select ';'", &["select 1", "select ';'"]),
            (
                "create rule r as on insert to t do (select 1; select 2); select 3",
                &["create rule r as on insert to t do (select 1; select 2)", "select 3"],
            ),
            (
                "create function f() returns int begin atomic select case when true then 1 end; select 2; end; commit",
                &[
                    "create function f() returns int begin atomic select case when true then 1 end; select 2; end",
                    "commit",
                ],
            ),
            ("begin; select 1; end", &["begin", "select 1", "end"]),
            // `begin atomic` is a column with a label here.
            (
                "create view v as select begin atomic from t; listen x",
                &["create view v as select begin atomic from t", "listen x"],
            ),
            (
                "create function f() begin atomic select begin atomic; end; listen x",
                &["create function f() begin atomic select begin atomic; end", "listen x"],
            ),
            (
                "create function f(begin atomic); listen x",
                &["create function f(begin atomic)", "listen x"],
            ),
            (
                "create or replace procedure p() begin atomic select 1 as case, t.end from t; select 1 end; end; listen x",
                &[
                    "create or replace procedure p() begin atomic select 1 as case, t.end from t; select 1 end; end",
                    "listen x",
                ],
            ),
            (
                "create function f() begin atomic create function g() begin atomic end; end; listen x",
                &[
                    "create function f() begin atomic create function g() begin atomic end; end",
                    "listen x",
                ],
            ),
        ];
        for (text, statements) in table {
            assert_eq!(&split(text), statements, "{text}");
        }
    }

    #[test]
    fn identifiers_are_folded() {
        assert_eq!(identifier(Kind::Word, b"NextVal"), "nextval");
        assert_eq!(identifier(Kind::Quoted, b"\"a\"\"B\""), "a\"B");
        assert_eq!(
            identifier(Kind::UnicodeQuoted, b"U&\"d\\0061t\\+000061\\\\\\x\""),
            "data\\\\x"
        );
    }

    #[test]
    fn a_long_text_keeps_its_effects_but_not_its_tokens() {
        let sql = format!("select {} set_config('a','b',false)", "1,".repeat(MAX_TOKENS));
        let statement = Statements::new(sql.as_bytes(), PlainStrings::Conforming)
            .next()
            .expect("one statement");
        assert!(statement.truncated);
        assert_eq!(statement.calls, [FunctionRoute::SetConfig]);
        assert_eq!(statement.len(), MAX_TOKENS);
    }
}
