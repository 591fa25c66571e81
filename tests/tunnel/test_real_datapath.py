"""The control plane on the compiled datapath: the seam holds, and both ends still agree (CONTRACT)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilot.tunnel import TunnelSettings
from tests.tunnel import test_convergence, test_sessions
from tests.tunnel.real import RealNetwork

SEEDED = [
    test_convergence.test_first_contact_from_both_sides_at_once,
    test_convergence.test_rekeys_from_both_sides_under_loss,
    test_convergence.test_restarts_and_forgetting_under_loss,
]
SESSIONS = [
    test_convergence.test_an_answered_rekey_ends_on_one_new_key,
    test_sessions.test_a_superseded_key_is_refused,
    test_sessions.test_a_same_key_replay_moves_no_address,
    test_sessions.test_a_receiver_that_answers_nothing_rekeys,
    test_sessions.test_a_restarted_peer_is_followed_at_once,
    test_sessions.test_a_process_that_was_held_up_uses_no_session_that_has_run_out,
    test_sessions.test_frames_under_way_at_a_rekey_do_not_step_back,
    test_sessions.test_the_replaced_session_still_receives,
    test_sessions.test_stop_wipes_keys,
    # These need install_session to swap when it is given the session that is being kept for receiving.
    test_sessions.test_a_forgotten_old_key_does_not_cut_a_live_session,
    test_sessions.test_a_chain_of_old_keys_does_not_push_the_live_session_out,
    test_sessions.test_a_silent_receiver_brings_its_session_back_by_pongs,
    test_sessions.test_a_key_that_never_proves_itself_is_refused_for_a_while,
    test_sessions.test_the_same_old_key_again_and_again_does_no_more,
]


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenarios of the other modules run on compiled nodes here."""
    for module in (test_convergence, test_sessions):
        monkeypatch.setattr(module, "Network", RealNetwork)


@pytest.mark.parametrize("seed", range(200, 212))
@pytest.mark.parametrize("scenario", SEEDED, ids=lambda f: f.__name__[5:])
def test_convergence_of_compiled_nodes(scenario: Callable[[int], None], seed: int) -> None:
    scenario(seed)


@pytest.mark.parametrize("scenario", SESSIONS, ids=lambda f: f.__name__[5:])
def test_sessions_of_compiled_nodes(scenario: Callable[[], None]) -> None:
    scenario()


def test_path_mtu_of_compiled_nodes() -> None:
    network = RealNetwork(settings=TunnelSettings())
    a, b = network.pair()
    network.run(3.0)
    assert a.peer(b).segment_bytes == 1402
    assert b.peer(a).segment_bytes == 1402


def test_an_hour_of_compiled_nodes() -> None:
    network = RealNetwork()
    a, b = network.pair()
    for _ in range(36):
        a.send(b, b"tick")
        network.run(100.0)
    assert len(b.received()) == 37
    assert a.topics("tunnel.path_suspect") == []
