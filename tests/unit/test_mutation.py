"""What `scripts/mutation` takes for a rule of the policy, and that it is off without it."""

import ast

import pytest

from mutation import rules
from mutation.equivalent import EQUIVALENT
from mutation.reasons import alternatives, unlink


def test_rules_have_names_of_their_own() -> None:
    titles = [rule.title for module in rules.modules() for rule in rules.found(module)]
    assert len(titles) == len(set(titles)) > 1000
    assert EQUIVALENT.keys() <= set(titles), "what is excused is a rule"
    assert len(EQUIVALENT) < 30 and all(EQUIVALENT.values())


@pytest.mark.parametrize(
    ("test", "alone"),
    [
        ("a or b", ["a", "b"]),
        ("a and b", ["a and b"]),
        ("not (a and b)", ["a", "b"]),
        ("a or not (b and c)", ["a", "b", "c"]),
        ("not 1 <= a <= 5", ["1 <= a <= 5 (0)", "1 <= a <= 5 (1)"]),
        ("not isinstance(a, b) or not all(c and d for e in f)", ["isinstance(a, b)", "c", "d"]),
        ("a and not any(b and c for d in e)", ["b", "c"]),
    ],
)
def test_the_conditions_that_decide_alone(test: str, alone: list[str]) -> None:
    tree = ast.parse(test, mode="eval").body
    found = [
        ast.unparse(node) + (f" ({link})" if link is not None else "") for node, link, _ in alternatives(tree, True)
    ]
    assert found == alone


@pytest.mark.parametrize(("link", "left"), [(0, "b <= c"), (1, "a <= b")])
def test_a_chain_without_a_link(link: int, left: str) -> None:
    node = ast.parse("a <= b <= c", mode="eval").body
    assert isinstance(node, ast.Compare)
    unlink(node, link)
    assert ast.unparse(node) == left


def test_a_module_with_one_rule_off_is_the_same_but_for_that() -> None:
    whole, without = (ast.unparse(rules.Tree(rules._source("rules")).root), ast.unparse(rules.mutated("rules", 0)))
    changed = [line for line in whole.splitlines() if line not in without.splitlines()]
    assert 1 <= len(changed) <= 3
