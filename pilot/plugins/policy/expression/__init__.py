"""The language of policy rules: compiled once, evaluated in microseconds (plugin policy, L11; services.md 9.4-9.6).

`compile_expression(text, variables)` refuses what the official compiler refuses, with its words; the `Program` it
returns is called with the values of the variables.
"""

from pilot.plugins.policy.expression.errors import CompileError, ExpressionError
from pilot.plugins.policy.expression.program import Program, compile_expression
from pilot.plugins.policy.expression.types import ANY, BOOL, FLOAT, INT, LIST_OF_STRING, STRING, Type, array

__all__ = [
    "ANY",
    "BOOL",
    "FLOAT",
    "INT",
    "LIST_OF_STRING",
    "STRING",
    "CompileError",
    "ExpressionError",
    "Program",
    "Type",
    "array",
    "compile_expression",
]
