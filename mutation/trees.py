"""Python source as a tree whose parts can be replaced."""

import ast
from collections.abc import Iterator


class Tree:
    """A module's. `replace` and `remove` change it; `source` is what it says by then."""

    def __init__(self, text: str) -> None:
        self.root = ast.parse(text)
        self._above: dict[ast.AST, tuple[ast.AST, str, int | None]] = {}
        for node in ast.walk(self.root):
            for field, value in ast.iter_fields(node):
                for at, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    if isinstance(each, ast.AST):
                        self._above[each] = node, field, at

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._above[node][0] if node in self._above else None

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What it lies in, from inside out."""
        found = self.parent(node)
        while found is not None:
            yield found
            found = self.parent(found)

    def place(self, node: ast.AST) -> str:
        """The function or constant that it lies in."""
        names = []
        for each in [node, *self.above(node)]:
            if isinstance(each, ast.FunctionDef | ast.ClassDef):
                names.append(each.name)
            elif isinstance(each, ast.AnnAssign | ast.Assign) and isinstance(self.parent(each), ast.Module):
                target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
                names.append(ast.unparse(target))
        return ".".join(reversed(names))

    def replace(self, node: ast.AST, new: ast.AST) -> None:
        above, field, at = self._above[node]
        if at is None:
            setattr(above, field, new)
        else:
            getattr(above, field)[at] = new
        ast.fix_missing_locations(self.root)

    def take_out(self, statement: ast.stmt) -> None:
        self.replace(statement, ast.copy_location(ast.Pass(), statement))

    def drop(self, node: ast.Dict, at: int) -> None:
        """An entry of a dict display."""
        del node.keys[at], node.values[at]


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body
