//! Decision expressions: `b==1 || c==1`, three-valued (Kleene).
//!
//! Grammar, loosest first: `||`, `&&`, `== !=`, `< <= > >=`, `+`; parentheses, integers, node
//! names (bare, or in backquotes: `` `align-1.bam` == 1 ``) and `'N/A'`. A bare name where a
//! truth value is needed means `name==1`.
//!
//! A node that never ran has no number: a comparison with it is *unknown*, unless it compares
//! with `'N/A'` itself. `true || unknown` is true, `false && unknown` is false.
//!
//! Compiled to postfix code with an explicit stack, in one pass: a million characters or
//! parentheses cost linear time and no stack. Types are checked while compiling, so evaluation
//! cannot fail.
//!
//! Must not know graphs or states: names stay names, their return codes come from a function.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// What an expression says about starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Holds.
    True,
    /// Does not hold.
    False,
    /// Hangs on a node that never ran.
    Unknown,
}

impl Truth {
    fn of(value: Option<bool>) -> Self {
        match value {
            Some(true) => Self::True,
            Some(false) => Self::False,
            None => Self::Unknown,
        }
    }
}

/// A checked expression.
#[derive(Clone, Debug)]
pub struct Expr {
    text: String,
    names: Vec<Name>,
    code: Vec<Op>,
}

/// A node's name as an expression uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name, without backquotes.
    pub name: String,
    /// Where it first stands, in characters from 0.
    pub span: Range<usize>,
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError {
    /// The place in the expression, in characters from 0.
    pub span: Range<usize>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.span.start + 1, self.message)
    }
}

impl std::error::Error for ExprError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Integer(i64),
    /// Pushes the return code of a name.
    Code(usize),
    /// Pushes whether a name never ran.
    IsNotApplicable(usize),
    /// Number to truth: equals 1.
    IsOne,
    Not,
    Binary(Binary),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Add,
}

impl Binary {
    fn strength(self) -> u8 {
        match self {
            Self::Or => 1,
            Self::And => 2,
            Self::Eq | Self::Ne => 3,
            Self::Lt | Self::Le | Self::Gt | Self::Ge => 4,
            Self::Add => 5,
        }
    }

    fn joins_truths(self) -> bool {
        matches!(self, Self::Or | Self::And)
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Or => "||",
            Self::And => "&&",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Add => "+",
        }
    }
}

impl Expr {
    /// Memory that an expression takes at the most for each byte of its text, in bytes: two
    /// operations for a name of one letter.
    pub const MEMORY: usize = 12;

    /// Parses and checks an expression.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        Compiler::new(text).compile()
    }

    /// The expression as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The nodes that it names, each once, in the order in which they first stand.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// Evaluates. `code_of` gives the return code of the nth of [`Expr::names`], `None` where
    /// that node never ran.
    pub fn eval(&self, code_of: impl Fn(usize) -> Option<i64>) -> Truth {
        // Truths stand on the stack as 0 and 1. The compiler has checked the types, so a
        // missing operand cannot be; it would count as unknown.
        let mut stack: Vec<Option<i128>> = Vec::new();
        let truth = |value: bool| Some(i128::from(value));
        for op in &self.code {
            let value = match *op {
                Op::Integer(value) => Some(i128::from(value)),
                Op::Code(name) => code_of(name).map(i128::from),
                Op::IsNotApplicable(name) => truth(code_of(name).is_none()),
                Op::IsOne => stack.pop().flatten().map(|number| i128::from(number == 1)),
                Op::Not => stack.pop().flatten().map(|value| 1 - value),
                Op::Binary(binary) => {
                    let right = stack.pop().flatten();
                    let left = stack.pop().flatten();
                    binary.apply(left, right)
                }
            };
            stack.push(value);
        }
        Truth::of(stack.pop().flatten().map(|value| value == 1))
    }
}

impl Binary {
    fn apply(self, left: Option<i128>, right: Option<i128>) -> Option<i128> {
        match (self, left, right) {
            (Self::Or, Some(1), _) | (Self::Or, _, Some(1)) => return Some(1),
            (Self::And, Some(0), _) | (Self::And, _, Some(0)) => return Some(0),
            _ => {}
        }
        let (left, right) = (left?, right?);
        Some(match self {
            // Sums of at most 2^64 terms of 64 bits: no overflow in 128.
            Self::Add => left + right,
            Self::Or => left.max(right),
            Self::And => left.min(right),
            Self::Eq => i128::from(left == right),
            Self::Ne => i128::from(left != right),
            Self::Lt => i128::from(left < right),
            Self::Le => i128::from(left <= right),
            Self::Gt => i128::from(left > right),
            Self::Ge => i128::from(left >= right),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Integer(i64),
    Name(String),
    NotApplicable,
    Open,
    Close,
    Binary(Binary),
}

/// What an operand on the compiler's stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Number,
    /// A name alone: a number, or a truth where one is needed.
    Name(usize),
    Truth,
    NotApplicable,
}

impl Type {
    fn words(self) -> &'static str {
        match self {
            Self::Number | Self::Name(_) => "a number",
            Self::Truth => "a truth value",
            Self::NotApplicable => "'N/A'",
        }
    }
}

#[derive(Clone, Debug)]
struct Operand {
    kind: Type,
    span: Range<usize>,
}

enum Pending {
    Open(usize),
    Binary(Binary, Range<usize>),
}

struct Compiler<'a> {
    text: &'a str,
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    at: usize,
    names: Vec<Name>,
    known: BTreeMap<String, usize>,
    code: Vec<Op>,
    operands: Vec<Operand>,
    pending: Vec<Pending>,
}

impl<'a> Compiler<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            rest: text.chars().peekable(),
            at: 0,
            names: Vec::new(),
            known: BTreeMap::new(),
            code: Vec::new(),
            operands: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn compile(mut self) -> Result<Expr, ExprError> {
        let mut wants_operand = true;
        while let Some((token, span)) = self.token()? {
            wants_operand = self.take(token, span, wants_operand)?;
        }
        let end = self.at..self.at;
        if wants_operand {
            let message = if self.at == 0 || self.text.trim().is_empty() {
                "the expression is empty; expected a condition such as a==1"
            } else {
                "the expression ends here; expected a name, an integer, 'N/A' or `(`"
            };
            return Err(error(end, message));
        }
        while let Some(pending) = self.pending.pop() {
            match pending {
                Pending::Open(at) => return Err(error(at..at + 1, "this `(` is never closed")),
                Pending::Binary(binary, span) => self.reduce(binary, span)?,
            }
        }
        self.make_truth("the whole expression")?;
        Ok(Expr {
            text: self.text.to_owned(),
            names: self.names,
            code: self.code,
        })
    }

    /// Takes a token; returns whether an operand is wanted after it.
    fn take(
        &mut self,
        token: Token,
        span: Range<usize>,
        wants_operand: bool,
    ) -> Result<bool, ExprError> {
        match (token, wants_operand) {
            (Token::Integer(value), true) => {
                self.code.push(Op::Integer(value));
                self.operand(Type::Number, span);
                Ok(false)
            }
            (Token::Name(name), true) => {
                let index = self.name(name, span.clone());
                self.code.push(Op::Code(index));
                self.operand(Type::Name(index), span);
                Ok(false)
            }
            (Token::NotApplicable, true) => {
                // No code: the comparison that it stands in is one instruction.
                self.operand(Type::NotApplicable, span);
                Ok(false)
            }
            (Token::Open, true) => {
                self.pending.push(Pending::Open(span.start));
                Ok(true)
            }
            (Token::Close, false) => {
                self.close(span)?;
                Ok(false)
            }
            (Token::Binary(binary), false) => {
                self.reduce_stronger(binary.strength())?;
                if binary.joins_truths() {
                    self.make_truth(binary.sign())?;
                }
                self.pending.push(Pending::Binary(binary, span));
                Ok(true)
            }
            (token, true) => {
                let found = shown(&token);
                let message = format!("found {found}; expected a name, an integer, 'N/A' or `(`");
                Err(error(span, message))
            }
            (token, false) => {
                let found = shown(&token);
                let message = format!(
                    "found {found}; expected an operator (|| && == != < <= > >= +) or the end"
                );
                Err(error(span, message))
            }
        }
    }

    fn operand(&mut self, kind: Type, span: Range<usize>) {
        self.operands.push(Operand { kind, span });
    }

    fn name(&mut self, name: String, span: Range<usize>) -> usize {
        let next = self.names.len();
        let index = *self.known.entry(name.clone()).or_insert(next);
        if index == next {
            self.names.push(Name { name, span });
        }
        index
    }

    fn close(&mut self, span: Range<usize>) -> Result<(), ExprError> {
        loop {
            match self.pending.pop() {
                Some(Pending::Open(start)) => {
                    if let Some(operand) = self.operands.last_mut() {
                        operand.span = start..span.end;
                    }
                    return Ok(());
                }
                Some(Pending::Binary(binary, at)) => self.reduce(binary, at)?,
                None => return Err(error(span, "this `)` closes nothing")),
            }
        }
    }

    /// Reduces what binds at least as strongly as an operator that comes now (all are left to
    /// right).
    fn reduce_stronger(&mut self, strength: u8) -> Result<(), ExprError> {
        while let Some(Pending::Binary(binary, _)) = self.pending.last() {
            if binary.strength() < strength {
                break;
            }
            if let Some(Pending::Binary(binary, span)) = self.pending.pop() {
                self.reduce(binary, span)?;
            }
        }
        Ok(())
    }

    fn reduce(&mut self, binary: Binary, sign: Range<usize>) -> Result<(), ExprError> {
        if binary.joins_truths() {
            self.make_truth(binary.sign())?;
        }
        let (Some(right), Some(left)) = (self.operands.pop(), self.operands.pop()) else {
            return Err(error(sign, "an operand is missing"));
        };
        let span = left.span.start..right.span.end;
        let kind = match (binary, left.kind, right.kind) {
            (Binary::Or | Binary::And, _, _) => {
                self.code.push(Op::Binary(binary));
                Type::Truth
            }
            (Binary::Eq | Binary::Ne, Type::NotApplicable, Type::Name(name))
            | (Binary::Eq | Binary::Ne, Type::Name(name), Type::NotApplicable) => {
                self.code.pop();
                self.code.push(Op::IsNotApplicable(name));
                if binary == Binary::Ne {
                    self.code.push(Op::Not);
                }
                Type::Truth
            }
            (_, Type::NotApplicable, _) => return Err(not_applicable(left.span)),
            (_, _, Type::NotApplicable) => return Err(not_applicable(right.span)),
            (_, Type::Truth, _) => return Err(not_a_number(binary, left.span)),
            (_, _, Type::Truth) => return Err(not_a_number(binary, right.span)),
            (_, Type::Number | Type::Name(_), Type::Number | Type::Name(_)) => {
                self.code.push(Op::Binary(binary));
                if binary == Binary::Add {
                    Type::Number
                } else {
                    Type::Truth
                }
            }
        };
        self.operand(kind, span);
        Ok(())
    }

    /// Makes the newest operand a truth value: a bare name means `name==1`.
    fn make_truth(&mut self, wanted_by: &str) -> Result<(), ExprError> {
        let Some(operand) = self.operands.last_mut() else {
            return Ok(());
        };
        match operand.kind {
            Type::Truth => Ok(()),
            Type::Name(_) => {
                operand.kind = Type::Truth;
                self.code.push(Op::IsOne);
                Ok(())
            }
            kind @ (Type::Number | Type::NotApplicable) => {
                let message = format!(
                    "{} where {wanted_by} needs a condition; expected a comparison such as a==1",
                    kind.words()
                );
                Err(error(operand.span.clone(), message))
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        self.at += 1;
        Some(next)
    }

    /// Takes the next character if it is `wanted`.
    fn follows(&mut self, wanted: char) -> bool {
        let follows = self.rest.peek() == Some(&wanted);
        if follows {
            self.next();
        }
        follows
    }

    fn token(&mut self) -> Result<Option<(Token, Range<usize>)>, ExprError> {
        while self.rest.peek().is_some_and(|c| c.is_whitespace()) {
            self.next();
        }
        let start = self.at;
        let Some(first) = self.next() else {
            return Ok(None);
        };
        let token = match first {
            '(' => Token::Open,
            ')' => Token::Close,
            '+' => Token::Binary(Binary::Add),
            '|' if self.follows('|') => Token::Binary(Binary::Or),
            '&' if self.follows('&') => Token::Binary(Binary::And),
            '=' if self.follows('=') => Token::Binary(Binary::Eq),
            '!' if self.follows('=') => Token::Binary(Binary::Ne),
            '<' if self.follows('=') => Token::Binary(Binary::Le),
            '<' => Token::Binary(Binary::Lt),
            '>' if self.follows('=') => Token::Binary(Binary::Ge),
            '>' => Token::Binary(Binary::Gt),
            '|' => return Err(error(start..self.at, "found `|`; expected `||`")),
            '&' => return Err(error(start..self.at, "found `&`; expected `&&`")),
            '=' => return Err(error(start..self.at, "found `=`; expected `==`")),
            '!' => return Err(error(start..self.at, "found `!`; expected `!=`")),
            '\'' => {
                for expected in "N/A'".chars() {
                    if !self.follows(expected) {
                        return Err(error(
                            start..self.at,
                            "expected 'N/A', the only text there is",
                        ));
                    }
                }
                Token::NotApplicable
            }
            '`' => Token::Name(self.backquoted(start)?),
            c if c.is_ascii_digit() => Token::Integer(self.integer(c, start)?),
            c if c.is_alphabetic() || c == '_' => {
                let mut name = String::from(c);
                while let Some(&c) = self.rest.peek() {
                    if !(c.is_alphanumeric() || c == '_') {
                        break;
                    }
                    name.push(c);
                    self.next();
                }
                Token::Name(name)
            }
            c => {
                let message =
                    format!("found `{c}`; a node's name with such characters stands in backquotes");
                return Err(error(start..self.at, message));
            }
        };
        Ok(Some((token, start..self.at)))
    }

    fn integer(&mut self, first: char, start: usize) -> Result<i64, ExprError> {
        let mut digits = String::from(first);
        while let Some(&c) = self.rest.peek() {
            if !c.is_ascii_digit() {
                break;
            }
            digits.push(c);
            self.next();
        }
        if self
            .rest
            .peek()
            .is_some_and(|c| c.is_alphabetic() || *c == '_')
        {
            let message = "a name may not begin with a digit; such a name stands in backquotes";
            return Err(error(start..self.at + 1, message));
        }
        digits.parse().map_err(|_| {
            error(
                start..self.at,
                format!("the integer is larger than {}", i64::MAX),
            )
        })
    }

    /// The rest of a name in backquotes; a backquote inside it is written twice.
    fn backquoted(&mut self, start: usize) -> Result<String, ExprError> {
        let mut name = String::new();
        loop {
            match self.next() {
                None => {
                    return Err(error(
                        start..self.at,
                        "the backquoted name never ends; expected a closing backquote",
                    ));
                }
                Some('`') if self.follows('`') => name.push('`'),
                Some('`') => break,
                Some(c) => name.push(c),
            }
        }
        if name.is_empty() {
            return Err(error(start..self.at, "an empty name in backquotes"));
        }
        Ok(name)
    }
}

fn error(span: Range<usize>, message: impl Into<String>) -> ExprError {
    ExprError {
        span,
        message: message.into(),
    }
}

fn not_applicable(span: Range<usize>) -> ExprError {
    error(
        span,
        "'N/A' can only be compared with a node's name, by == or !=",
    )
}

fn not_a_number(binary: Binary, span: Range<usize>) -> ExprError {
    let sign = binary.sign();
    error(span, format!("a truth value where `{sign}` needs a number"))
}

fn shown(token: &Token) -> String {
    match token {
        Token::Integer(value) => format!("the integer {value}"),
        Token::Name(name) => format!("the name `{name}`"),
        Token::NotApplicable => "'N/A'".to_owned(),
        Token::Open => "`(`".to_owned(),
        Token::Close => "`)`".to_owned(),
        Token::Binary(binary) => format!("`{}`", binary.sign()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(text: &str, codes: &[(&str, Option<i64>)]) -> Result<Truth, String> {
        let expr = Expr::parse(text).map_err(|error| error.to_string())?;
        Ok(expr.eval(|index| {
            let name = &expr.names().get(index)?.name;
            codes.iter().find(|(n, _)| n == name)?.1
        }))
    }

    #[test]
    fn kleene() {
        let codes = [("t", Some(1)), ("f", Some(0)), ("u", None)];
        for (text, truth) in [
            ("t || u", Truth::True),
            ("u || t", Truth::True),
            ("f || u", Truth::Unknown),
            ("f && u", Truth::False),
            ("u && f", Truth::False),
            ("t && u", Truth::Unknown),
            ("u == u", Truth::Unknown),
            ("u + 1 > 0", Truth::Unknown),
            ("u == 'N/A'", Truth::True),
            ("'N/A' != u", Truth::False),
            ("(t) != 'N/A' && t", Truth::True),
            ("t + t + f == 2", Truth::True),
            ("f || t && u", Truth::Unknown),
            ("`t` == 1\n\t&& t", Truth::True),
        ] {
            assert_eq!(eval(text, &codes), Ok(truth), "{text}");
        }
    }

    #[test]
    fn errors_have_a_place() {
        for (text, message) in [
            (
                "",
                "at character 1: the expression is empty; expected a condition such as a==1",
            ),
            (
                "a &&",
                "at character 5: the expression ends here; expected a name, an integer, 'N/A' or `(`",
            ),
            ("(a==1", "at character 1: this `(` is never closed"),
            ("a==1)", "at character 5: this `)` closes nothing"),
            ("a = 1", "at character 3: found `=`; expected `==`"),
            (
                "a==1 b==1",
                "at character 6: found the name `b`; expected an operator (|| && == != < <= > >= +) or the end",
            ),
            (
                "a+1",
                "at character 1: a number where the whole expression needs a condition; expected a comparison such as a==1",
            ),
            (
                "a<b<c",
                "at character 1: a truth value where `<` needs a number",
            ),
            (
                "a=='N/A'+1",
                "at character 4: 'N/A' can only be compared with a node's name, by == or !=",
            ),
            (
                "a.b==1",
                "at character 2: found `.`; a node's name with such characters stands in backquotes",
            ),
            (
                "`a",
                "at character 1: the backquoted name never ends; expected a closing backquote",
            ),
            (
                "99999999999999999999==a",
                "at character 1: the integer is larger than 9223372036854775807",
            ),
        ] {
            assert_eq!(eval(text, &[]), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_million_characters_need_no_stack() {
        let nested = format!("{}a==1{}", "(".repeat(500_000), ")".repeat(500_000));
        assert_eq!(eval(&nested, &[("a", Some(1))]), Ok(Truth::True));
        let long = "a==1||".repeat(170_000) + "a==1";
        assert_eq!(eval(&long, &[("a", Some(0))]), Ok(Truth::False));
        let weak = "a||".repeat(330_000) + "a";
        assert_eq!(eval(&weak, &[("a", None)]), Ok(Truth::Unknown));
    }
}
