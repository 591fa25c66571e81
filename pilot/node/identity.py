"""The node's own identity: its Ed25519 key, the official identity file, and key rotation that survives a crash (L9)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._fast.addr import Addr
from pilot._fast.errors import BusyError, InvalidValueError
from pilot.coreapi.files import read_limited, read_with_mode, write_atomically
from pilot.protocol.signed_request import RequestEnvelope

if TYPE_CHECKING:
    import os

    from typing_extensions import Buffer

__all__ = ["IDENTITY_NAME", "LocalIdentity", "Rotation"]

IDENTITY_NAME = "identity.json"
ROTATION_SUFFIX = ".next"
MAX_IDENTITY_BYTES = 64 * 1024

_log = logging.getLogger("pilot.identity")


@dataclass(frozen=True, slots=True)
class Rotation:
    """A key change the registry was asked for and whose outcome is not yet known."""

    node_id: int
    public_key: bytes


class LocalIdentity:
    """A `coreapi.Identity` that holds the private key, in memory only or backed by an identity file.

    The file is the official one: a JSON object with `private_key` (base64 of seed and public key, 64 bytes) and
    `public_key` (base64, 32 bytes), two-space indent, no final newline, mode 0600. A running rotation keeps the new key
    in a second file (`<name>.next`) until it is settled, so a crash at any moment loses neither key.
    Source: reference services.md, section 11.
    """

    def __init__(self, private_key: Ed25519PrivateKey, path: Path | None = None) -> None:
        self._path = path
        self._use(private_key)
        self._node_id = 0
        self._address = Addr(0, 0)
        self._next: tuple[Ed25519PrivateKey, Rotation] | None = None

    @classmethod
    def generate(cls) -> Self:
        """A new identity that lives in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The identity in the file at `path`, links followed.

        Raises:
            FileNotFoundError: there is none.
            InvalidValueError: group or others may read it, it is damaged, or its two keys do not belong together; the
                file is left untouched.
            OSError: it cannot be read.
        """
        path = Path(path)
        identity = cls(_read_key(path), path)
        identity._load_rotation()
        return identity

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str] | None) -> Self:
        """The identity in the file at `path`, which is created (0600, atomically) if missing; None: in memory only.

        Blocks for one fsync when it creates. The caller holds the lock of the directory (`StateDirectory`).

        Raises:
            InvalidValueError: as `load`.
            OSError: the file cannot be read or written.
        """
        if path is None:
            return cls.generate()
        try:
            return cls.load(path)
        except FileNotFoundError:
            identity = cls(Ed25519PrivateKey.generate(), Path(path))
            write_atomically(Path(path), _encode(identity._private_key))
            return identity

    @property
    def node_id(self) -> int:
        """The id the registry gave this node, 0 before the first registration."""
        return self._node_id

    @property
    def address(self) -> Addr:
        """The node's backbone address, the zero address before the first registration."""
        return self._address

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""
        return self._public_key

    def sign(self, msg: Buffer) -> bytes:
        """The 64-byte Ed25519 signature over `msg`."""
        return self._private_key.sign(msg if isinstance(msg, bytes) else bytes(msg))

    def sign_request(self, body: Buffer, audience: str, *, now: float | None = None) -> tuple[str, bytes]:
        """An envelope for `body`, a request to the third party `audience`, and its signature (two HTTP headers, say).

        `now` is in unix seconds, None for the clock's. The receiver checks both with
        `pilot.protocol.signed_request.verify_request_untrusted`. Source: services.md 11.

        Raises:
            InvalidValueError: the audience is not 1 to 64 of `a-z 0-9 . -`.
        """
        seconds = int(time.time() if now is None else now)
        digest = hashlib.sha256(body).digest()
        envelope = str(RequestEnvelope(self._address, seconds, secrets.token_bytes(8), digest, audience))
        return envelope, self.sign(envelope.encode())

    def _registered(self, node_id: int, address: Addr) -> None:
        """The directory tells what the registry answered."""
        self._node_id = node_id
        self._address = address

    @property
    def rotation(self) -> Rotation | None:
        """The rotation that is not settled, this process's or one that a crash interrupted; None if there is none."""
        return self._next[1] if self._next else None

    def begin_rotation(self) -> bytes:
        """Makes the next key, keeps it safe on disk and returns its public half; signing goes on with the present key.

        After it the registry is asked, then `commit_rotation` or `abandon_rotation` called. Blocks for one fsync.

        Raises:
            BusyError: a rotation is not settled yet.
            OSError: the new key could not be written; nothing has changed.
        """
        if self._next:
            where = f", or delete {_rotation_path(self._path)} to give it up" if self._path else ""
            raise BusyError(f"a key rotation is not settled yet: wait until the registry tells its outcome{where}")
        key = Ed25519PrivateKey.generate()
        rotation = Rotation(self._node_id, _public(key))
        if self._path:
            write_atomically(_rotation_path(self._path), _encode(key, node_id=rotation.node_id))
        self._next = key, rotation
        return rotation.public_key

    def commit_rotation(self) -> None:
        """The registry has accepted the next key: writes it to the identity file and signs with it from now on.

        Raises:
            OSError: the file could not be written; the old key stays in use and the rotation unsettled.
        """
        if self._next is None:
            return
        key, _ = self._next
        if self._path:
            write_atomically(self._path, _encode(key))
        self._use(key)
        self.abandon_rotation()

    def abandon_rotation(self) -> None:
        """The registry has refused the next key, or it is in use already: forgets it."""
        self._next = None
        if self._path:
            _rotation_path(self._path).unlink(missing_ok=True)

    def _use(self, key: Ed25519PrivateKey) -> None:
        self._private_key = key
        self._public_key = _public(key)

    def _load_rotation(self) -> None:
        assert self._path is not None
        path = _rotation_path(self._path)
        try:
            key = _read_key(path)
            node_id = json.loads(read_limited(path, MAX_IDENTITY_BYTES)).get("node_id")
        except FileNotFoundError:
            return
        if type(node_id) is not int or not 0 < node_id < 0xFFFFFFFF:
            raise InvalidValueError(f"rotation file {path} names no node: move it away to keep the present key")
        if _public(key) == self._public_key:  # the crash came after the identity file was replaced
            self.abandon_rotation()
            return
        _log.warning("a key rotation of node %d was interrupted; the registry will tell which key is valid", node_id)
        self._next = key, Rotation(node_id, _public(key))

    def __repr__(self) -> str:
        where = f", path={str(self._path)!r}" if self._path else ""
        return f"<LocalIdentity node_id={self._node_id} public_key={self._public_key.hex()[:16]}...{where}>"


def _rotation_path(path: Path) -> Path:
    return path.with_name(path.name + ROTATION_SUFFIX)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _encode(key: Ed25519PrivateKey, **extra: int) -> bytes:
    public = _public(key)
    fields = {
        "private_key": base64.b64encode(key.private_bytes_raw() + public).decode(),
        "public_key": base64.b64encode(public).decode(),
    }
    return json.dumps(fields | extra, indent=2).encode()


def _read_key(path: Path) -> Ed25519PrivateKey:
    """The key in an identity file.

    Nothing here chains exceptions: those of the decoders carry the text of the file, and with it the key.
    """
    data, mode = read_with_mode(path, MAX_IDENTITY_BYTES)
    if mode & 0o077:
        raise InvalidValueError(
            f"identity file {path} has loose permissions (mode {mode:o}); chmod 600 {path} and retry"
        )
    problem, fields = _decode_object(data)
    if problem:
        raise InvalidValueError(
            f"identity file {path} cannot be read: {problem}; restore it, or move it away to get a new identity"
        )
    private, public = _decode_field(fields, "private_key"), _decode_field(fields, "public_key")
    for name, value, size in (("private", private, 64), ("public", public, 32)):
        if value is None:
            raise InvalidValueError(f"identity file {path} cannot be read: its {name} key is no base64 text")
        if len(value) != size:
            raise InvalidValueError(f"identity file {path}: invalid {name} key size: {len(value)}, expected {size}")
    assert private is not None
    assert public is not None
    key = Ed25519PrivateKey.from_private_bytes(private[:32])
    if not (hmac.compare_digest(private[32:], public) and hmac.compare_digest(_public(key), public)):
        raise InvalidValueError(f"identity file {path} corrupted: public key does not match private key")
    return key


def _decode_object(data: bytes) -> tuple[str, dict[str, object]]:
    """What is wrong with it (empty: nothing) and the JSON object in `data`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "it is no JSON", {}
    return ("", value) if isinstance(value, dict) else ("it holds no JSON object", {})


def _decode_field(fields: dict[str, object], name: str) -> bytes | None:
    text = fields.get(name)
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
