"""What came of the escape suite, as Markdown: `python -m tests.escape.table REPORT… [--write docs/escape.md]`."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- made by scripts/escape -->\n", "<!-- end -->\n"
_TITLES = {
    "requests": "Asked of the engine",
    "beside": "Asked for what is somebody else's, where the engine is the machine's own",
    "buildkit": "Asked of BuildKit",
    "builds": "Asked by a Dockerfile",
    "files": "Contexts of builds",
    "copies": "Archives and copies",
    "nodes": "Images whose files are none",
    "inside": "Tried as root in a nested container and in a RUN step",
    "others": "Arguments, others' sandboxes, the server's own signs",
    "given": "Secrets",
    "ports": "What is published",
    "leaving": "What leaves a sandbox",
    "texts": "Text that pretends to be more",
    "bombs": "Bombs",
}
Attempt = dict[str, Any]


def table(attempts: Sequence[Attempt]) -> str:
    """A row a vector, a column a tier and engine; in each what came of it over every road."""
    worlds = list(dict.fromkeys((each["tier"], each["engine"]) for each in attempts))
    lines = [total(attempts) + "\n"]
    for theme, title in _TITLES.items():
        rows: dict[str, list[Attempt]] = defaultdict(list)
        for each in attempts:
            if each["theme"] == theme:
                rows[each["name"]].append(each)
        if not rows:
            continue
        head = " | ".join(f"{tier}, {engine}" for tier, engine in worlds)
        lines += [f"### {title}\n", f"| attempt | source | roads | {head} |", "|---|---|---|" + "---|" * len(worlds)]
        for name, tried in rows.items():
            roads = ", ".join(dict.fromkeys(each["road"] for each in tried))
            cells = [_cell([each for each in tried if (each["tier"], each["engine"]) == world]) for world in worlds]
            lines.append(f"| {name} | {_plain(tried[0]['source'])} | {roads} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def total(attempts: Sequence[Attempt]) -> str:
    count = Counter(each["outcome"] for each in attempts)
    vectors = len({each["name"] for each in attempts})
    failed = f", {count['failed']} that could not be made" if count["failed"] else ""
    tried = len(attempts) - count["pointless"]
    pointless = f" {count['pointless']} make no sense where they are marked with a dash." if count["pointless"] else ""
    return (
        f"{vectors} vectors, {tried} attempts: {count['refused']} refused, {count['contained']} contained, "
        f"{count['out']} out{failed}.{pointless}"
    )


def _cell(attempts: Iterable[Attempt]) -> str:
    """One word where all roads end alike, with the code of a refusal."""
    said = dict.fromkeys(
        f"refused: {each['why']}"
        if each["outcome"] == "refused"
        else str(each["outcome"]).upper()
        if each["outcome"] in ("out", "failed")
        else f"- ({each['why']})"
        if each["outcome"] == "pointless"
        else str(each["outcome"])
        for each in attempts
    )
    return _plain("; ".join(said)) or "-"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    target = None
    if "--write" in arguments:
        at = arguments.index("--write")
        target, arguments = Path(arguments[at + 1]), arguments[:at]
    attempts = [json.loads(line) for name in arguments for line in Path(name).read_text().splitlines()]
    made = table(attempts)
    if target is not None:
        text = target.read_text()
        before, _, rest = text.partition(_BEGIN)
        target.write_text(before + _BEGIN + "\n" + made + "\n" + _END + rest.partition(_END)[2])
    print(made)
    print(total(attempts))
    return int(not attempts or any(each["outcome"] not in ("refused", "contained", "pointless") for each in attempts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
