"""What of the policy's source is a rule, and how each is switched off.

| kind | rule | switched off |
|---|---|---|
| refusal | a statement that refuses | it is left out |
| reason | one of several conditions, any of which refuses | it never holds |
| check | what a field's value has to pass, in a table or called | any value passes |
| table | the names that an object's fields may have | any name passes |
| row | of an endpoint its methods, names in its path, parameters, lists, kind of body, rule | all pass |
| narrowing | what is set, taken out or bounded in what goes on | it is left as it came |
| listed | one of those that are refused, or closed, by name | it is not listed |
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mutation.reasons import alternatives, is_condition, unlink
from mutation.trees import Tree, expression

POLICY = Path(__file__).parent.parent / "manyoyo_mcp" / "policy"
BUILDER = ("archives", "dockerfile", "stepwise", "hostbuilding", "host")
"""Modules of manyoyo_mcp/engines that refuse, too, where a build is the host's engine's."""
WIRES = frozenset({"calling", "connection", "gate", "grpc", "http2", "transport", "wire"})
"""Modules that carry requests: of these what refuses is a rule, and what is named in `OWN`; the rest is how bytes go."""
NOT_RULES = frozenset({"__init__", "refusals", "witness", "table"})
"""Modules without any: the first two and the last only tell, `table` is what rows are made of."""
_REFUSING = frozenset({"PolicyRefused", "CapExceeded", "InvalidArgument", "ContextRefused", "NotSupported"})
_TELLING = frozenset({"self._refuse", "connection.turn_away", "self._tell_too_much"})
"""Calls that refuse."""
_FACTORIES = frozenset({"a", "off", "one_of", "matching", "list_of", "table_of", "_joined", "_namespace", "_entry"})
_HOMES = frozenset({"fields", "things", "libpod", "base"})
"""Modules whose checks others name."""
_LISTS = frozenset({"_CLOSED4", "_CLOSED6", "_OUTER_NETWORKS", "_NAME_SERVER", "_CLIENTS", "UNTOLD", "_LIBPOD_CLIENTS"})
"""Constants that list what is refused, closed or taken out."""
_PREDICATES = {"Entry.covers": False, "Entry.closed": True, "beyond": False, "narrowed": False}
"""Functions that decide by what they return, and whether True is the stricter answer."""
_OUTGOING = frozenset({"query", "body", "spec", "given", "granted", "body['HostConfig']", "folded"})
"""What a rule calls that which goes on."""
_ANY_CHECK = "lambda place, value: value"
OWN: dict[str, dict[str, str]] = {
    "connection": {
        "asked.hijacks and self._becomes_a_stream()": "asked.hijacks",
        "asked.upgrade == 'h2c' and left < 0": "False",
    },
    "gate": {"scratch.chmod(384)": "None"},
    "wire": {
        "b'application/json' if asked.takes == 'json' else b'application/x-tar'": "given.get(b'content-type', b'')",
        "min(version, _LIBPOD_NEWEST)": "version",
        "name in _FORWARDED": "True",
        "name in known or (name == _SESSION + b'grpc-method' and _SESSION_CALLS.fullmatch(value))": "True",
        "name == _SESSION + b'grpc-method' and _SESSION_CALLS.fullmatch(value)": "name == _SESSION + b'grpc-method'",
        "asked.hijacks and given.get(b'upgrade', b'').lower() == asked.upgrade.encode()": "b'upgrade' in given",
    },
    "grpc": {"name in given and known.fullmatch(given[name])": "name in given", "path not in _UNHEARD": "True"},
    "http2": {"self.waiting < _MOST_WAITING": "True", "self.waiting > _TOO_MANY": "False"},
    "transport": {"allowed.body is not None": "False"},
    "contexts": {"out.addfile(last[0], io.BytesIO(last[1]))": "None", "key in _PASSED": "True"},
}
"""Rules of no shape of their own, as `ast.unparse` writes them, and what each becomes."""


@dataclass(frozen=True, slots=True)
class Rule:
    module: str
    kind: str
    name: str
    line: int
    off: Callable[[], None]

    @property
    def title(self) -> str:
        return f"{self.module} {self.kind} {self.name}"


def modules() -> list[str]:
    return sorted(path.stem for path in POLICY.glob("*.py") if path.stem not in NOT_RULES)


def mutated(module: str, at: int) -> ast.Module:
    """The module's tree with its rule number `at` switched off."""
    finder = _Finder(module, _source(module))
    finder.rules()[at].off()
    ast.fix_missing_locations(finder.tree.root)
    return finder.tree.root


def found(module: str) -> list[Rule]:
    return _Finder(module, _source(module)).rules()


def file_of(module: str) -> Path:
    return (POLICY.parent / "engines" if module in BUILDER else POLICY) / f"{module}.py"


def _source(module: str) -> str:
    return file_of(module).read_text()


def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Names of checks, and of functions that may refuse."""
    checks, refusing = set(), set()
    for module in modules():
        for node in ast.walk(ast.parse(_source(module))):
            if isinstance(node, ast.FunctionDef):
                if [each.arg for each in node.args.args] == ["place", "value"]:
                    checks.add(node.name)
                if any(isinstance(each, ast.Raise) for each in ast.walk(node)):
                    refusing.add(node.name)
            elif isinstance(node, ast.Assign) and _is_made(node.value):
                checks |= {ast.unparse(each) for each in node.targets}
    return frozenset(checks - {"check", "judge"}), frozenset(refusing - {"__init__"})


def _is_made(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in _FACTORIES


CHECKS, MAY_REFUSE = _known()


class _Finder:
    def __init__(self, module: str, text: str) -> None:
        self.module, self.tree = module, Tree(text)
        self._found: list[Rule] = []
        self._names: dict[str, int] = {}

    def rules(self) -> list[Rule]:
        if not self._found:
            for node in ast.walk(self.tree.root):
                self._look(node)
        return self._found

    def _add(self, kind: str, node: ast.AST, off: Callable[[], None], shown: str = "") -> None:
        words = " ".join((shown or ast.unparse(node)).split())
        name = f"{self.tree.place(node)}: {words[:110]}"
        self._names[kind + name] = number = self._names.get(kind + name, 0) + 1
        name += f" ({number})" if number > 1 else ""
        self._found.append(Rule(self.module, kind, name, getattr(node, "lineno", 0), off))

    def _look(self, node: ast.AST) -> None:
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if text in OWN.get(self.module, {}):
            self._add("narrowing", node, partial(self.tree.replace, node, expression(OWN[self.module][text])))
        if isinstance(node, ast.stmt):
            self._statement(node)
        if isinstance(node, ast.If) and any(self._refuses(each) for each in node.body):
            self._reasons(node.test, True)
        if self.module in WIRES:
            return
        match node:
            case ast.Assign(value=ast.BoolOp(op=op, values=values)) if all(map(is_condition, values)):
                self._reasons(node.value, isinstance(op, ast.Or))
        if isinstance(node, ast.Dict):
            self._entries(node)
        if isinstance(node, ast.Call):
            self._call(node)
        if isinstance(node, ast.Tuple | ast.Set | ast.Dict):
            self._listed(node)
        self._narrowing(node)

    # -- what refuses

    def _refuses(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.Raise) and node.exc is not None:
            words = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            return words in _REFUSING or (self.module not in WIRES and words != "error")
        if isinstance(node, ast.Expr | ast.Return) and isinstance(node.value, ast.Call):
            return ast.unparse(node.value.func) in _TELLING and "GONE" not in ast.unparse(node)
        return isinstance(node, ast.Return) and self._decides(node) and isinstance(self.tree.parent(node), ast.If)

    def _decides(self, node: ast.AST) -> bool:
        return self.module == "egress" and self.tree.place(node) in _PREDICATES

    def _statement(self, node: ast.stmt) -> None:
        if self._refuses(node):
            self._add("refusal", node, partial(self.tree.take_out, node))
        elif isinstance(node, ast.Return) and self._decides(node) and node.value is not None:
            strict = _PREDICATES[self.tree.place(node)]
            if isinstance(node.value, ast.Compare | ast.BoolOp) and not self._reasons(node.value, strict):
                self._add("refusal", node, partial(self.tree.replace, node.value, ast.Constant(not strict)))

    def _reasons(self, test: ast.expr, strict: bool) -> int:
        """`strict`: what makes it true refuses; else what makes it false does. How many there are, none where there is but one."""
        several = list(alternatives(test, strict))
        if len(several) < 2:
            return 0
        for node, link, off in several:
            if link is None:
                self._add("reason", node, partial(self.tree.replace, node, ast.Constant(off)))
            else:
                self._add("reason", node, partial(unlink, node, link), f"{ast.unparse(node)}, link {link + 1}")
        return len(several)

    # -- checks

    def _is_check(self, node: ast.expr | None) -> bool:
        if isinstance(node, ast.Lambda):
            return [each.arg for each in node.args.args] == ["place", "value"]
        if isinstance(node, ast.Subscript):
            return ast.unparse(node.value).rpartition(".")[2].isupper()
        if isinstance(node, ast.Attribute):
            return ast.unparse(node.value) in _HOMES and node.attr in CHECKS
        if isinstance(node, ast.Name):
            return node.id in CHECKS
        return node is not None and _is_made(node)

    def _entries(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None and self._is_check(value):
                self._add(
                    "check",
                    value,
                    partial(self.tree.replace, value, expression(_ANY_CHECK)),
                    f"{ast.unparse(key)}: {ast.unparse(value)}",
                )
            elif (
                isinstance(value, ast.Call)
                and ast.unparse(value.func) == "dict.fromkeys"
                and self._is_check(value.args[1])
            ):
                for each in value.args[0].elts:  # type: ignore[attr-defined]
                    new = expression(f"{{**{ast.unparse(value)}, {ast.unparse(each)}: {_ANY_CHECK}}}")
                    self._add(
                        "check",
                        each,
                        partial(self.tree.replace, value, new),
                        f"{ast.unparse(each)}: {ast.unparse(value.args[1])}",
                    )

    def _call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        statement = self.tree.parent(node)
        if isinstance(statement, ast.Expr) and name in MAY_REFUSE:
            self._add("check", statement, partial(self.tree.take_out, statement))
        elif len(node.args) == 2 and (_is_made(node.func) or name in CHECKS or ast.unparse(node.args[0]) == "place"):
            self._add("check", node, partial(self.tree.replace, node, node.args[1]))
        elif called == "list_of" and self._is_check(node.args[0]):
            self._add(
                "check",
                node.args[0],
                partial(self.tree.replace, node.args[0], expression(_ANY_CHECK)),
                f"each of {ast.unparse(node)}",
            )
        elif called == "only":
            self._add("table", node, partial(self.tree.replace, node, expression(f"dict({ast.unparse(node.args[1])})")))
        elif [ast.unparse(each) for each in node.args] == ["request", "limits"] and name in MAY_REFUSE | {"build"}:
            self._add(
                "check", node, partial(self.tree.replace, node, expression("Allowed(request.query, request.body)"))
            )
        elif called == "row":
            self._row(node)
        elif called == "buildkit.message":
            self._add(
                "row",
                node,
                partial(
                    self.tree.replace,
                    node,
                    expression(
                        "lambda request, limits: __import__('manyoyo_mcp.policy.base').policy.base.passed(request, limits)"
                    ),
                ),
                f"rule {ast.unparse(self.tree.parent(node) or node)}",
            )

    def _row(self, node: ast.Call) -> None:
        given = [ast.unparse(each) for each in node.args]
        named = {each.arg: ast.unparse(each.value) for each in node.keywords}
        shown = " ".join(given[:2])
        takes = (given[3:4] or [named.get("takes", "'nothing'")])[0]
        parts = ["methods", "parameters"]
        names = (given[2:3] or [named.get("query", "")])[0].strip("'").split()
        parts += ["lists"] if any(not each.endswith("+") for each in names) else []
        parts += ["names"] if "NAME" in shown or "IMAGE" in shown else []
        parts += ["body"] if takes in ("'nothing'", "'archive'") else []
        parts += ["rule"] if len(given) > 4 or "rule" in named else []
        for part in parts:
            new = expression(f"__import__('mutation.wide').wide.{part}({ast.unparse(node)})")
            self._add("row", node, partial(self.tree.replace, node, new), f"{part} of {shown}")

    # -- what is narrowed

    def _listed(self, node: ast.Tuple | ast.Set | ast.Dict) -> None:
        place = self.tree.place(node)
        if isinstance(node, ast.Tuple) and isinstance(self.tree.parent(node), ast.Subscript):
            return  # of a type
        if place not in _LISTS or any(
            self.tree.place(each) == place and isinstance(each, ast.Tuple | ast.Set | ast.Dict)
            for each in self.tree.above(node)
        ):
            return
        if isinstance(node, ast.Dict):
            for at, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
                self._add("listed", key or value, partial(self.tree.drop, node, at))
                if isinstance(value, ast.Call) and value.args:
                    self._add("listed", value, partial(value.args.clear), f"what {ast.unparse(key or value)} says")
            return
        for at, each in enumerate(node.elts):
            self._add("listed", each, partial(node.elts.pop, at))  # type: ignore[arg-type]

    def _narrowing(self, node: ast.AST) -> None:
        above = list(self.tree.above(node))
        if self.module == "protobuf":
            return  # it reads and writes numbers, and narrows nothing
        if not any(isinstance(each, ast.FunctionDef) for each in above) or any(
            isinstance(each, ast.Raise) for each in above
        ):
            return
        leave_out = partial(self.tree.take_out, node)  # type: ignore[arg-type]
        match node:
            case ast.AugAssign(op=ast.BitOr(), value=given):
                self._merged(given, leave_out)
            case ast.BinOp(op=ast.BitOr(), left=had, right=given) if not self._is_type(node):
                self._merged(given, partial(self.tree.replace, node, had))
            case ast.Assign(targets=[ast.Subscript(value=into)]) if ast.unparse(into) in _OUTGOING:
                self._add("narrowing", node, leave_out)
            case ast.Delete() | ast.Expr(value=ast.Call(func=ast.Attribute(attr="pop"))):
                self._add("narrowing", node, leave_out)
            case ast.comprehension(ifs=ifs):
                for at, each in enumerate(ifs):
                    self._add("narrowing", each, partial(ifs.pop, at))  # type: ignore[arg-type]
            case ast.Call(func=ast.Name(id="max" | "min"), args=[one, other]):
                for bound, free in ((one, other), (other, one)):
                    if isinstance(bound, ast.Constant) or ast.unparse(bound).isupper():
                        self._add("narrowing", node, partial(self.tree.replace, node, free))
            case ast.BoolOp(values=[given, *_, default]) | ast.IfExp(body=given, orelse=default) if (
                "limits.default" in ast.unparse(default)
            ):
                self._add("narrowing", node, partial(self.tree.replace, node, given))

    def _is_type(self, node: ast.BinOp) -> bool:
        """Whether it is `this | that` of types."""
        for each in self.tree.above(node):
            match each:
                case ast.arg() | ast.Call(func=ast.Name(id="isinstance")):
                    return True
                case ast.AnnAssign(annotation=said) | ast.FunctionDef(returns=ast.expr() as said) if node in ast.walk(
                    said
                ):
                    return True
        return False

    def _merged(self, given: ast.expr, whole: Callable[[], None]) -> None:
        """What is laid over a mapping: entry by entry where they stand there."""
        if not isinstance(given, ast.Dict):
            self._add("narrowing", given, whole)
            return
        for at, key in enumerate(given.keys):
            shown = ast.unparse(key) if key is not None else f"**{ast.unparse(given.values[at])}"
            self._add("narrowing", given, partial(self.tree.drop, given, at), f"{shown} of {ast.unparse(given)}")
