"""Requests and answers of the name server as text (plugin policy, L11). Source: services.md 6.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from pilot.coreapi import Addr, InvalidValueError, PeerNotFoundError, RegistryError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PORT",
    "Request",
    "ServiceRecord",
    "check_name",
    "parse_records_untrusted",
    "parse_request_untrusted",
    "parse_services_untrusted",
    "request_text",
]

PORT: Final = 53
MAX_MESSAGE_BYTES: Final = 65535
MAX_NAME_BYTES: Final = 253
MAX_QUOTED_CHARS: Final = 100
"""Of what a stranger sent, in our answers and messages."""

# Command and record type to what follows them; the words in angle brackets are those of the official error texts.
FORMS: Final = {
    ("QUERY", "A"): ("name",),
    ("QUERY", "N"): ("name",),
    ("QUERY", "S"): ("net_id", "port"),
    ("REGISTER", "A"): ("name", "address"),
    ("REGISTER", "N"): ("name", "net_id"),
    ("REGISTER", "S"): ("name", "address", "net_id", "port"),
}
COMMANDS: Final = frozenset(command for command, _ in FORMS)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; what its form has no place for is empty."""

    command: str
    """QUERY or REGISTER."""
    kind: str
    """A, N or S."""
    name: str = ""
    address: Addr | None = None
    net_id: int = 0
    port: int = 0


class ServiceRecord(NamedTuple):
    """One service of a network."""

    name: str
    address: Addr
    port: int


def parse_request_untrusted(data: bytes) -> Request:
    """`data` as a request, names in lower case.

    Raises:
        InvalidValueError: it is none; the message is what follows `ERR `.
    """
    try:
        fields = data.decode("utf-8").split()
    except UnicodeDecodeError:
        raise InvalidValueError("request is not UTF-8") from None
    if len(fields) < 2:
        raise InvalidValueError("too few fields")
    command, kind = fields[0].upper(), fields[1].upper()
    if command not in COMMANDS:
        raise InvalidValueError(f"unknown command: {_quoted(fields[0])}")
    form = FORMS.get((command, kind))
    if form is None:
        raise InvalidValueError(f"unknown record type: {_quoted(fields[1])}")
    values = fields[2:]
    if len(values) < len(form):
        raise InvalidValueError(f"{command} {kind} requires {' '.join(f'<{field}>' for field in form)}")
    if len(values) > len(form):
        raise InvalidValueError(f"too many fields ({len(fields)} > {len(form) + 2})")
    found = dict(zip(form, values, strict=True))
    return Request(
        command,
        kind,
        name=check_name(found["name"]) if "name" in found else "",
        address=_address_untrusted(found["address"]) if "address" in found else None,
        net_id=_number_untrusted("net_id", found["net_id"], 0) if "net_id" in found else 0,
        port=_number_untrusted("port", found["port"], 1) if "port" in found else 0,
    )


def request_text(request: Request) -> str:
    """The line that asks for it."""
    values = (getattr(request, field) for field in FORMS[request.command, request.kind])
    return " ".join([request.command, request.kind, *map(str, values)])


def check_name(name: str) -> str:
    """`name` in lower case, if a record may have it: printable, without white space, at most 253 bytes.

    Raises:
        InvalidValueError: it may not.
    """
    folded = name.lower()
    size = max(len(name.encode("utf-8", "surrogatepass")), len(folded.encode("utf-8", "surrogatepass")))
    if size > MAX_NAME_BYTES:
        raise InvalidValueError(f"name too long: {size} bytes (max {MAX_NAME_BYTES})")
    if not name or not name.isprintable() or name.split() != [name]:
        raise InvalidValueError(f"invalid name: {_quoted(name)}")
    return folded


# ------------------------------------------------------------------------------------------------- answers


def parse_records_untrusted(data: bytes, request: Request) -> list[str]:
    """The values of the single line that answers `request`: after kind and name; none after `OK`.

    Raises:
        PeerNotFoundError: there is no such name.
        RegistryError: another refusal, or no answer to this request.
    """
    line = _text_untrusted(data, request)
    fields = line.split()
    if request.command == "REGISTER":
        if fields == ["OK"]:
            return []
    elif len(fields) == 3 and fields[0].upper() == request.kind and fields[1].lower() == request.name:
        return fields[2:]
    raise _unusable(line)


def parse_services_untrusted(data: bytes, request: Request) -> list[ServiceRecord]:
    """The services in the lines that answer a `QUERY S`, in their order.

    Raises:
        RegistryError: a refusal, or no answer to this request.
    """
    found = []
    lines = _text_untrusted(data, request).splitlines()
    for line in lines:
        match line.split():
            case [kind] if kind.upper() == "S" and len(lines) == 1:
                return []
            case [kind, name, address, port] if kind.upper() == "S" and port == str(request.port):
                found.append(
                    ServiceRecord(_name_answer_untrusted(name), address_answer_untrusted(address), request.port)
                )
            case _:
                raise _unusable(line)
    if not found:
        raise _unusable("")
    return found


def address_answer_untrusted(text: str) -> Addr:
    """An address in an answer. Raises `RegistryError` when it is none."""
    try:
        return Addr.parse(text)
    except InvalidValueError:
        raise _unusable(text) from None


def net_id_answer_untrusted(text: str) -> int:
    """A network id in an answer. Raises `RegistryError` when it is none."""
    try:
        return _number_untrusted("net_id", text, 0)
    except InvalidValueError:
        raise _unusable(text) from None


def _name_answer_untrusted(text: str) -> str:
    try:
        return check_name(text)
    except InvalidValueError:
        raise _unusable(text) from None


def _text_untrusted(data: bytes, request: Request) -> str:
    text = data.decode("utf-8", "replace").strip()
    word, _, reason = text.partition(" ")
    if word.upper() != "ERR":
        return text
    what = "network" if request.kind == "N" else "name"
    if request.command == "QUERY" and reason == f'{what} "{request.name}" not found':
        raise PeerNotFoundError(f"the name server has no {what} {request.name!r}")
    raise RegistryError(f"the name server refuses {request_text(request)!r}: {_quoted(reason)}")


def _unusable(text: str) -> RegistryError:
    return RegistryError(f"the name server gave an unusable answer: {_quoted(text)!r}")


def _address_untrusted(text: str) -> Addr:
    try:
        return Addr.parse(text)
    except InvalidValueError:
        raise InvalidValueError(f"invalid address: {_quoted(text)}") from None


def _number_untrusted(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65535):
        raise InvalidValueError(f"invalid {name}: {_quoted(text)} is no number from {least} to 65535")
    return int(text)


def _quoted(text: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text[:MAX_QUOTED_CHARS])
    return shown + "..." if len(text) > MAX_QUOTED_CHARS else shown
