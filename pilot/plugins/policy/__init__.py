"""Policies of networks: what a member may do, by rules its network's admin wrote (plugin policy, L11)."""

from pilot.plugins.policy.commands import PolicyCommands
from pilot.plugins.policy.compiled import (
    CompiledPolicy,
    Directive,
    EvaluationError,
    Outcome,
    compile_policy,
    load_policy_in_thread_untrusted,
    load_policy_untrusted,
)
from pilot.plugins.policy.document import (
    MAX_DOCUMENT_BYTES,
    Action,
    ActionType,
    PolicyDocument,
    Rule,
    parse_document_untrusted,
)
from pilot.plugins.policy.managed import ManagedRules, ManagedRunner
from pilot.plugins.policy.manager import Manager
from pilot.plugins.policy.service import PolicyService

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "Action",
    "ActionType",
    "CompiledPolicy",
    "Directive",
    "EvaluationError",
    "ManagedRules",
    "ManagedRunner",
    "Manager",
    "Outcome",
    "PolicyCommands",
    "PolicyDocument",
    "PolicyService",
    "Rule",
    "compile_policy",
    "load_policy_in_thread_untrusted",
    "load_policy_untrusted",
    "parse_document_untrusted",
]
