"""Tool calls: what the tools' schemas allow, most of it about things that there are, some of it spoilt."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.values import anything, mostly, numbers, some, texts
from manyoyo_mcp.tools import TOOLS
from tests.support import BUSYBOX

NAMES = ("one", "two", "three")
"""Of sandboxes, checkpoints and containers, few enough that they meet."""
_COMMANDS = (
    ["true"], ["sh", "-c", "echo hi; exit 3"], ["sleep", "1"], ["sh", "-c", "head -c 100000 /dev/urandom | od"], ["nothing-of-the-kind"],
    ["sh", "-c", "cat /dev/zero | head -c 300000000 | tail"], ["sh", "-c", "kill -9 $$"],
)  # fmt: skip
_DOCKERFILES = (
    f"FROM {BUSYBOX}\nRUN true\n", f"FROM {BUSYBOX}\nCOPY . /x\nRUN exit 4\n", "FROM nothing/of-the-kind\n", "", "RUN x\n", "FROM scratch\nCOPY ../../etc /\n",
    f"FROM {BUSYBOX}\nRUN --mount=type=bind,source=/,target=/x ls /x\n", f"FROM {BUSYBOX}\nRUN --security=insecure true\n",
)  # fmt: skip
_PATHS = ("a", "a/b", "../x", "/etc/passwd", "/root/x", "a/../../x", ".", "")


def _known(live: list[str], directory: Path) -> dict[str, st.SearchStrategy[Any]]:
    """By argument: values that lead somewhere. `live`: ids of sandboxes and jobs, in the order of their appearance, which is read as calls are made."""
    late = st.integers(0, 1000).map(lambda at: live[-1 - at % min(len(live), 12)])
    a_file = st.one_of(texts, st.builds(lambda text: {"base64": text}, texts))
    return {
        "sandbox_id": mostly(st.one_of(late, st.sampled_from(NAMES)), texts),
        "job_id": mostly(late, texts),
        "name": some(NAMES),
        "checkpoint": some(NAMES),
        "from_checkpoint": some(NAMES),
        "container": some(NAMES),
        "image": mostly(st.just(BUSYBOX), texts),
        "tags": st.lists(some(["localhost/fuzz:1", "localhost/fuzz:2"]), max_size=2),
        "command": mostly(st.sampled_from(_COMMANDS), st.lists(texts, max_size=3)),
        "files": st.dictionaries(
            some(["Dockerfile", "a", "b/c"]), mostly(st.sampled_from(_DOCKERFILES), a_file), max_size=3
        ),
        "context_dir": some([str(directory), ".", "/etc", "/"]),
        "outputs": st.lists(some(_PATHS), max_size=2),
        "memory": some(["64m", "256m", "1g", "64g"]),
        "disk": some(["256m", "1g"]),
        "cpus": mostly(st.sampled_from([0.1, 0.5, 1, 2]), anything),
        "count": st.integers(-1, 3),
        "wait_s": st.sampled_from([0, 0.1, 1, 3]),
        "timeout_s": st.sampled_from([0.5, 1, 3]),
        "network_policy": st.sampled_from(["open", "none", "log", "allowlist"]),
        "path": some(_PATHS),
        "source": some(_PATHS),
        "destination": some(_PATHS),
    }


def calls(live: list[str], directory: Path) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A tool's name, and arguments for it."""
    known = _known(live, directory)
    return st.sampled_from(sorted(TOOLS, key=lambda tool: tool.name)).flatmap(
        lambda tool: st.tuples(st.just(tool.name), _arguments(tool.parameters, known))
    )


def _of_schema(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a JSON schema's type, within its choices; not always within its bounds."""
    if "$ref" in schema:
        return _of_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*(_of_schema(each, definitions) for each in schema["anyOf"]))
    match schema.get("type"):
        case "string":
            return texts
        case "boolean":
            return st.booleans()
        case "integer":
            return st.one_of(st.integers(0, 20), numbers)
        case "number":
            return st.one_of(st.floats(0, 20), numbers)
        case "array":
            return st.lists(_of_schema(schema.get("items", {}), definitions), max_size=3)
        case "object":
            inner = schema.get("additionalProperties")
            return st.dictionaries(texts, _of_schema(inner if isinstance(inner, dict) else {}, definitions), max_size=3)
    return anything


@st.composite
def _arguments(draw: st.DrawFn, schema: dict[str, Any], known: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    given: dict[str, Any] = {}
    for name in properties:
        if name not in required and draw(st.integers(0, 3)):
            continue
        if name in known and draw(st.integers(0, 9)):
            given[name] = draw(known[name])
        else:
            given[name] = draw(_of_schema(properties[name], schema.get("$defs", {})))
    for name in ("wait_s", "timeout_s"):  # a run that hangs would hang all of it
        if name in properties:
            given.setdefault(name, 3)
    if not draw(st.integers(0, 4)):
        spoilt = draw(st.one_of(st.sampled_from(sorted(properties) or ["x"]), texts))
        given[spoilt] = draw(anything)
        if isinstance(given[spoilt], int | float) and spoilt in ("wait_s", "timeout_s"):
            given[spoilt] = min(given[spoilt], 5)
    if not draw(st.integers(0, 9)):
        given.pop(draw(st.sampled_from(sorted(properties) or ["x"])), None)
    return given
