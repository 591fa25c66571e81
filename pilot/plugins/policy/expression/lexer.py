"""Text to tokens (plugin policy, L11; services.md 9.5)."""

from __future__ import annotations

import unicodedata
from enum import Enum
from typing import NamedTuple


class Lexeme(Enum):
    """Kinds of tokens, by the names the compiler's messages use."""

    IDENTIFIER = "Identifier"
    NUMBER = "Number"
    STRING = "String"
    BYTES = "Bytes"
    OPERATOR = "Operator"
    BRACKET = "Bracket"
    END = "EOF"
    ERROR = "error"


class Token(NamedTuple):
    """A token: kind, value (of a text without quotes and escapes) and where it starts."""

    kind: Lexeme
    value: str
    at: int

    def __str__(self) -> str:
        return f"{self.kind.value}({quoted(self.value)})" if self.value else self.kind.value

    def is_operator(self, *values: str) -> bool:
        """Return whether it is one of these operators."""
        return self.kind is Lexeme.OPERATOR and self.value in values

    def is_bracket(self, value: str) -> bool:
        """Return whether it is this bracket."""
        return self.kind is Lexeme.BRACKET and self.value == value


WORDS = frozenset({"not", "in", "or", "and", "matches", "contains", "startsWith", "endsWith", "let", "if", "else"})
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
CODE_DIGITS = {"x": 2, "u": 4, "U": 8}
HEX = "0123456789abcdefABCDEF"
OCTAL = "01234567"
DIGITS = frozenset("0123456789_")
DIGITS_OF = {"x": DIGITS | set("abcdefABCDEF"), "o": frozenset("01234567_"), "b": frozenset("01_")}
SPACES = frozenset(" \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(n) for n in range(0x2000, 0x200B)}


def quoted(text: str) -> str:
    """A text as Go's %q shows it."""
    shown = []
    for char in text:
        code = ord(char)
        if char in '"\\':
            shown.append("\\" + char)
        elif short := GO_ESCAPES.get(char):
            shown.append(short)
        elif 0xDC80 <= code <= 0xDCFF:
            shown.append(f"\\x{code - 0xDC00:02x}")
        elif char == " " or unicodedata.category(char)[0] in "LMNPS":
            shown.append(char)
        else:
            shown.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(shown) + '"'


GO_ESCAPES = {value: "\\" + key for key, value in ESCAPES.items() if key != "\\"}


def is_letter(char: str) -> bool:
    """Return whether a name may start with it."""
    return char in ("_", "$") or unicodedata.category(char)[0] == "L"


def is_alphanumeric(char: str) -> bool:
    """Return whether it may stand inside a name."""
    return is_letter(char) or unicodedata.category(char) == "Nd"


class LexicalError(Exception):
    """No token can be made here: the message, and where."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


def tokens_untrusted(source: str) -> list[Token]:
    """Return the tokens of a text, the end last; what cannot be read is a last token of kind ERROR instead.

    The official compiler reads as it parses, so an error counts only once everything before it was in order.
    """
    lexer = _Lexer(source)
    found: list[Token] = []
    try:
        while (token := lexer.next()) is not None:
            found.append(token)
    except LexicalError as error:
        found.append(Token(Lexeme.ERROR, error.message, error.at))
    else:
        found.append(Token(Lexeme.END, "", max(len(source) - 1, 0)))
    return found


class _Lexer:
    """A place in the source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        return self.source[self.at + ahead : self.at + ahead + 1]

    def next(self) -> Token | None:
        self.skip()
        if self.at >= len(self.source):
            return None
        start = self.at
        char = self.peek()
        following = self.peek(1)
        if char in "'\"":
            return Token(Lexeme.STRING, self.text(char), start)
        if char in "bB" and following and following in "'\"":
            self.at += 1
            return Token(Lexeme.BYTES, self.text(following, is_bytes=True), start)
        if char == "`":
            return Token(Lexeme.STRING, self.raw_text(), start)
        is_pointer_name = start > 0 and self.source[start - 1] == "#"
        if ("0" <= char <= "9" and not is_pointer_name) or (char == "." and following in DIGITS - {"_"} and following):
            return Token(Lexeme.NUMBER, self.number(), start)
        if is_pointer_name and is_alphanumeric(char):
            return Token(Lexeme.IDENTIFIER, self.word().value, start)
        if is_letter(char):
            return self.word()
        if char in "([{)]}":
            return self.take(Lexeme.BRACKET, 1)
        return self.operator(char, following)

    def take(self, kind: Lexeme, length: int) -> Token:
        token = Token(kind, self.source[self.at : self.at + length], self.at)
        self.at += length
        return token

    def operator(self, char: str, following: str) -> Token:
        if char in ",;%+-^/":
            return self.take(Lexeme.OPERATOR, 1)
        if char in "|:.#" and following == char:
            return self.take(Lexeme.OPERATOR, 2)
        if char in "|:.#":
            return self.take(Lexeme.OPERATOR, 1)
        if char == "?":
            return self.take(Lexeme.OPERATOR, 2 if following and following in ".?" else 1)
        if char in "&!=*<>":
            return self.take(Lexeme.OPERATOR, 2 if following and following in "&=*" else 1)
        shown = f" '{char}'" if unicodedata.category(char)[0] in "LMNPS" else ""
        raise LexicalError(f"unrecognized character: U+{ord(char):04X}{shown}", self.at)

    def skip(self) -> None:
        """Pass over spaces and comments."""
        while self.at < len(self.source):
            if self.peek() in SPACES:
                self.at += 1
            elif self.source.startswith("//", self.at):
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            elif self.source.startswith("/*", self.at):
                end = self.source.find("*/", self.at + 2)
                if end < 0:
                    raise LexicalError("unclosed comment", len(self.source))
                self.at = end + 2
            else:
                return

    def word(self) -> Token:
        start = self.at
        while self.at < len(self.source) and is_alphanumeric(self.source[self.at]):
            self.at += 1
        value = self.source[start : self.at]
        return Token(Lexeme.OPERATOR if value in WORDS else Lexeme.IDENTIFIER, value, start)

    def run(self, digits: frozenset[str] | set[str]) -> None:
        while self.at < len(self.source) and self.source[self.at] in digits:
            self.at += 1

    def number(self) -> str:
        start = self.at
        if self.peek() == ".":
            self.at += 1
        digits: frozenset[str] | set[str] = DIGITS
        if self.peek() == "0" and self.peek(1) and self.peek(1) in "xXoObB":
            digits = DIGITS_OF[self.peek(1).lower()]
            self.at += 2
        self.run(digits)
        if self.peek() == "." and self.peek(1) != ".":
            self.at += 1
            self.run(digits)
        elif self.peek() == ".":
            return self.source[start : self.at]
        if self.peek() and self.peek() in "eE":
            self.at += 1
            if self.peek() and self.peek() in "+-":
                self.at += 1
            self.run(digits)
        if self.peek() and is_alphanumeric(self.peek()):
            self.at += 1
            raise LexicalError(f"bad number syntax: {quoted(self.source[start : self.at])}", self.at - 1)
        return self.source[start : self.at]

    def raw_text(self) -> str:
        self.at += 1
        parts = []
        while True:
            end = self.source.find("`", self.at)
            if end < 0:
                raise LexicalError("literal not terminated", len(self.source))
            parts.append(self.source[self.at : end])
            self.at = end + 1
            if self.peek() != "`":
                return "`".join(parts)
            self.at += 1

    def text(self, quote: str, *, is_bytes: bool = False) -> str:
        """The value of a literal; that of bytes as the text that has them in Latin-1."""
        self.at += 1
        made: list[str | None] = []
        while True:
            char = self.peek()
            if char in ("", "\n"):
                raise LexicalError("literal not terminated", self.at)
            self.at += 1
            if char == quote:
                break
            if char != "\\":
                made.append(char.encode().decode("latin-1") if is_bytes else char)
            elif is_bytes and self.peek() and self.peek() in "uU":
                self.escape(quote)
                made.append(None)
            else:
                made.append(self.escape(quote))
        if None in made:
            raise LexicalError("unable to unescape string", self.at - 1)
        return "".join(part for part in made if part is not None)

    def escape(self, quote: str) -> str | None:
        """The character an escape stands for, the backslash read already; None for one that does not exist."""
        char = self.peek()
        self.at += 1
        if char in ESCAPES:
            return ESCAPES[char]
        if char == quote:
            return char
        if char == "u" and self.peek() == "{":
            return self.braced()
        if char and char in CODE_DIGITS:
            return _character(int(self.code_digits(CODE_DIGITS[char], HEX), 16), 0x10FFFF)
        if char and char in OCTAL:
            self.at -= 1
            return _character(int(self.code_digits(3, OCTAL), 8), 255)
        raise LexicalError("invalid char escape", min(self.at - 1, len(self.source)))

    def code_digits(self, count: int, digits: str) -> str:
        start = self.at
        while self.at < start + count:
            if not self.peek() or self.peek() not in digits:
                raise LexicalError("invalid char escape", self.at)
            self.at += 1
        return self.source[start : self.at]

    def braced(self) -> str | None:
        self.at += 1
        start = self.at
        while self.at < start + 6 and self.peek() and self.peek() in HEX:
            self.at += 1
        if self.peek() != "}" or self.at == start:
            raise LexicalError("invalid char escape", self.at - 1)
        self.at += 1
        return _character(int(self.source[start : self.at - 1], 16), 0x10FFFF)


def _character(code: int, largest: int) -> str | None:
    """The character of a code; half of a surrogate pair is nothing one can write, as in Go."""
    if code > largest:
        return None
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
