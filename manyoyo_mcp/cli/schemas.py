"""tool_schemas/: what a client is told of each tool, one file each, so that a change shows in review."""

import json
from pathlib import Path

from manyoyo_mcp.tools import TOOLS


def render() -> dict[str, str]:
    """File name → content."""
    files = {}
    for tool in TOOLS:
        data = {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "annotations": tool.annotations.model_dump(by_alias=True, exclude_none=True) if tool.annotations else {},
            **({"_meta": tool.meta} if tool.meta else {}),
            "inputSchema": tool.parameters,
            "outputSchema": tool.output_schema,
        }
        files[f"{tool.name}.json"] = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return files


def write(directory: Path) -> list[Path]:
    """Write the files and remove those of tools that are gone; the paths written."""
    directory.mkdir(parents=True, exist_ok=True)
    files = render()
    for old in directory.glob("*.json"):
        if old.name not in files:
            old.unlink()
    paths = []
    for name, content in files.items():
        (directory / name).write_text(content)
        paths.append(directory / name)
    return paths
