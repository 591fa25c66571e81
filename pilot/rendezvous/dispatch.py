"""From a request to its answer: finds the handler, turns every failure into an error answer (rendezvous room, L8)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.protocol.registry import Message, error_reply, ok_reply
from pilot.rendezvous import admin, directory, networks, roles, trust
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.registry import Caller, Handler, Registry, Request

logger = logging.getLogger("pilot.rendezvous")

HANDLERS: Final[Mapping[str, Handler]] = {
    **directory.HANDLERS,
    **trust.HANDLERS,
    **networks.HANDLERS,
    **roles.HANDLERS,
    **admin.HANDLERS,
}
"""Request type -> handler."""


def handle(registry: Registry, fields: Mapping[str, Any], caller: Caller) -> Message:
    """The answer to one request; never raises. Failures carry their own words, the known server masks some of them.

    Changes are in the journal when this returns, not yet on disk: `answer` waits for that.
    """
    request = Request(fields, caller)
    handler = HANDLERS.get(request.kind)
    if handler is None:
        return error_reply(f'invalid request: unknown message type "{request.kind[:64]}"')
    try:
        return ok_reply(request.kind, handler(registry, request))
    except (RegistryError, InvalidValueError) as error:
        return error_reply(str(error))
    except Exception:
        if registry.error_log.take(registry.now()):
            logger.exception("the handler of %s failed", request.kind)
        return error_reply("request failed")


async def answer(registry: Registry, journal: Journal, fields: Mapping[str, Any], caller: Caller) -> Message:
    """The answer to one request, once everything it says is durable.

    Reads wait too when a change is under way: an answer never tells of something a crash could still undo. If cancelled
    the request has been carried out and will be stored.
    """
    if journal.is_blocked:
        return error_reply("cannot store changes, try again later")
    reply = handle(registry, fields, caller)
    try:
        await journal.durable()
    except RegistryError as error:
        return error_reply(str(error))
    return reply
