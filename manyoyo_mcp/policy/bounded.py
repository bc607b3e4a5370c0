"""A sandbox's part of the host's own engine, where it has no engine of its own: the tools' way to it, and what a gate asks of each request. As
`transport`, and it reaches what is the sandbox's alone."""

import contextlib
import http
import io
import json
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import docker
import requests
from requests.structures import CaseInsensitiveDict

from manyoyo_mcp.dialled import Dial, DialledClient
from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy import contexts, hostbuilds, hostlengths, hostroom, hostruns, labelled
from manyoyo_mcp.policy.base import Allowed, Limits, Request, Within
from manyoyo_mcp.policy.transport import API_VERSION, VERSION_PREFIX, GuardedClient
from manyoyo_mcp.policy.wire import Body
from manyoyo_mcp.values import Caps

_STARTS = re.compile(r"/containers/([^/]+)/(?:start|restart)")
_ENTERS = re.compile(r"/containers/([^/]+)/exec")
_BEGINS = re.compile(r"/exec/([^/]+)/start")
_INSPECTED = re.compile(r"/containers/[^/]+/json")
_IMAGE = re.compile(r"/images/(.+)/json")
_MOST = 1 << 30
"""Bytes that the tools lay in a container at once, at most: they have bounds of their own well below."""


class Missing(Exception):
    """There is none that is the sandbox's."""


class Room:
    """What counts among a sandbox's running containers beside them, whoever of this process asks."""

    _of: ClassVar[WeakValueDictionary[str, "Room"]] = WeakValueDictionary()

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while it is looked what there is, not while the engine works
        self.builds: list[Caps] = []
        self.starts: dict[str, Caps] = {}  # under way, by containers
        self.making = 0  # containers
        self.said: deque[tuple[float, int]] = deque()  # when an exec was made, of so many bytes

    @classmethod
    def of(cls, sandbox: str) -> "Room":
        return cls._of.setdefault(sandbox, cls())


class Boundary:
    """What a request names is looked up first, and asked for by its id, which nobody can give to another: so what was looked at is what is used.
    `by_tools`: who asks are the tools, which builds are for."""

    def __init__(self, dial: Dial, limits: Callable[[], Limits], within: Within, *, by_tools: bool = False) -> None:
        self.within = within
        self._limits = limits
        self._by_tools = by_tools
        self._engine = DialledClient(dial, API_VERSION)
        self._known: set[str] = set()  # ids of containers, execs and images that are the sandbox's
        self._room = Room.of(within.sandbox)

    def path(self, method: str, path: str) -> str:
        """The same, by id. Raises Missing; PolicyRefused for what is not offered."""
        found = labelled.named(method, path, builds=self._by_tools and self.within.builds, clients=not self._by_tools)
        if found is None:
            return path
        kind, name = found
        if method == "DELETE" and kind == "image" and name not in self._known:
            raise Missing(f"No such image: {name}")
        id_: str = getattr(self, f"_{kind}")(name)
        if method == "DELETE":
            self._known.discard(id_)
        before, after = path.split(f"/{kind}s/" if kind != "exec" else "/exec/", 1)
        return f"{before}/{'exec' if kind == 'exec' else f'{kind}s'}/{id_}{after.removeprefix(name)}"

    def decided(self, request: Request, allowed: Allowed) -> Allowed:
        """What is left of what was allowed. Raises Missing, PolicyRefused."""
        match request.method, request.path:
            case "POST", "/containers/create":
                image = self._engine.inspect_image(self._image(str((allowed.body or {}).get("Image", ""))))
                return hostruns.created(allowed, self.within, image, secrets.token_hex(6))
            case "POST", path if path.endswith("/exec"):
                with self._room.lock:
                    hostroom.check_execs(self._room.said, time.monotonic(), hostroom.check_size(allowed))
            case "POST", path if path.endswith(("/stop", "/restart")):
                hostroom.check_patience(request.query.get("t"))
                if path.endswith("/restart"):
                    self._stop(self._container(path.split("/")[2]), request.query.get("t"))
            case "PUT", _:  # the host's users are not the container's
                return replace(allowed, query={k: v for k, v in allowed.query.items() if k != "copyUIDGID"})
            case "DELETE", path if path.startswith("/containers/"):  # with its volumes, which have no label
                return replace(allowed, query={**allowed.query, "v": "1"})
            case "GET", "/containers/json" | "/images/json":
                return labelled.narrowed(allowed, request, self.within)
            case "POST", "/images/create":
                allowed, image = labelled.pulled(request, self.within)
                self._check_new(image)
            case "POST", "/build":
                return hostbuilds.built(allowed, self.within)
            case "POST", "/commit":
                container = self._container(str(request.query.get("container")))
                self._check_users(container)
                return hostbuilds.committed(allowed, container)
            case "POST", path if path.startswith("/images/") and path.endswith("/tag"):
                hostbuilds.check_tags(self.within, [str(request.query.get("repo") or "")])
        return allowed

    @contextlib.contextmanager
    def room(self, method: str, path: str) -> Iterator[None]:
        """Within it what makes or starts something may be asked, by `path` as it is by id. Raises BudgetExceeded, Missing."""
        with contextlib.ExitStack() as until_asked:
            if method == "POST" and path == "/containers/create":
                until_asked.enter_context(self._making())
            elif method == "POST" and (starts := _STARTS.fullmatch(path)):
                until_asked.enter_context(self._starting(starts[1]))
            elif method == "POST" and (enters := _ENTERS.fullmatch(path)):
                there = self._described(enters[1]).get("ExecIDs") or []
                hostroom.check_count("execs in this container", len(there), hostroom.MOST_EXECS)
            elif method == "POST" and (begins := _BEGINS.fullmatch(path)):
                entered = self._engine.exec_inspect(begins[1])
                container = str(entered["ContainerID"])
                if entered["ProcessConfig"].get("user") or self._described(container)["Config"].get("User"):
                    self._check_users(container)
            yield

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        with self._room.lock:
            there = len(self._rows(all=True)) + self._room.making
            hostroom.check_count("containers", there, hostroom.MOST_CONTAINERS)
            self._room.making += 1
        try:
            yield
        finally:
            with self._room.lock:
                self._room.making -= 1

    @contextlib.contextmanager
    def _starting(self, container: str) -> Iterator[None]:
        asked = hostroom.granted(self._described(container)["Config"].get("Labels"))
        self._check_users(container)
        with self._room.lock:  # two at once would each find room
            hostroom.check_room(self._limits(), self._running(container), asked)
            self._room.starts[container] = asked
        try:
            yield
        finally:
            with self._room.lock:
                self._room.starts.pop(container, None)

    @contextlib.contextmanager
    def building(self, caps: Caps) -> Iterator[None]:
        """Within it a build with these caps counts among what runs. Raises BudgetExceeded."""
        filters = {"label": [f"{labelled.OF}={self.within.sandbox}"]}
        with self._room.lock:
            there = len(self._engine.images(all=True, quiet=True, filters=filters))
            there += hostroom.IMAGES_OF_A_BUILD * len(self._room.builds)
            hostroom.check_count("images, with those of builds under way,", there, hostroom.MOST_IMAGES)
            hostroom.check_room(self._limits(), self._running(), caps)
            self._room.builds.append(caps)
        try:
            yield
        finally:
            self._room.builds.remove(caps)

    def check_users_of(self, image: str) -> None:
        """Raises PolicyRefused where an image of the sandbox's has a list of users that the engine is not to read."""
        body = {
            "Image": image,
            "Cmd": ["true"],
            "NetworkDisabled": True,
            "Labels": {labelled.LABEL: self.within.sandbox, labelled.STEP: "looked-at"},
        }
        with self._making():
            name = f"{self.within.prefix}look-{secrets.token_hex(6)}"
            container = str(self._engine.create_container_from_config(body, name)["Id"])
        try:
            self._check_users(container)
        finally:
            self._engine.remove_container(container, force=True, v=True)

    def letters_of(self, image: str) -> int:
        """How many bytes an image's configuration and history have."""
        return hostlengths.described(self._engine.inspect_image(image), self._engine.history(image))

    def made(self, image: str) -> None:
        """An image, by its id, is the sandbox's without a name yet."""
        self._known.add(image)

    def shown(self, method: str, path: str, content: Any) -> Any:
        """What of an answer is shown."""
        if method == "POST" and (path == "/containers/create" or path.endswith("/exec")):
            self._known.add(str(content["Id"]))
        show = _shows(path) if method == "GET" else None
        return show(self.within, content) if show else content

    def answer(self, method: str, path: str, query: Mapping[str, Any]) -> bytes | None:
        """The answer to what is about all that the engine has, less what is others'; None for any other request."""
        if method == "GET" and (image := _IMAGE.fullmatch(path)):
            raw = self._engine.inspect_image(self._image(image[1]))
            return json.dumps(labelled.images(self.within, [raw])[0]).encode()
        if method != "GET" or not _shows(path):
            return None
        path = self.path(method, path)
        try:
            raw = self._engine._result(self._engine._get(self._engine._url(path), params=query), True)
        except docker.errors.NotFound as error:
            raise Missing(str(error.explanation)) from None
        return json.dumps(self.shown(method, path, raw)).encode()

    def close(self) -> None:
        self._engine.close()

    # -- what is meant; each raises Missing where it is not the sandbox's

    def _container(self, name: str) -> str:
        if name in self._known:
            return name
        for each in (self.within.prefix + name, name):
            try:
                raw = self._engine.inspect_container(each)
            except docker.errors.NotFound:
                continue
            if labelled.is_to_use(self.within, raw["Config"].get("Labels"), raw["Name"]):
                self._known.add(raw["Id"])
                return str(raw["Id"])
        raise Missing(f"No such container: {name}")

    def _exec(self, name: str) -> str:
        if name not in self._known:
            try:
                self._container(str(self._engine.exec_inspect(name)["ContainerID"]))
            except (docker.errors.NotFound, Missing):
                raise Missing(f"No such exec instance: {name}") from None
            self._known.add(name)
        return name

    def _image(self, name: str) -> str:
        if name in self._known:
            return name
        try:
            raw = self._engine.inspect_image(name)
        except docker.errors.ImageNotFound:
            raw = {}
        if not labelled.may_run(self.within, raw):
            raise Missing(f"No such image: {name}")
        return str(raw["Id"])

    def _described(self, container: str) -> dict[str, Any]:
        try:
            return dict(self._engine.inspect_container(container))
        except docker.errors.NotFound:
            self._known.discard(container)
            raise Missing(f"No such container: {container}") from None

    def _stop(self, container: str, seconds: Any) -> None:
        """Before it is started again: what it does at its end is done when it is looked at. Raises PolicyRefused for one that would be gone then."""
        if self._described(container)["HostConfig"].get("AutoRemove"):
            raise PolicyRefused(
                "A container that is removed at its end (--rm) is not restarted in this isolation.", "Run it anew."
            )
        self._engine.stop(container, **({"timeout": int(seconds)} if seconds else {}))
        self._check_users(container)

    def _check_users(self, container: str) -> None:
        """Raises PolicyRefused where the engine would read more than there can be users; it keeps each line of them."""
        volumes = bool(self._described(container).get("Mounts"))
        for path in ("/etc/passwd", "/etc/group"):
            found = self._stat(container, path)
            target = self._stat(container, found["linkTarget"]) if found.get("linkTarget") else {}
            hostruns.check_users(path, found, target, volumes=volumes)

    def _stat(self, container: str, path: str) -> dict[str, Any]:
        """A file of a container's, which is not opened; nothing where there is none."""
        url = self._engine._url("/containers/{0}/archive", container)
        answer = self._engine.head(url, params={"path": path})
        if answer.status_code == http.HTTPStatus.NOT_FOUND:
            return {}
        self._engine._raise_for_status(answer)
        return dict(docker.utils.decode_json_header(answer.headers.get("x-docker-container-path-stat")) or {})

    def _running(self, but: str = "") -> list[Caps]:
        starts = self._room.starts
        rows = (row for row in self._rows() if row["Id"] != but and row["Id"] not in starts)
        begun = (caps for container, caps in starts.items() if container != but)
        return [*(hostroom.granted(row["Labels"]) for row in rows), *begun, *self._room.builds]

    def _rows(self, **which: Any) -> list[dict[str, Any]]:
        """The sandbox's containers, those of its builds too."""
        rows = self._engine.containers(filters={"label": [f"{labelled.LABEL}={self.within.sandbox}"]}, **which)
        return [row for row in rows if labelled.belongs(self.within, row["Labels"], *row["Names"])]

    def _check_new(self, image: str) -> None:
        try:
            self._engine.inspect_image(image)
        except docker.errors.ImageNotFound:
            return
        raise labelled.there_already(image)


def _shows(path: str) -> Callable[[Within, Any], Any] | None:
    """What makes of an answer what is shown of it, where that is not all."""
    match path:
        case "/containers/json":
            return labelled.containers
        case "/images/json":
            return labelled.images
        case "/info":
            return labelled.info
    return labelled.inspected if _INSPECTED.fullmatch(path) else None


class BoundedClient(GuardedClient):
    """The tools'."""

    def __init__(self, dial: Dial, limits: Callable[[], Limits], within: Within) -> None:
        super().__init__(dial, limits)
        self.boundary = Boundary(dial, limits, within, by_tools=True)

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        path = url.removeprefix(str(self.base_url)).removeprefix(VERSION_PREFIX)
        try:
            if method == "POST":  # by the id that is looked at here
                url, path = url.removesuffix(path), self.boundary.path(method, path)
                url += path
            with self.boundary.room(method, path):
                response = super().request(method, url, *args, **kwargs)
        except Missing as missing:
            return _answer(url, 404, {"message": str(missing)})
        if response.status_code < 400 and (_shows(path) or path == "/containers/create" or path.endswith("/exec")):
            return _answer(url, response.status_code, self.boundary.shown(method, path, response.json()))
        return response

    def close(self) -> None:
        super().close()
        self.boundary.close()

    def _outgoing(self, method: str, path: str, query: Mapping[str, Any], data: Any, headers: Any) -> tuple[str, Any]:
        bare = path.removeprefix(VERSION_PREFIX)
        if method == "PUT" and data:
            data = _plain(data)
        return super()._outgoing(method, VERSION_PREFIX + self.boundary.path(method, bare), query, data, headers)

    def _decided(self, request: Request) -> Allowed:
        return self.boundary.decided(request, super()._decided(request))


def _plain(data: bytes | Iterable[bytes]) -> bytes:
    """What is to be unpacked in a container, without devices."""
    spool = io.BytesIO()
    contexts.copy(io.BufferedReader(Body(iter([data] if isinstance(data, bytes) else data))), None, _MOST, spool)
    return spool.getvalue()


def _answer(url: str, status: int, content: Any) -> requests.Response:
    """An answer that the engine did not give in these words."""
    response = requests.Response()
    response.url, response.status_code, response.reason = url, status, "Not Found" if status == 404 else "OK"
    response.headers = CaseInsensitiveDict({"Content-Type": "application/json"})
    response._content = json.dumps(content).encode()
    return response
