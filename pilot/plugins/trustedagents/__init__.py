"""The list of agents whose handshakes are accepted unasked (plugin trustedagents, L11)."""

from pilot.plugins.trustedagents.document import Agent, AgentList
from pilot.plugins.trustedagents.service import TrustedAgentsHost, TrustedAgentsService

__all__ = ["Agent", "AgentList", "TrustedAgentsHost", "TrustedAgentsService"]
