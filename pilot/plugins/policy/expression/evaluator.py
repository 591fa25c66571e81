"""A checked syntax tree to closures: every node becomes a function of the run (plugin policy, L11; services.md 9.6).

A closure adds the place to a `Failure` of its own operation only: one of an operand has become an `ExpressionError`
already. A row of equal or different operators is one closure with a loop, so its length costs no depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilot.plugins.policy.expression import values
from pilot.plugins.policy.expression.builtins import EXTRA, FUNCTIONS, Function
from pilot.plugins.policy.expression.errors import ExpressionError, Failure, located
from pilot.plugins.policy.expression.functions import EXTRA_FUNCTIONS, PREDICATES
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
from pilot.plugins.policy.expression.operators import (
    COMPARISONS,
    between,
    comparison,
    found_in,
    logical,
    member_of,
    operator_function,
)
from pilot.plugins.policy.expression.predicates import predicate_function, taken
from pilot.plugins.policy.expression.run import Closure, Run
from pilot.plugins.policy.expression.times import METHODS_OF
from pilot.plugins.policy.expression.types import INTEGERS, LIST_OF_STRING, Kind

LOGICAL = {"and": "&&", "&&": "&&", "or": "||", "||": "||"}


class _ChainEnd(Exception):  # noqa: N818 - a jump, not an error
    """The base of a `?.` is nil: the chain is."""


def closures(node: Node, source: str, folded: dict[int, Node]) -> tuple[Closure, int]:
    """Return the evaluation of a checked tree as one closure, and how many slots its runs need."""
    compiler = _Compiler(source, folded)
    return compiler.compile(node), compiler.slots


class _Compiler:
    def __init__(self, source: str, folded: dict[int, Node]) -> None:
        self.source = source
        self.folded = folded
        self.slots = 0
        self.locals: list[tuple[str, int]] = []
        self.predicates: list[tuple[int, Kind]] = []
        self.compilers: dict[type[Node], Callable[..., Closure]] = {
            Constant: self.constant,
            Name: self.name,
            Pointer: self.pointer,
            Unary: self.unary,
            Binary: self.binary,
            Chain: self.chain,
            Member: self.member,
            Slice: self.slice,
            Call: self.call,
            Builtin: self.builtin,
            Predicate: lambda node: self.compile(node.body),
            Conditional: self.conditional,
            Let: self.let,
            Sequence: self.sequence,
            ListNode: self.list_node,
            MapNode: self.map_node,
        }

    def compile(self, node: Node) -> Closure:
        node = self.folded.get(id(node), node)
        return self.compilers[type(node)](node)

    def failed(self, failure: Failure, at: int) -> ExpressionError:
        return ExpressionError(located(str(failure), self.source, at))

    def new_slots(self, count: int) -> int:
        self.slots += count
        return self.slots - count

    # -- names

    def constant(self, node: Constant) -> Closure:
        value = node.value
        return lambda run: value

    def name(self, node: Name) -> Closure:
        name = node.name
        if node.type == LIST_OF_STRING and not node.is_local:
            return _texts(name)
        if node.is_local:
            slot = next(slot for local, slot in reversed(self.locals) if local == name)
            return lambda run: run.slots[slot]
        if name == "$env":
            return lambda run: dict(run.env)
        return lambda run: run.env.get(name)

    def pointer(self, node: Pointer) -> Closure:
        slot, at = self.predicates[-1][0] + {"": 0, "index": 1, "acc": 2}[node.name], node.at
        if self.predicates[-1][1] is Kind.ARRAY or node.name:
            return lambda run: run.slots[slot]

        def checked(run: Run) -> Any:
            try:
                return taken(run.slots[slot])
            except Failure as failure:
                raise self.failed(failure, at) from None

        return checked

    def let(self, node: Let) -> Closure:
        value, slot = self.compile(node.value), self.new_slots(1)
        self.locals.append((node.name, slot))
        body = self.compile(node.body)
        self.locals.pop()

        def closure(run: Run) -> Any:
            run.slots[slot] = value(run)
            return body(run)

        return closure

    def sequence(self, node: Sequence) -> Closure:
        *firsts, last = [self.compile(step) for step in node.steps]

        def closure(run: Run) -> Any:
            for step in firsts:
                step(run)
            return last(run)

        return closure

    # -- operators

    def unary(self, node: Unary) -> Closure:
        operand, at = self.compile(node.operand), node.at
        if node.operator == "+":
            return operand
        apply = values.negate if node.operator == "-" else lambda value: not values.boolean(value)

        def closure(run: Run) -> Any:
            value = operand(run)
            try:
                return apply(value)
            except Failure as failure:
                raise self.failed(failure, at) from None

        return closure

    def binary(self, node: Binary) -> Closure:
        if node.operator in LOGICAL:
            return self.logical(node)
        row = [node]
        while isinstance(row[-1].left, Binary) and id(row[-1].left) not in self.folded:
            if row[-1].left.operator in LOGICAL:
                break
            row.append(row[-1].left)
        closure = self.compile(row[-1].left)
        if len(row) == 1:
            return self.operation(node, closure)
        first, slot = closure, self.new_slots(1)
        steps = [self.operation(each, lambda run: run.slots[slot]) for each in reversed(row)]

        def whole(run: Run) -> Any:
            value = first(run)
            for step in steps:
                run.slots[slot] = value
                value = step(run)
            return value

        return whole

    def logical(self, node: Binary) -> Closure:
        """`a || b || c` and `a && b && c`: only as many operands as it takes are evaluated."""
        kind = LOGICAL[node.operator]
        operands, places = [node.right], [node.at]
        left = self.folded.get(id(node.left), node.left)
        while isinstance(left, Binary) and LOGICAL.get(left.operator) == kind:
            operands.append(left.right)
            places.append(left.at)
            left = self.folded.get(id(left.left), left.left)
        parts = [self.compile(operand) for operand in (left, *reversed(operands))]
        return logical(parts, list(reversed(places)), self.failed, is_or=kind == "||")

    def operation(self, node: Binary, left: Closure) -> Closure:
        """One operator, the closure of its left operand given."""
        at = node.at
        if node.operator == "??":
            right = self.compile(node.right)

            def coalesced(run: Run) -> Any:
                value = left(run)
                return right(run) if value is None or type(value) is values.NilList else value

            return coalesced
        right_node = self.folded.get(id(node.right), node.right)
        if node.operator == "in" and (found := self.membership(node, right_node, left)) is not None:
            return found
        if node.operator in COMPARISONS:
            return comparison(node, right_node, left, self.compile(right_node), self.failed)
        right = self.compile(right_node)
        apply = operator_function(node.operator, right_node)

        def closure(run: Run) -> Any:
            first, second = left(run), right(run)
            try:
                return apply(run, first, second)
            except Failure as failure:
                raise self.failed(failure, at) from None

        return closure

    def membership(self, node: Binary, right: Node, left: Closure) -> Closure | None:
        """`in` a list of constants or a range of constants, without making either."""
        if isinstance(right, ListNode) and right.items:
            literals = [item.value for item in right.items if isinstance(item, Constant)]
            if len(literals) == len(right.items) and (found := found_in(literals, node.left.type)) is not None:
                return member_of(found, left, self.failed, node.at)
            items = [self.folded.get(id(item), item) for item in right.items]
            constants = [item.value for item in items if isinstance(item, Constant)]
            if len(constants) == len(items):
                return lambda run: values.contains(left(run), constants, run.tick)
        if isinstance(right, Binary) and right.operator == ".." and node.left.type.kind in INTEGERS:
            ends = [self.folded.get(id(end), end) for end in (right.left, right.right)]
            bounds = [end.value for end in ends if isinstance(end, Constant)]
            if len(bounds) == 2 and all(type(bound) is int for bound in bounds):
                return between(bounds[0], bounds[1], left, self.failed)
        return None

    def conditional(self, node: Conditional) -> Closure:
        condition, then, otherwise = map(self.compile, (node.condition, node.then, node.otherwise))
        at = node.at

        def closure(run: Run) -> Any:
            value = condition(run)
            if value is True:
                return then(run)
            if value is False:
                return otherwise(run)
            raise self.failed(values.wrong_type(value, "bool"), at)

        return closure

    # -- members

    def chain(self, node: Chain) -> Closure:
        body = self.compile(node.body)

        def closure(run: Run) -> Any:
            try:
                return body(run)
            except _ChainEnd:
                return None

        return closure

    def member(self, node: Member) -> Closure:
        base, index, at = self.compile(node.base), self.compile(node.index), node.at
        is_optional = node.is_optional
        is_env = isinstance(node.base, Name) and node.base.name == "$env" and not node.base.is_local
        if is_env and isinstance(node.index, Constant):
            key = node.index.value
            if isinstance(key, str):
                return _texts(key) if node.type == LIST_OF_STRING else lambda run: run.env.get(key)
        shown_range = _filtered(node)

        def closure(run: Run) -> Any:
            value = base(run)
            if value is None and is_optional:
                raise _ChainEnd
            key = index(run)
            try:
                return _fetch(value, key)
            except Failure as failure:
                raise self.failed(shown_range or failure, at) from None

        return closure

    def slice(self, node: Slice) -> Closure:
        base, at = self.compile(node.base), node.at
        start = self.compile(node.start) if node.start is not None else None
        stop = self.compile(node.stop) if node.stop is not None else None

        def closure(run: Run) -> Any:
            value = base(run)
            try:
                last = stop(run) if stop is not None else values.last_bound(value)
                first = start(run) if start is not None else 0
                made = values.cut(value, first, last)
                run.charge(len(made) if isinstance(made, values.LISTS) else 0)
            except Failure as failure:
                raise self.failed(failure, at) from None
            return made

        return closure

    # -- calls

    def call(self, node: Call) -> Closure:
        arguments, at = [self.compile(argument) for argument in node.arguments], node.at
        callee = node.callee
        if isinstance(callee, Name) and callee.name in EXTRA_FUNCTIONS:
            return self.invoked(EXTRA[callee.name], arguments, at)
        function = self.compile(callee)

        def closure(run: Run) -> Any:
            given = [argument(run) for argument in arguments]
            method = function(run)
            try:
                if not callable(method):
                    shown = "nil" if method is None else values.go_type(method)
                    raise Failure(f"invalid operation: cannot call {shown}")
                return method(*given)
            except Failure as failure:
                raise self.failed(failure, at) from None
            except (TypeError, AttributeError):
                raise self.failed(Failure("invalid memory address or nil pointer dereference"), at) from None

        return closure

    def invoked(self, function: Function, arguments: list[Closure], at: int) -> Closure:
        """A function of ours with its arguments."""
        if len(arguments) == 2:
            first, second = arguments

            def of_two(run: Run) -> Any:
                a, b = first(run), second(run)
                try:
                    return function(run, a, b)
                except Failure as failure:
                    raise self.failed(failure, at) from None

            return of_two

        def closure(run: Run) -> Any:
            given = [argument(run) for argument in arguments]
            try:
                return function(run, *given)
            except Failure as failure:
                raise self.failed(failure, at) from None

        return closure

    def builtin(self, node: Builtin) -> Closure:
        if node.name == "len" and isinstance(node.arguments[0], Builtin) and node.arguments[0].name == "filter":
            return self.predicate_call("count", node.arguments[0], node.arguments[0].at)
        if node.name in PREDICATES:
            return self.predicate_call(node.name, node, node.at)
        return self.invoked(FUNCTIONS[node.name], [self.compile(each) for each in node.arguments], node.at)

    def predicate_call(self, name: str, node: Builtin, at: int) -> Closure:
        items = self.compile(node.arguments[0])
        slot, body = self.new_slots(3), None
        if len(node.arguments) > 1:
            self.predicates.append((slot, node.arguments[0].type.kind))
            body = self.compile(node.arguments[1])
            self.predicates.pop()
        rest = self.compile(node.arguments[2]) if len(node.arguments) > 2 else None
        function = predicate_function(name, body, rest, slot)

        def closure(run: Run) -> Any:
            value = items(run)
            try:
                return function(run, value)
            except Failure as failure:
                raise self.failed(failure, at) from None

        return closure

    # -- literals

    def list_node(self, node: ListNode) -> Closure:
        items, at = [self.compile(item) for item in node.items], node.at

        def closure(run: Run) -> Any:
            made = [item(run) for item in items]
            try:
                run.charge(len(made))
            except Failure as failure:
                raise self.failed(failure, at) from None
            return made

        return closure

    def map_node(self, node: MapNode) -> Closure:
        pairs = [(self.compile(key), self.compile(value)) for key, value in node.pairs]
        at = node.at

        def closure(run: Run) -> Any:
            made: dict[str, Any] = {}
            found = [(key(run), value(run)) for key, value in pairs]
            try:
                run.charge(len(found))
                # Go fills the map from its last pair: of equal keys the first written wins.
                for name, value in reversed(found):
                    made[values.text(name)] = value
            except Failure as failure:
                raise self.failed(failure, 0 if "interface conversion" in str(failure) else at) from None
            return made

        return closure


def _fetch(base: Any, key: Any) -> Any:
    method = METHODS_OF.get(type(base), {}).get(key) if type(key) is str else None
    if method is not None:
        return lambda *arguments: method(base, *arguments)
    return values.fetch(base, key)


def _filtered(node: Member) -> Failure | None:
    """The complaint of `filter(...)[0]` that found nothing: the official engine makes a `find` of it."""
    index = node.index.value if isinstance(node.index, Constant) else None
    if isinstance(node.base, Builtin) and node.base.name == "filter" and type(index) is int and index in (0, -1):
        return Failure("reflect: slice index out of range")
    return None


def _texts(name: str) -> Closure:
    """A variable declared as a list of texts, which may be given as a Python list too."""

    def closure(run: Run) -> Any:
        value = run.env.get(name)
        return tuple(value) if type(value) is list else value

    return closure
