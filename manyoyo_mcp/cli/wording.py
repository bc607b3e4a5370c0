"""Errors speak of the tools' arguments; here they are said in the command line's words."""

import re

_OPTIONS = {
    "build_args": "--build-arg",
    "context_dir": "--build",
    "cpus": "--cpus",
    "dockerfile": "--dockerfile",
    "engine": "--engine",
    "env": "--env",
    "files": "--file",
    "memory": "--memory",
    "network": "--network",
    "outputs": "--output",
    "pids_limit": "--pids-limit",
    "sandbox_id": "SANDBOX",
    "target": "--target",
    "timeout_s": "--timeout",
    "user": "--user",
    "workdir": "--workdir",
}
"""By argument of a tool, the option that says the same."""
_ARGUMENT = re.compile(rf"(?<![\w.'\"/-])(?:({'|'.join(_OPTIONS)})=|^({'|'.join(_OPTIONS)})(?=: ))")
_SENTENCES = (
    (
        re.compile(r"cleanup what is not needed \(scope=.*?\(wait_s\)\."),
        "`manyoyo-mcp ps` shows what there is, `manyoyo-mcp rm` removes it; or ask for less (--memory, --cpus).",
    ),
    (
        re.compile(r"Make room: nested_stop .*? new sandbox\."),
        "Write less, or let sandboxes have more: MANYOYO_SANDBOX_DISK=40g.",
    ),
    (re.compile(r", or give it: files=\{[^}]*\}"), ""),
    (re.compile(r" \(nested_list shows [^)]*\)| \(nested_run, detach=true\)"), ""),
    (re.compile(r"start_sandbox with its sandbox_id and a larger \w+"), "its MCP client can (start_sandbox)"),
    (re.compile(r"start_sandbox with engine="), "engine="),
    (re.compile(r"timeout_s(?=[;,.])"), "--timeout"),
    (re.compile(r"`?nested_list`?"), "`manyoyo-mcp ps SANDBOX`"),
    (re.compile(r"`?sandbox_status`?"), "`manyoyo-mcp logs SANDBOX`"),
    (re.compile(r"cleanup(?= removes it)"), "`manyoyo-mcp rm SANDBOX`"),
    (re.compile(r"start_sandbox(?= starts a new one)"), "an MCP client, or `manyoyo-mcp run`,"),
)
"""What no option says, or says otherwise."""


def in_options(text: str) -> str:
    """What a tool's error says, with options and commands of this command line in place of arguments and tools."""
    for pattern, words in _SENTENCES:
        text = pattern.sub(words, text)
    return _ARGUMENT.sub(lambda match: f"{_OPTIONS[match[1]]} " if match[1] else _OPTIONS[match[2]], text)
