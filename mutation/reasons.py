"""The conditions under which a policy refuses: which of them decide alone."""

import ast
from collections.abc import Iterator


def is_condition(node: ast.expr) -> bool:
    named = isinstance(node, ast.Attribute) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance")
    return isinstance(node, ast.Compare) or named


def alternatives(test: ast.expr, strict: bool) -> Iterator[tuple[ast.expr, int | None, bool]]:
    """The conditions any of which alone decides, and what to put in place of each so that it does not."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            yield from alternatives(inner, not strict)
        case ast.BoolOp(op=op, values=values):
            apart = isinstance(op, ast.Or) if strict else isinstance(op, ast.And)
            inner = [each for value in values for each in alternatives(value, strict)]
            if apart:
                yield from inner
            else:  # they decide together
                several = [list(alternatives(value, strict)) for value in values]
                if any(len(each) > 1 for each in several):
                    yield from (one for each in several if len(each) > 1 for one in each)
                else:
                    yield test, None, not strict
        case ast.Call(func=ast.Name(id="any" | "all"), args=[ast.GeneratorExp(elt=elt)]):
            inner = list(alternatives(elt, strict))
            if len(inner) > 1:
                yield from inner
            else:
                yield test, None, not strict
        case ast.Compare(ops=ops) if len(ops) > 1 and not strict:
            for link in range(len(ops)):
                yield test, link, True
        case _:
            yield test, None, not strict


def unlink(node: ast.Compare, link: int) -> None:
    """`a <= b <= c` without its first link is `b <= c`."""
    if link == 0:
        node.left = node.comparators[0]
        del node.ops[0], node.comparators[0]
    else:
        del node.ops[link], node.comparators[link]
