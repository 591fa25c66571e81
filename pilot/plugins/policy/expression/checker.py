"""The static types of an expression, and everything the compiler refuses because of them (plugin policy, L11).

After the check every node knows its type, which the evaluator relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest

from pilot.plugins.policy.expression.arguments import ArgumentError, checked_result
from pilot.plugins.policy.expression.errors import CompileError, Failure, located
from pilot.plugins.policy.expression.functions import (
    BOOL_PREDICATES,
    BUILTINS,
    CHECKED,
    EXTRA_FUNCTIONS,
    METHODS,
    PREDICATES,
    SIGNATURES,
)
from pilot.plugins.policy.expression.nodes import (
    Binary,
    Builtin,
    Call,
    Chain,
    Conditional,
    Constant,
    Let,
    ListNode,
    MapNode,
    Member,
    Name,
    Node,
    Pointer,
    Predicate,
    Sequence,
    Slice,
    Unary,
)
from pilot.plugins.policy.expression.regexes import pattern_untrusted
from pilot.plugins.policy.expression.types import (
    ANY,
    ANY_FUNCTION,
    BOOL,
    BYTES,
    DURATION,
    FLOAT,
    GROUPS,
    INT,
    INTEGERS,
    INTERFACE,
    MAP,
    NIL,
    NUMBERS,
    STRING,
    TIME,
    Kind,
    Signature,
    Type,
    array,
    comparable,
    function_type,
)

ARITHMETIC = frozenset({"+", "-", "*", "/", "%", "**", "^"})
_OF_CONSTANT: dict[type, Type] = {bool: BOOL, int: INT, float: FLOAT, str: STRING, bytes: BYTES, type(None): NIL}


def check(node: Node, source: str, variables: Mapping[str, Type], want: Type) -> None:
    """Give every node its type.

    Raises:
        CompileError: with the official text, when types do not fit or a name is unknown.
    """
    checker = _Checker(source, variables)
    found = checker.visit(node)
    if Kind.ANY not in (found.kind, want.kind) and found.kind is not want.kind:
        raise CompileError(f"expected {want.go}, but got {found if found.kind is Kind.NIL else found.go}")


class _Checker:
    def __init__(self, source: str, variables: Mapping[str, Type]) -> None:
        self.source = source
        self.variables = variables
        self.locals: list[tuple[str, Type]] = []
        self.predicates: list[dict[str, Type]] = []
        self.visitors: dict[type[Node], Callable[..., Type]] = {
            Constant: lambda node: _OF_CONSTANT[type(node.value)],
            Name: self.name,
            Pointer: self.pointer,
            Unary: self.unary,
            Binary: self.row,
            Chain: lambda node: self.visit(node.body),
            Member: self.member,
            Slice: self.slice,
            Call: self.call,
            Builtin: self.builtin,
            Predicate: lambda node: self.visit(node.body),
            Conditional: self.conditional,
            Let: self.let,
            Sequence: lambda node: [self.visit(step) for step in node.steps][-1],
            ListNode: self.list_node,
            MapNode: self.map_node,
        }

    def visit(self, node: Node) -> Type:
        node.type = self.visitors[type(node)](node)
        return node.type

    def error(self, message: str, node: Node) -> CompileError:
        return CompileError(located(message, self.source, node.at))

    # -- names

    def name(self, node: Name) -> Type:
        for name, found in reversed(self.locals):
            if name == node.name:
                node.is_local = True
                return found
        if node.name == "$env":
            return ANY
        if node.name in self.variables:
            return self.variables[node.name]
        if node.name in EXTRA_FUNCTIONS:
            return function_type(*EXTRA_FUNCTIONS[node.name])
        if node.name in BUILTINS:
            return ANY_FUNCTION
        raise self.error(f"unknown name {node.name}", node)

    def pointer(self, node: Pointer) -> Type:
        if node.name not in self.predicates[-1]:
            raise self.error(f"unknown pointer #{node.name}", node)
        return self.predicates[-1][node.name]

    def let(self, node: Let) -> Type:
        if node.name in self.variables:
            raise self.error(f"cannot redeclare {node.name}", node)
        if node.name in EXTRA_FUNCTIONS:
            raise self.error(f"cannot redeclare function {node.name}", node)
        if node.name in BUILTINS:
            raise self.error(f"cannot redeclare builtin {node.name}", node)
        if any(name == node.name for name, _ in self.locals):
            raise self.error(f"cannot redeclare variable {node.name}", node)
        self.locals.append((node.name, self.visit(node.value)))
        found = self.visit(node.body)
        self.locals.pop()
        return found

    # -- operators

    def unary(self, node: Unary) -> Type:
        found = self.visit(node.operand)
        if found.kind is Kind.ANY:
            return BOOL if node.operator in ("!", "not") else ANY
        fits = found.kind is Kind.BOOL if node.operator in ("!", "not") else found.kind in NUMBERS
        if not fits:
            raise self.error(f"invalid operation: {node.operator} (mismatched type {found})", node)
        return found

    def row(self, node: Binary) -> Type:
        """A row of operators from its left end, so that its length costs no depth."""
        row = [node]
        while isinstance(row[-1].left, Binary):
            row.append(row[-1].left)
        self.visit(row[-1].left)
        for each in reversed(row):
            each.type = self.binary(each, each.left.type, self.visit(each.right))
        return node.type

    def binary(self, node: Binary, left: Type, right: Type) -> Type:
        if node.operator == "in":
            return self.membership(node, left, right)
        found = operation(node.operator, left, right)
        if found is None:
            raise self.mismatch(node, left, right)
        if node.operator == "matches" and isinstance(node.right, Constant):
            try:
                pattern_untrusted(str(node.right.value))
            except Failure as error:
                raise self.error(str(error), node) from None
        return found

    def mismatch(self, node: Binary, left: Type, right: Type) -> CompileError:
        return self.error(f"invalid operation: {node.operator} (mismatched types {left} and {right})", node)

    def membership(self, node: Binary, left: Type, right: Type) -> Type:
        match right.kind:
            case Kind.ANY:
                pass
            case Kind.MAP:
                if right.go == MAP.go and left.kind not in (Kind.ANY, Kind.STRING):
                    raise self.error(f"cannot use {left} as type string in map key", node)
            case Kind.ARRAY:
                if not comparable(left, right.of):
                    raise self.error(f"cannot use {left} as type {right.of} in array", node)
            case Kind.STRING if left.kind is Kind.ANY:
                pass
            case Kind.TIME | Kind.LOCATION if left.kind in (Kind.ANY, Kind.STRING):
                pass
            case _:
                raise self.mismatch(node, left, right)
        return BOOL

    def conditional(self, node: Conditional) -> Type:
        found = self.visit(node.condition)
        if found.kind not in (Kind.BOOL, Kind.ANY):
            raise self.error(f"non-bool expression (type {found}) used as condition", node.condition)
        then, otherwise = self.visit(node.then), self.visit(node.otherwise)
        if then.kind is not Kind.NIL and otherwise == INTERFACE:
            return then
        if then == INTERFACE and otherwise.kind is not Kind.NIL:
            return ANY
        return _either(then, otherwise)

    # -- members

    def member(self, node: Member) -> Type:
        base, index = self.visit(node.base), self.visit(node.index)
        key = node.index.value if isinstance(node.index, Constant) and isinstance(node.index.value, str) else None
        if isinstance(node.base, Name) and node.base.name == "$env" and not node.base.is_local and key is not None:
            if key not in self.variables and not node.is_optional:
                raise self.error(f"unknown name {key}", node)
            return self.variables.get(key, ANY)
        match base.kind:
            case Kind.ANY:
                return ANY
            case Kind.ARRAY:
                if index.kind not in INTEGERS | {Kind.ANY}:
                    raise self.error(f"array elements can only be selected using an integer (got {index})", node.index)
                return base.of
            case Kind.MAP:
                if base.go == MAP.go and index.kind not in (Kind.ANY, Kind.STRING):
                    raise self.error(f"cannot use {index} to get an element from {base}", node.index)
                return base.of
        if key is None:
            raise self.error(f"type {base}[{index}] is undefined", node)
        if base.kind is Kind.TIME and node.is_callee and key in ("Date", "Clock"):
            raise self.error(f"func {key} returns more then two values", node)
        if key in METHODS.get(base.kind, {}):
            return function_type(*METHODS[base.kind][key], receiver=base.go)
        if base.kind is Kind.NIL:
            raise self.error(f"type nil has no field {key}", node)
        raise self.error(f"type {base} has no {'method' if node.is_callee else 'field'} {key}", node)

    def slice(self, node: Slice) -> Type:
        base = self.visit(node.base)
        if base.kind not in (Kind.ANY, Kind.ARRAY, Kind.STRING):
            raise self.error(f"cannot slice {base if base.kind is Kind.NIL else base.go}", node)
        for bound in (node.start, node.stop):
            if bound is not None and self.visit(bound).kind not in INTEGERS | {Kind.ANY}:
                raise self.error(f"non-integer slice index {bound.type}", bound)
        return ANY if base.kind is Kind.ANY else base

    # -- calls

    def call(self, node: Call) -> Type:
        callee = node.callee
        if isinstance(callee, Name) and callee.name in EXTRA_FUNCTIONS:
            return self.fixed(node, callee.name, (EXTRA_FUNCTIONS[callee.name],), node.arguments)
        found = self.visit(callee)
        if found.kind is Kind.FUNCTION and found.function and isinstance(callee, Member):
            assert isinstance(callee.index, Constant)
            return self.fixed(node, str(callee.index.value), (found.function,), node.arguments)
        if found.kind is Kind.NIL and isinstance(callee, Name):
            raise self.error(f"{callee.name} is nil; cannot call nil as function", node)
        if found.kind not in (Kind.ANY, Kind.FUNCTION):
            raise self.error(f"{found.go} is not callable", node)
        for argument in node.arguments:
            self.visit(argument)
        return found.function[1] if found.function else ANY

    def fixed(self, node: Node, name: str, variants: tuple[Signature, ...], arguments: list[Node]) -> Type:
        """The call of a function with fixed parameters, which may come in several variants."""
        complaint: CompileError | None = None
        visited: set[int] = set()
        for parameters, result in variants:
            complaint = self.complaint(node, name, parameters, arguments, visited)
            if complaint is None:
                return result
        assert complaint is not None
        raise complaint

    def complaint(
        self, node: Node, name: str, parameters: tuple[Type, ...], given: list[Node], visited: set[int]
    ) -> CompileError | None:
        """What is wrong with arguments, or None; those after the first of a wrong type are not looked at."""
        for parameter, argument in zip_longest(parameters, given):
            if argument is not None and id(argument) not in visited:
                visited.add(id(argument))
                self.visit(argument)
            if argument is None or parameter is None or len(parameters) != len(given):
                continue
            found = argument.type
            if parameter.kind is Kind.ANY:
                continue
            if found.kind is Kind.NIL:
                return self.error(f"cannot use nil as argument (type {parameter.go}) to call {name}", argument)
            if parameter.kind is Kind.FLOAT and found.kind in INTEGERS:
                _as_floats(argument)
            elif not _assignable(found, parameter):
                return self.error(f"cannot use {found.go} as argument (type {parameter.go}) to call {name} ", argument)
        if len(parameters) == len(given):
            return None
        return self.error(
            f"{'too many' if len(given) > len(parameters) else 'not enough'} arguments to call {name}", node
        )

    def builtin(self, node: Builtin) -> Type:
        if node.name in PREDICATES:
            return self.predicate_call(node)
        if node.name in CHECKED:
            if node.name == "get" and len(node.arguments) != 2:
                raise self.error(f"invalid number of arguments (expected 2, got {len(node.arguments)})", node)
            for argument in node.arguments:
                self.visit(argument)
            try:
                return checked_result(node, self.variables)
            except ArgumentError as error:
                raise self.error(error.message, error.node) from None
        return self.fixed(node, node.name, SIGNATURES[node.name], node.arguments)

    def predicate_call(self, node: Builtin) -> Type:
        items = self.visit(node.arguments[0])
        if items.kind not in (Kind.ARRAY, Kind.ANY):
            raise self.error(f"builtin {node.name} takes only array (got {items})", node.arguments[0])
        body: Type | None = None
        if len(node.arguments) > 1:
            body = self.predicate_body(node, items)
        if len(node.arguments) > 2:
            last = self.visit(node.arguments[2])
            if node.name == "sortBy" and last.kind not in (Kind.STRING, Kind.ANY):
                raise self.error(f"sortBy order argument must be a string (got {last})", node.arguments[2])
        match node.name:
            case "all" | "none" | "any" | "one":
                return BOOL
            case "filter":
                return array(items.of if items.kind is Kind.ARRAY else INTERFACE)
            case "sortBy":
                return items
            case "count" | "findIndex" | "findLastIndex":
                return INT
            case "find" | "findLast":
                return items.of
            case "groupBy":
                return GROUPS
            case "map":
                return array(body or ANY)
        return body or items.of

    def predicate_body(self, node: Builtin, items: Type) -> Type:
        known = {"": items.of}
        if node.name in ("map", "reduce"):
            known["index"] = INT
        if node.name == "reduce":
            known["acc"] = ANY
        self.predicates.append(known)
        body = self.visit(node.arguments[1])
        self.predicates.pop()
        if body.kind is Kind.NIL:
            inputs = "two" if node.name == "reduce" else "one"
            raise self.error(f"predicate should has {inputs} input and one output param", node.arguments[1])
        if node.name in BOOL_PREDICATES and body.kind not in (Kind.BOOL, Kind.ANY):
            raise self.error(f"predicate should return boolean (got {body.go})", node.arguments[1])
        return body

    # -- literals

    def list_node(self, node: ListNode) -> Type:
        found = [self.visit(item) for item in node.items]
        if not found:
            return array(ANY)
        return array(found[0]) if all(each == found[0] for each in found) else array()

    def map_node(self, node: MapNode) -> Type:
        for key, value in node.pairs:
            self.visit(key)
            self.visit(value)
        return MAP


def operation(operator: str, left: Type, right: Type) -> Type | None:
    """The type of the result of an operator (not of `in`), or None where the operands do not fit."""
    kinds = {left.kind, right.kind}
    match operator:
        case "==" | "!=":
            return BOOL if comparable(left, right) else None
        case "<" | ">" | "<=" | ">=":
            known = kinds - {Kind.ANY}
            alike = known <= NUMBERS or (len(known) == 1 and known <= {Kind.STRING, Kind.TIME, Kind.DURATION})
            return BOOL if alike else None
        case "and" | "or" | "&&" | "||":
            return BOOL if kinds <= {Kind.BOOL, Kind.ANY} else None
        case "matches" if left == BYTES and right.kind in (Kind.STRING, Kind.ANY):
            return BOOL
        case "matches" | "contains" | "startsWith" | "endsWith":
            return BOOL if kinds <= {Kind.STRING, Kind.ANY} else None
        case "??":
            return _either(left, right)
        case "..":
            return array(INT) if kinds <= INTEGERS | {Kind.ANY} else None
        case "%":
            return INT if kinds <= INTEGERS | {Kind.ANY} else None
        case "/" | "**" | "^":
            return FLOAT if kinds <= NUMBERS | {Kind.ANY} else None
    return _sum_or_product(operator, left.kind, right.kind)


def _sum_or_product(operator: str, left: Kind, right: Kind) -> Type | None:
    kinds = {left, right}
    if Kind.ANY in kinds:
        fitting = {
            "+": NUMBERS | {Kind.STRING, Kind.TIME, Kind.DURATION},
            "-": NUMBERS | {Kind.TIME, Kind.DURATION},
            "*": NUMBERS | {Kind.DURATION},
        }
        return ANY if kinds - {Kind.ANY} <= fitting[operator] else None
    if kinds <= NUMBERS:
        return FLOAT if Kind.FLOAT in kinds else INT
    if operator == "*":
        return DURATION if Kind.DURATION in kinds and kinds <= NUMBERS | {Kind.DURATION} else None
    if kinds == {Kind.DURATION}:
        return DURATION
    if operator == "+":
        return STRING if kinds == {Kind.STRING} else TIME if kinds == {Kind.TIME, Kind.DURATION} else None
    return {Kind.TIME: DURATION, Kind.DURATION: TIME}.get(right) if left is Kind.TIME else None


def _either(left: Type, right: Type) -> Type:
    """The type of what is one or the other."""
    if left.kind is Kind.NIL:
        return right
    if left.go == right.go and left != right:
        return array(ANY)
    if right.kind is Kind.NIL or left == right or (left == INTERFACE and right.kind is not Kind.ANY):
        return left
    return ANY


def _assignable(found: Type, parameter: Type) -> bool:
    return found.kind is Kind.ANY or found.go == parameter.go or (parameter == INT and found.kind in INTEGERS)


def _as_floats(node: Node) -> None:
    """Where a float is wanted, the integer literals of sums and products become floats."""
    if isinstance(node, Constant) and type(node.value) is int:
        node.value, node.type = float(node.value), FLOAT
    elif isinstance(node, Unary) and node.operator in ("+", "-"):
        _as_floats(node.operand)
    while isinstance(node, Binary) and node.operator in ARITHMETIC:
        _as_floats(node.right)
        node = node.left
        if not isinstance(node, Binary):
            _as_floats(node)
