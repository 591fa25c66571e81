"""The identity file, key rotation across crashes, and the state directory (L9)."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot._fast.addr import Addr
from pilot._fast.errors import BusyError, InvalidValueError
from pilot.node.identity import LocalIdentity
from pilot.node.state import StateDirectory

VECTORS = json.loads((Path(__file__).parent / "vectors" / "services.json").read_text())
VECTOR = VECTORS["identity"]
OFFICIAL: str = VECTOR["file_text"]
KEYS: dict[str, str] = json.loads(OFFICIAL)
SECRET = KEYS["private_key"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "identity.json"


def place(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --------------------------------------------------------------------------------------------------- file


def test_the_official_file_is_read(path: Path) -> None:
    identity = LocalIdentity.load(place(path, OFFICIAL))
    assert identity.public_key == base64.b64decode(KEYS["public_key"])
    Ed25519PublicKey.from_public_bytes(identity.public_key).verify(identity.sign(b"text"), b"text")
    assert path.read_text() == OFFICIAL


def test_our_file_is_byte_for_byte_the_official_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = LocalIdentity.load(place(path, OFFICIAL))
    written = path.with_name("ours.json")
    monkeypatch.setattr("pilot.node.identity.Ed25519PrivateKey.generate", lambda: official._private_key)
    LocalIdentity.load_or_create(written)
    assert written.read_text() == OFFICIAL
    assert mode_of(written) == 0o600


def test_a_missing_file_is_created_once(path: Path) -> None:
    first = LocalIdentity.load_or_create(path)
    assert LocalIdentity.load_or_create(path).public_key == first.public_key
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_load_of_a_missing_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalIdentity.load(path)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    identity = LocalIdentity.load_or_create(None)
    identity.begin_rotation()
    identity.commit_rotation()
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "key.json"
    target.parent.mkdir()
    place(target, OFFICIAL)
    path.symlink_to(target)
    identity = LocalIdentity.load(path)
    identity.begin_rotation()
    identity.commit_rotation()
    assert path.is_symlink()
    assert LocalIdentity.load(target).public_key == identity.public_key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o601, 0o620])
def test_loose_permissions_are_refused(path: Path, mode: int) -> None:
    place(path, OFFICIAL, mode)
    with pytest.raises(InvalidValueError, match=rf"loose permissions \(mode {mode:o}\); chmod 600 {path} and retry"):
        LocalIdentity.load_or_create(path)
    assert (path.read_text(), mode_of(path)) == (OFFICIAL, mode)


def with_keys(private: bytes, public: bytes) -> str:
    keys = {"private_key": private, "public_key": public}
    return json.dumps({name: base64.b64encode(key).decode() for name, key in keys.items()})


PRIVATE, PUBLIC = base64.b64decode(SECRET), base64.b64decode(KEYS["public_key"])

DAMAGED = {
    "other public key": (with_keys(PRIVATE, bytes(32)), "corrupted: public key does not match private key"),
    "other second half": (with_keys(PRIVATE[:32] + bytes(32), PUBLIC), "corrupted"),
    "other seed": (with_keys(bytes(32) + PRIVATE[32:], PUBLIC), "corrupted"),
    "consistent halves, wrong seed": (with_keys(PRIVATE[:32] + bytes(32), bytes(32)), "corrupted"),
    "seed only": (with_keys(PRIVATE[:32], PUBLIC), "invalid private key size: 32"),
    "short public key": (with_keys(PRIVATE, PUBLIC[:31]), "invalid public key size: 31"),
    "empty file": ("", "it is no JSON"),
    "half a file": (OFFICIAL[: len(OFFICIAL) // 2], "it is no JSON"),
    "no object": ('["private_key"]', "no JSON object"),
    "no keys": ("{}", "private key is no base64"),
    "key is a number": ('{"private_key": 1, "public_key": 2}', "private key is no base64"),
    "no base64": (OFFICIAL.replace("==", "=!"), "no base64"),
    "not ASCII": (OFFICIAL.replace("5+", "é+"), "no base64"),
    "bad UTF-8": (b'{"private_key": "\xff\xfe"}', "it is no JSON"),
    "deep": ("[" * 20_000, "it is no JSON"),
    "too long": (OFFICIAL + " " * 70_000, "longer than"),
}


@pytest.mark.parametrize(("text", "wording"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_and_left_alone(path: Path, text: str | bytes, wording: str) -> None:
    place(path, text)
    before = path.read_bytes()
    with pytest.raises(InvalidValueError, match=wording) as caught:
        LocalIdentity.load_or_create(path)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # a decoder's exception would carry the text of the file
    assert SECRET[:16] not in str(caught.value)


def test_nothing_printable_holds_the_private_key(path: Path) -> None:
    identity = LocalIdentity.load(place(path, OFFICIAL))
    identity.begin_rotation()
    for text in (repr(identity), str(identity), repr(identity.rotation)):
        assert SECRET[:16] not in text
        assert PRIVATE[:32].hex()[:16] not in text
    assert identity.public_key.hex()[:16] in repr(identity)


def test_the_registration_is_visible(path: Path) -> None:
    identity = LocalIdentity.load(place(path, OFFICIAL))
    identity._registered(9, Addr(0, 9))
    assert (identity.node_id, identity.address) == (9, Addr(0, 9))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_signs_any_bytes(kind: type) -> None:
    identity = LocalIdentity.generate()
    Ed25519PublicKey.from_public_bytes(identity.public_key).verify(identity.sign(kind(b"text")), b"text")


# ----------------------------------------------------------------------------------------------- rotation


def rotating(path: Path) -> tuple[LocalIdentity, bytes, bytes]:
    identity = LocalIdentity.load_or_create(path)
    identity._registered(5, Addr(0, 5))
    old = identity.public_key
    return identity, old, identity.begin_rotation()


def test_the_file_changes_only_at_the_commit(path: Path) -> None:
    identity, old, new = rotating(path)
    assert identity.public_key == LocalIdentity.load(path).public_key == old
    assert mode_of(path.with_name("identity.json.next")) == 0o600
    identity.commit_rotation()
    assert identity.public_key == LocalIdentity.load(path).public_key == new
    assert set(json.loads(path.read_text())) == {"private_key", "public_key"}
    assert [p.name for p in path.parent.iterdir()] == ["identity.json"]


def test_an_abandoned_rotation_leaves_the_old_key(path: Path) -> None:
    identity, old, _ = rotating(path)
    identity.abandon_rotation()
    assert identity.rotation is None
    assert identity.public_key == LocalIdentity.load(path).public_key == old
    assert [p.name for p in path.parent.iterdir()] == ["identity.json"]


def test_a_crash_before_the_outcome_keeps_both_keys(path: Path) -> None:
    _, old, new = rotating(path)
    again = LocalIdentity.load(path)
    assert again.public_key == old
    assert again.rotation is not None
    assert (again.rotation.node_id, again.rotation.public_key) == (5, new)
    again.commit_rotation()
    assert LocalIdentity.load(path).public_key == new


def test_a_crash_after_the_file_was_replaced(path: Path) -> None:
    identity, _, new = rotating(path)
    kept = path.with_name("identity.json.next").read_bytes()
    identity.commit_rotation()
    place(path.with_name("identity.json.next"), kept)
    again = LocalIdentity.load(path)
    assert (again.public_key, again.rotation) == (new, None)
    assert [p.name for p in path.parent.iterdir()] == ["identity.json"]


def test_a_failing_disk_leaves_the_old_key_in_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, old, new = rotating(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pilot.coreapi.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        identity.commit_rotation()
    monkeypatch.undo()
    assert identity.public_key == LocalIdentity.load(path).public_key == old
    assert identity.rotation is not None
    assert identity.rotation.public_key == new
    assert sorted(p.name for p in path.parent.iterdir()) == ["identity.json", "identity.json.next"]


def test_one_rotation_at_a_time(path: Path) -> None:
    identity, _, _ = rotating(path)
    with pytest.raises(BusyError, match=r"identity\.json\.next"):
        identity.begin_rotation()


@pytest.mark.parametrize("node_id", ["0", "-1", '"5"', "true", "4294967295", "null"])
def test_a_rotation_file_without_a_node_is_refused(path: Path, node_id: str) -> None:
    LocalIdentity.load_or_create(path)
    other = with_keys(PRIVATE, PUBLIC)[:-1] + f', "node_id": {node_id}}}'
    place(path.with_name("identity.json.next"), other)
    with pytest.raises(InvalidValueError, match="names no node"):
        LocalIdentity.load(path)


# -------------------------------------------------------------------------------------- state directory


def test_the_directory_is_private_and_locked(tmp_path: Path) -> None:
    where = tmp_path / "deep" / "node"
    with StateDirectory(where):
        assert mode_of(where) == 0o700
        with pytest.raises(BusyError, match=str(where)):
            StateDirectory(where).open()
    with StateDirectory(where) as again:
        again.open()


def test_the_lock_holds_between_processes_and_dies_with_them(tmp_path: Path) -> None:
    code = f"""
import sys
from pilot.node.state import StateDirectory
StateDirectory({str(tmp_path)!r}).open()
print("locked", flush=True)
sys.stdin.read()
"""
    root = Path(__file__).parent.parent
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdin=-1, stdout=-1, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match="in use by another node"):
            StateDirectory(tmp_path).open()
        child.kill()
    with StateDirectory(tmp_path):
        pass


def test_json_is_stored_atomically_and_privately(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        assert state.read_json("trust.json") is None
        state.write_json("trust.json", {"trusted": [], "name": "é"})
        assert state.read_json("trust.json") == {"trusted": [], "name": "é"}
        assert (tmp_path / "trust.json").read_text() == '{\n  "trusted": [],\n  "name": "é"\n}'
        assert mode_of(tmp_path / "trust.json") == 0o600
        with pytest.raises(TypeError):
            state.write_json("trust.json", object())
        assert state.read_json("trust.json") == {"trusted": [], "name": "é"}
        state.remove("trust.json")
        state.remove("trust.json")
        assert state.read_json("trust.json") is None


@pytest.mark.parametrize("text", ["{", "[" * 50_000, b"\xff"], ids=["half", "deep", "no text"])
def test_damaged_state_names_the_file_and_stays(tmp_path: Path, text: str | bytes) -> None:
    place(tmp_path / "trust.json", text)
    with pytest.raises(InvalidValueError, match=r"trust\.json is damaged"):
        StateDirectory(tmp_path).read_json("trust.json")
    assert (tmp_path / "trust.json").exists()


def test_an_ephemeral_node_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with StateDirectory(None) as one, StateDirectory(None) as other:
        for state in (one, other):
            state.write_json("trust.json", {})
            assert state.read_json("trust.json") is None
            assert state.file("identity.json") is None
            state.remove("trust.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", ".lock"])
def test_names_with_a_path_are_refused(tmp_path: Path, name: str) -> None:
    for state in (StateDirectory(tmp_path), StateDirectory(None)):
        with pytest.raises(InvalidValueError):
            state.file(name)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    place(tmp_path / "file", "x")
    with pytest.raises(InvalidValueError, match="is no directory"):
        StateDirectory(tmp_path / "file").open()


def test_the_lock_is_not_inherited_by_programs(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        assert not os.get_inheritable(state._lock_fd)
