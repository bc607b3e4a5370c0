"""What fails before a program of a RUN step has run: mostly in the engine's own words."""

from manyoyo_mcp.engines.causes.signs import SHELL, TRACED, Known, Q, engine, said

_FROM = r"^FROM (?:--\S+ )*(?P<image>\S+)"
_FROM_STAGE = r"--from=(?P<stage>\S+)"
_LOGIN_MOUNT = r"--mount=\S*type=(?:secret|ssh)"
_VARIABLE = r"\$\{?(?P<name>\w+)"

DOCKERFILE: tuple[Known, ...] = (
    # -- the Dockerfile, before anything runs
    Known(
        "BUILD_SECRET_NOT_GIVEN",
        "The step asks for a build secret that this build was not given, or for an ssh agent, which no nested_build has.",
        "Name it in secrets of nested_build, in a sandbox with engine podman (sandbox_status lists those that are declared); what needs an "
        "ssh agent fetch beforehand and bring in with the context (files).",
        (
            engine(r"the --mount option requires BuildKit|secret.* required|no secret with id", _LOGIN_MOUNT),
            said(
                range(1, 256),
                r"/run/secrets/.*No such file|SSH_AUTH_SOCK|Permission denied \(publickey",
                r"^fatal: |^Please make sure|^and the repository",
                _LOGIN_MOUNT,
            ),
        ),
    ),
    Known(
        "STEP_NETWORK",
        "A RUN step can't choose the network {network}.",
        'Leave --network out of it: steps have a network of their own, or none with network="none" of nested_build.',
        (
            engine(
                r"a build step may not use the sandbox's own network|the --network option requires BuildKit",
                r"--network=(?P<network>\S+)",
            ),
        ),
    ),
    Known(
        "NEEDS_PODMAN",
        "The Dockerfile uses {feature}, which dockerd's classic builder does not know.",
        'podman\'s builder does: start_sandbox with engine="podman" and build there. Or write the step without it.',
        (
            engine(r"the (?P<feature>--\w+) option requires BuildKit"),
            engine(r"the (?P<feature>heredoc <<\S+) requires BuildKit"),
            engine(r"failed to parse platform : \"\" is an invalid", r"(?P<feature>\$\{?(?:BUILD|TARGET)\w+\}?)"),
        ),
    ),
    Known(
        "FLAG_NOT_SUPPORTED",
        "The builder does not know the flag {flag} of {keyword}.",
        "Leave it out: --link changes only how layers are cached; instead of --parents name the directory to copy to; "
        "a RUN step may do what any nested container may, whatever --security says.",
        (
            engine(r"(?P<keyword>COPY|ADD|RUN) (?P<flag>--\w+) is not supported"),
            engine(r"parse error on line \d+: unknown flag: (?P<flag>\S+)", r"^(?P<keyword>\w+)"),
            engine(r"(?P<keyword>COPY|ADD|RUN) only supports the ", r"^\w+ .*?(?P<flag>--\w+)"),
        ),
    ),
    Known(
        "UNKNOWN_INSTRUCTION",
        "{word} is not a Dockerfile instruction.",
        "Correct the word; if the line goes on with the one above, end that one with a backslash.",
        (
            engine(r"parse error on line \d+: unknown instruction: (?P<word>\S+)"),
            engine(r"Unknown instruction: \"(?P<word>[^\"]+)\""),
        ),
    ),
    Known(
        "BUILD_ARG_MISSING",
        "The variable {name} has no value, or none that can stand here.",
        "Give it one with build_args, or a default (ARG NAME=value). An ARG before the first FROM is known in FROM lines "
        "only: declare it again (ARG NAME) in the stage that uses it.",
        (
            engine(r"base name \(.*\) should not be blank", _VARIABLE),
            engine(r"^determining starting point for build: no FROM statement found", _VARIABLE),
            engine(r"invalid reference format$", r"^FROM .*" + _VARIABLE),
            engine(r"invalid from flag value |--from=: no stage or image", r"--from=" + _VARIABLE),
            said({1, 2, 127}, SHELL + r"(?P<name>[A-Za-z_]\w*): (?:parameter (?:not set|null)|unbound variable)"),
            said({1, 2, 127}, SHELL + r"(?P<name>[A-Za-z_]\w*): .*", instruction=r"\$\{\w+:?\?"),
        ),
    ),
    Known(
        "NO_FROM",
        "The Dockerfile has no FROM, so no image to begin with.",
        "Begin with FROM and a base image, e.g. FROM localhost/manyoyo/debian; only ARG may come before it.",
        (engine(r"^(?:building: )?no (?:FROM statement found|stages to build)|no build stage in current context"),),
    ),
    Known(
        "TARGET_NOT_FOUND",
        "The Dockerfile has no stage called {stage}.",
        "Name a stage that a FROM line gives a name (FROM image AS name) with target, or leave target out.",
        (
            engine(r"target stage \"(?P<stage>[^\"]*)\" could not be found"),
            engine(r"The target \"(?P<stage>[^\"]*)\" was not found"),
            engine(r"failed to reach build target (?P<stage>\S+) in Dockerfile"),
        ),
    ),
    Known(
        "STAGE_NOT_FOUND",
        "There is neither a stage nor an image called {stage} to copy from.",
        "Name a stage that an earlier FROM line gives a name (FROM image AS name), or an image that the sandbox has.",
        (
            engine(r"from=(?P<stage>[^\s:]+): no stage or image found"),
            engine(r"invalid from flag value (?P<stage>\S+): "),
        ),
    ),
    Known(
        "IMAGE_NAME_INVALID",
        "{image} can't be the name of an image.",
        "Image names are lower case: [registry/]name[:tag].",
        (engine(r"(?:parsing|invalid) reference .*(?:invalid|must be lowercase|format)", _FROM),),
    ),
    Known(
        "IMAGE_NOT_FOUND",
        "The base image {image} is not in the sandbox (or not for the platform asked for), and could not be pulled: "
        "{why}.",
        "Build on an image that is there: nested_list shows them. Where no registry is reachable, `manyoyo-mcp image base "
        "NAME` makes base images from packages (debian, python, node, busybox, postgres): sandboxes started after that have them as "
        "localhost/manyoyo/NAME, so cleanup and start_sandbox once more.",
        (
            engine(r"(?P<why>pull access denied|manifest unknown|unauthorized|no such image)", _FROM),
            engine(r"initializing source docker://.*: (?P<why>[^:]+)$", _FROM),
            engine(r"^Get \"[^\"]+/v2/.*: (?P<why>[^:]+)$", _FROM),
            engine(r"manifest for \S+ (?P<why>not found)", _FROM),
        ),
    ),
    Known(
        "DOCKERFILE_SYNTAX",
        "The Dockerfile is not valid: {what}.",
        "Correct that instruction; the failed step names it and its line where the engine says which.",
        (
            engine(r"dockerfile parse error on line \d+: (?P<what>.+)"),
            engine(r"failed to parse Dockerfile: (?P<what>.+)"),
            engine(r"^parsing main Dockerfile: [^:]*: (?:EOF: )?(?P<what>.+)"),
            engine(r"(?P<what>\b[A-Z]+ requires (?:at least|exactly|either) .+)"),
            engine(
                r"(?P<what>(?:Unknown type|Unknown flag|unexpected end of statement|Syntax error|[Ii]nvalid (?:signal|containerPort)).*)"
            ),
        ),
    ),
    # -- COPY, ADD, USER
    Known(
        "FILE_OUTSIDE_CONTEXT",
        "{file} lies outside the build context, where COPY and ADD can't reach.",
        "Choose a context_dir above it and write the path from there, or give the file with files.",
        (
            engine(r"forbidden path outside the build context: (?P<file>\S+)"),
            engine(r"possible escaping context directory error: copier: stat: \"/?(?P<file>[^\"]+)\""),
        ),
    ),
    Known(
        "FILE_NOT_IN_STAGE",
        "The stage or image {stage} has no {file}.",
        "Write the whole path at which that stage made it; its WORKDIR does not count after --from.",
        (
            engine(r"copier: stat: \[?\"(?P<file>[^\"]+)\"\]?: no such file", _FROM_STAGE),
            engine(r"failed: stat (?P<file>.+): file does not exist", _FROM_STAGE),
        ),
    ),
    Known(
        "FILE_NOT_IN_CONTEXT",
        "{file} is not in the build context, or .dockerignore leaves it out.",
        "Paths count from context_dir, not from the Dockerfile: correct the path, take the pattern out of .dockerignore, "
        "or give the file with files.",
        (
            engine(r"not found in build context or excluded by \S+: stat (?P<file>.+?): file does not exist"),
            engine(r"copier: stat: \[?\"/?(?P<file>[^\"]+)\"\]?: no such file"),
            engine(r"no items matching glob \".*/build/(?P<file>[^\"]+)\" copied \(\d+ filtered out"),
            engine(r"no source files were specified", r"^(?:COPY|ADD) (?:--\S+ )*(?P<file>.+) \S+$"),
        ),
    ),
    Known(
        "USER_NOT_FOUND",
        "The image has no user or group called {user}.",
        "Make it before (RUN useradd NAME), or use a number.",
        (
            engine(r"(?:unknown user|looking up).* (?:user|group) \"(?P<user>[^\"]+)\""),
            engine(r"unable to find (?:user|group) (?P<user>[^:\s]+): no matching entries"),
            engine(r"can't find [ug]id for (?:user|group) (?P<user>[^:\s]+)"),
        ),
    ),
    # -- what a RUN step begins with
    Known(
        "NO_SHELL",
        "The image has no {command}, which RUN needs to run a line of shell.",
        'Write RUN ["program", "argument"], or build FROM an image with a shell; FROM scratch is empty.',
        (
            engine(r"executable file `(?P<command>/\S*sh)` not found"),
            engine(r"exec: \"(?P<command>/\S*sh)\": stat \S+ no such file"),
        ),
    ),
    Known(
        "COMMAND_NOT_FOUND",
        "The image has no command {command}.",
        "Install the package that has it, in this step or an earlier one, or choose a base image that does.",
        (
            engine(r"executable file `(?P<command>[^`/]+)` not found"),
            engine(r"exec: \"(?P<command>[^\"/]+)\": executable file not found"),
            said({127}, SHELL + r"(?P<command>[^\s:/]+): (?:command )?not found"),
            said({127}, rf"^env: {Q}(?P<command>[^'\u2019/\\]+){Q}: No such file"),
            said({127}, r"^make(?:\[\d+\])?: (?P<command>[^\s:/]+): (?:Command not found|No such file or directory)"),
        ),
    ),
    Known(
        "SCRIPT_LINE_ENDINGS",
        "A script has Windows line endings: its first line names the interpreter {command} with a carriage return.",
        "Save the script with Unix line endings (\\n), or RUN sed -i 's/\\r$//' on it before.",
        (said({126, 127}, rf"^env: {Q}(?P<command>[^'\u2019\\]+)\\r{Q}: No such file"),),
    ),
    Known(
        "PROGRAM_NOT_FOUND",
        "There is no {file} in the image, or what its first line (#!) names is missing.",
        "COPY it before this step and mind WORKDIR; if it is there, install its interpreter, and save it with Unix line "
        "endings.",
        (
            engine(r"executable file `(?P<file>[^`]*/[^`]*)` not found"),
            engine(r"exec: \"(?P<file>[^\"]*/[^\"]*)\": stat \S+ no such file"),
            said({127}, SHELL + r"(?P<file>[^\s:]*/[^\s:]*): (?:not found|No such file or directory)"),
            said({127}, rf"^env: {Q}(?P<file>[^'\u2019\\]*/[^'\u2019\\]*){Q}: No such file"),
        ),
    ),
    Known(
        "NOT_EXECUTABLE",
        "{file} may not be executed: it lacks the x permission.",
        "RUN chmod +x on it before, or run it by its interpreter (RUN sh script.sh).",
        (
            engine(r"the path `(?P<file>[^`]+)` exists but it is not executable"),
            engine(r"exec: \"(?P<file>[^\"]+)\": permission denied"),
            said({126}, SHELL + r"(?P<file>[^\s:]+): Permission denied"),
        ),
    ),
    Known(
        "WRONG_ARCHITECTURE",
        "{file} can't run here: it is built for another architecture, or is a script without a first line #!.",
        "Take the build of it for this machine (uname -m), or an image of its platform; a script needs #!/bin/sh as its "
        "first line.",
        (
            said({1, 255}, r"^exec container process `(?P<file>[^`]+)`: Exec format error"),
            said({1, 255}, r"^exec (?P<file>/\S+): exec format error"),
            said({126}, SHELL + r"(?P<file>[^\s:]+): (?:cannot execute binary file: )?Exec format error"),
            said({1}, TRACED + r"OSError: \[Errno 8\] Exec format error: '(?P<file>[^']+)'"),
        ),
    ),
)
