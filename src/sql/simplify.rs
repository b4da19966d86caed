//! A statement's tokens, turned into tokens that sqlparser understands.
//!
//! sqlparser never sees the text: its own tokenizer has gaps that hide calls. What it can't read, and what has been checked by
//! `tokens` and can't carry a call, is left out or put in plainer words: casts and collations behind an expression, typed
//! literals, frame exclusions, XML's keyword arguments. Every value is a dummy, every operator one that binds like it would in most places,
//! since neither precedence nor values matter to what a statement may do. Nothing that can name a function, a table or a query
//! is left out, but collations, types and aliases.

use sqlparser::tokenizer::Token;

use super::lexer::Kind;
use super::statement::{Statement, identifier};
use super::tokens::{behind_interval_fields, type_name};

/// The tokens for sqlparser; `None` where it is clear that nothing can be made of them.
pub(crate) fn simplify(statement: &Statement<'_>) -> Option<Vec<Token>> {
    let mut simplifier = Simplifier {
        statement,
        at: 0,
        out: Vec::with_capacity(statement.len() + 8),
        open: Vec::new(),
    };
    while simplifier.at < statement.len() {
        simplifier.step()?;
    }
    Some(simplifier.out)
}

/// What an open parenthesis belongs to, where that changes how its inside reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paren {
    Plain,
    Substring,
    Using,
    XmlNames,
    XmlParse,
    XmlRoot,
    XmlExists,
    XmlTable,
    /// `= ANY (VALUES …)`: the parser wants one more.
    Values,
}

struct Simplifier<'a> {
    statement: &'a Statement<'a>,
    at: usize,
    out: Vec<Token>,
    open: Vec<Paren>,
}

impl Simplifier<'_> {
    fn is(&self, offset: usize, word: &str) -> bool {
        self.statement.is_word(self.at + offset, word)
    }

    fn is_any(&self, offset: usize, words: &[&str]) -> bool {
        self.statement.is_any_word(self.at + offset, words)
    }

    fn is_punct(&self, offset: usize, punct: u8) -> bool {
        self.statement.is_punct(self.at + offset, punct)
    }

    fn previous_is(&self, test: impl Fn(&Statement<'_>, usize) -> bool) -> bool {
        self.at > 0 && test(self.statement, self.at - 1)
    }

    fn inside(&self) -> Paren {
        self.open.last().copied().unwrap_or(Paren::Plain)
    }

    fn word(&mut self, word: &str) {
        self.out.push(Token::make_word(word, None));
    }

    fn value(&mut self) {
        self.out.push(Token::Number("1".to_owned(), false));
    }

    fn skip(&mut self, count: usize) {
        self.at += count;
    }

    fn step(&mut self) -> Option<()> {
        match self.statement.kind(self.at)? {
            Kind::Word if !self.previous_is(|statement, index| statement.is_punct(index, b'.')) => {
                return self.keyword();
            }
            Kind::Word | Kind::Quoted => self.name()?,
            Kind::String => {
                self.out.push(Token::SingleQuotedString(String::new()));
                self.skip(1);
            }
            Kind::Number => {
                self.value();
                self.skip(1);
            }
            Kind::Param => {
                self.out.push(Token::Placeholder("$1".to_owned()));
                self.skip(1);
            }
            Kind::Operator => self.operator(),
            Kind::Punct(punct) => self.punct(punct)?,
            Kind::Cast => self.at = type_name(self.statement, self.at + 1)?.end,
            Kind::ColonEquals => {
                self.out.push(Token::RArrow);
                self.skip(1);
            }
            Kind::UnicodeQuoted | Kind::BackslashString | Kind::Unterminated | Kind::Other | Kind::Hint(_) => {
                return None;
            }
        }
        Some(())
    }

    /// A name that can't be a keyword here, or a keyword that means the same to sqlparser.
    fn name(&mut self) -> Option<()> {
        let kind = self.statement.kind(self.at)?;
        let bytes = self.statement.bytes(self.at);
        if kind == Kind::Quoted {
            self.out.push(Token::make_word(&identifier(kind, bytes), Some('"')));
        } else {
            self.out.push(Token::make_word(std::str::from_utf8(bytes).ok()?, None));
        }
        self.skip(1);
        // FROM t*
        let from = |index: usize| self.statement.is_any_word(index, &["from", "join", "only", "table"]);
        if self.statement.is_operator(self.at, "*")
            && (self.at >= 2 && from(self.at - 2) || self.at >= 4 && from(self.at - 4))
        {
            let table = self.at < 4 || !from(self.at - 4) || self.statement.is_punct(self.at - 2, b'.');
            self.skip(usize::from(table));
        }
        Some(())
    }

    fn operator(&mut self) {
        let written = self.statement.bytes(self.at);
        let compared = self.is_any(1, &["any", "all", "some"]);
        self.out.push(match written {
            b"=>" => Token::RArrow,
            b"*" => Token::Mul,
            b"=" | b"<>" | b"!=" | b"<" | b">" | b"<=" | b">=" => Token::Eq,
            _ if compared => Token::Eq,
            _ => Token::Plus,
        });
        self.skip(1);
    }

    fn punct(&mut self, punct: u8) -> Option<()> {
        match punct {
            b'(' => {
                self.open_parenthesis();
                return Some(());
            }
            b')' => {
                self.out.push(Token::RParen);
                self.skip(1);
                match self.open.pop() {
                    // JOIN … USING (a) AS x
                    Some(Paren::Using) if self.is(0, "as") => self.skip(2),
                    Some(Paren::Values) => self.out.push(Token::RParen),
                    _ => {}
                }
                return Some(());
            }
            b'.' if self.statement.is_operator(self.at + 1, "*") => {
                // `t.*` and `(row).*` read like a column.
                self.out.push(Token::Period);
                self.word("x_");
                self.skip(2);
                return Some(());
            }
            b'[' => self.out.push(Token::LBracket),
            b']' => self.out.push(Token::RBracket),
            b',' => self.out.push(Token::Comma),
            b'.' => self.out.push(Token::Period),
            b':' => self.out.push(Token::Colon),
            _ => return None,
        }
        self.skip(1);
        Some(())
    }

    fn open_parenthesis(&mut self) {
        let before = self
            .at
            .checked_sub(1)
            .map(|index| self.statement.identifier(index))
            .unwrap_or_default();
        let paren = match before.as_ref() {
            "substring" => Paren::Substring,
            "using" => Paren::Using,
            "xmlattributes" | "xmlforest" => Paren::XmlNames,
            "xmlparse" | "xmlserialize" => Paren::XmlParse,
            "xmlroot" => Paren::XmlRoot,
            "xmlexists" => Paren::XmlExists,
            "xmltable" => Paren::XmlTable,
            "any" | "all" | "some" if self.is(1, "values") => Paren::Values,
            _ => Paren::Plain,
        };
        self.out.push(Token::LParen);
        if paren == Paren::Values {
            self.out.push(Token::LParen);
        }
        self.open.push(paren);
        self.skip(1);
        let named = matches!(before.as_ref(), "xmlelement" | "xmlpi")
            && self.is(0, "name")
            && self.statement.is_name(self.at + 1);
        if named {
            self.value();
            self.skip(2);
        } else if paren == Paren::XmlParse && self.is_any(0, &["document", "content"]) {
            self.skip(1);
        }
    }

    fn keyword(&mut self) -> Option<()> {
        if self.inside() != Paren::XmlTable && self.typed_literal() {
            return Some(());
        }
        if self.inside_parentheses() || self.left_out() || self.put_otherwise() {
            return Some(());
        }
        self.name()
    }

    /// `date '2000-01-01'`, `interval '1' day`: the string alone.
    fn typed_literal(&mut self) -> bool {
        let not_a_type = [
            "as", "and", "or", "not", "like", "ilike", "escape", "in", "then", "else", "when", "select", "by", "from",
        ];
        if self.is_any(0, &not_a_type) {
            return false;
        }
        let Some(found) = type_name(self.statement, self.at) else {
            return false;
        };
        if self.statement.kind(found.end) != Some(Kind::String) || !is_type_like(&found.name) {
            return false;
        }
        self.out.push(Token::SingleQuotedString(String::new()));
        self.at = found.end + 1;
        if found.name == "interval" {
            self.at = behind_interval_fields(self.statement, self.at);
        }
        true
    }

    /// What reads differently inside of some functions' parentheses.
    fn inside_parentheses(&mut self) -> bool {
        let skip = match self.inside() {
            Paren::Substring if self.is_any(0, &["similar", "escape"]) => {
                self.out.push(Token::Comma);
                1
            }
            Paren::XmlNames if self.is(0, "as") && self.statement.is_name(self.at + 1) => 2,
            Paren::XmlParse if self.is_any(0, &["preserve", "strip"]) && self.is(1, "whitespace") => 2,
            Paren::XmlRoot if self.is(0, "version") => 1,
            Paren::XmlRoot if self.is(0, "no") && self.is(1, "value") => {
                self.value();
                2
            }
            Paren::XmlRoot if self.is(0, "standalone") => 1,
            Paren::XmlExists if self.is(0, "passing") => {
                self.out.push(Token::Comma);
                1
            }
            Paren::XmlExists | Paren::XmlTable if self.is(0, "by") && self.is_any(1, &["ref", "value"]) => 2,
            _ => 0,
        };
        self.skip(skip);
        skip > 0
    }

    /// What can go without changing what the statement may do.
    fn left_out(&mut self) -> bool {
        let statement = self.statement;
        let skip = match statement.identifier(self.at).as_ref() {
            "variadic" | "symmetric" | "asymmetric" | "lateral" => 1,
            "both" | "leading" | "trailing" if self.is(1, "from") => 2,
            "only" if !self.previous_is(|statement, index| statement.is_any_word(index, &["row", "rows"])) => 1,
            "for" if self.is(1, "read") && self.is(2, "only") => 3,
            "collate" if statement.is_name(self.at + 1) => 2 + 2 * usize::from(self.is_punct(2, b'.')),
            "uescape" if statement.kind(self.at + 1) == Some(Kind::String) => 2,
            "exclude"
                if self.previous_is(|statement, index| {
                    statement.is_any_word(index, &["row", "following", "preceding"])
                }) =>
            {
                match () {
                    () if self.is(1, "current") && self.is(2, "row") => 3,
                    () if self.is(1, "no") && self.is(2, "others") => 3,
                    () if self.is_any(1, &["group", "ties"]) => 2,
                    () => 0,
                }
            }
            "search" | "cycle" if self.previous_is(|statement, index| statement.is_punct(index, b')')) => {
                self.behind_recursion_clause().map_or(0, |end| end - self.at)
            }
            _ => 0,
        };
        self.skip(skip);
        skip > 0
    }

    /// SEARCH … SET name, or CYCLE … USING name, behind a recursive CTE.
    fn behind_recursion_clause(&self) -> Option<usize> {
        let closing = if self.is(0, "search") { "set" } else { "using" };
        let well_begun = if self.is(0, "search") {
            self.is_any(1, &["depth", "breadth"]) && self.is(2, "first")
        } else {
            self.statement.is_name(self.at + 1)
        };
        let last = (self.at..self.statement.len()).take_while(|&index| !self.statement.is_punct(index, b'('));
        let closing = last.into_iter().find(|&index| self.statement.is_word(index, closing))?;
        (well_begun && self.statement.is_name(closing + 1)).then_some(closing + 2)
    }

    /// What sqlparser knows under another name.
    fn put_otherwise(&mut self) -> bool {
        let statement = self.statement;
        let skip = match statement.identifier(self.at).as_ref() {
            "table" => {
                self.word("select");
                self.out.push(Token::Mul);
                self.word("from");
                1
            }
            "rows" if self.is(1, "from") && self.is_punct(2, b'(') => {
                self.word("coalesce");
                2
            }
            "collation" if self.is(1, "for") && self.is_punct(2, b'(') => {
                self.word("pg_collation_for");
                2
            }
            "operator" if self.is_punct(1, b'(') => {
                let compared = statement.behind_parenthesis(self.at + 1);
                let compared = statement.is_any_word(compared, &["any", "all", "some"]);
                self.out.push(if compared { Token::Eq } else { Token::Plus });
                statement.behind_parenthesis(self.at + 1) - self.at
            }
            "similar" if self.is(1, "to") => {
                self.word("like");
                2
            }
            "like" | "ilike" if self.is_any(1, &["any", "all", "some"]) => {
                self.out.push(Token::Eq);
                1
            }
            "not" if self.is_any(1, &["like", "ilike"]) && self.is_any(2, &["any", "all", "some"]) => {
                self.out.push(Token::Eq);
                2
            }
            "overlaps" if self.closes_call() => {
                self.out.push(Token::Plus);
                1
            }
            "isnull" | "notnull" => {
                self.word("is");
                self.word("null");
                1
            }
            "is" if self.is(1, "document") || self.is(1, "not") && self.is(2, "document") => {
                self.word("is");
                self.word("null");
                2 + usize::from(self.is(1, "not"))
            }
            "xmlparse" if self.is_punct(1, b'(') => {
                self.word("coalesce");
                1
            }
            "xmlserialize" if self.is_punct(1, b'(') => {
                self.word("cast");
                1
            }
            "select" if self.nothing_selected() => {
                self.word("select");
                self.value();
                1
            }
            "as" if self.is_punct(1, b'(') && self.closes_call() && !self.opens_a_query(2) => {
                self.word("as");
                self.word("x_");
                1
            }
            _ => 0,
        };
        self.skip(skip);
        skip > 0
    }

    fn nothing_selected(&self) -> bool {
        self.statement.kind(self.at + 1).is_none()
            || self.is_punct(1, b')')
            || self.is_any(
                1,
                &[
                    "from",
                    "where",
                    "union",
                    "except",
                    "intersect",
                    "order",
                    "group",
                    "limit",
                    "offset",
                    "having",
                ],
            )
    }

    fn closes_call(&self) -> bool {
        self.previous_is(|statement, index| statement.is_punct(index, b')'))
    }

    fn opens_a_query(&self, offset: usize) -> bool {
        self.is_punct(offset, b'(') || self.is_any(offset, &["select", "with", "values", "table"])
    }
}

/// Whether a word in front of a string is a type rather than a keyword. `tokens` has checked that it is one or the other.
fn is_type_like(name: &str) -> bool {
    use super::names::{BuiltIn, Catalog, Name};
    BuiltIn.type_is_safe(Name { schema: None, name })
}
