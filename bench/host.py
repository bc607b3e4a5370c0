"""The other side: the host's own Docker as people use it, by command line and by docker-py. Times in milliseconds."""

import contextlib
import io
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from bench import stopwatch

IMAGE = "localhost/manyoyo-bench/busybox:latest"
_LABEL = "org.manyoyo.bench"


class HostDocker:
    """Its containers run on plain runc, whatever runtime sandboxes need; its image has the same files as theirs."""

    def __init__(self, rootfs: bytes) -> None:
        self.label = f"{_LABEL}={secrets.token_hex(4)}"
        self.api = docker.from_env(timeout=120)
        info = self.api.info()
        self.about = f"Docker {info['ServerVersion']}, {info['Driver']}, cgroup v{info.get('CgroupVersion', '1')}"
        self._runtime = "runc" if "runc" in info.get("Runtimes", {}) else None
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            file.write(rootfs)
            file.flush()
            _docker("import", "--change", f"LABEL {self.label}", file.name, IMAGE)

    def close(self) -> None:
        """Remove whatever is left of this run's containers, and its images."""
        for container in self.api.containers.list(all=True, ignore_removed=True, filters={"label": self.label}):
            container.remove(force=True)
        images = self.api.images.list(all=True, filters={"label": self.label})
        for image in sorted(images, key=lambda each: str(each.attrs["Created"]), reverse=True):  # children first
            with contextlib.suppress(docker.errors.APIError):  # gone with its child, or to go with another's
                self.api.images.remove(str(image.id), force=True)
        self.api.close()

    def _run(self, *words: str) -> list[str]:
        runtime = ["--runtime", self._runtime] if self._runtime else []
        return ["run", *runtime, "--label", self.label, *words]

    # -- by the command line

    def start(self) -> float:
        """`docker run -d`: until the command returns with the container's id."""
        began = time.perf_counter()
        container = _docker(*self._run("-d", IMAGE, "sleep", "1000"))
        spent = _ms(began)
        _docker("rm", "-f", container)
        return spent

    def run(self, network: str) -> float:
        """`docker run --rm`: until the command has exit code and output."""
        began = time.perf_counter()
        output = _docker(*self._run("--rm", "--network", network, IMAGE, "echo", "hi"))
        spent = _ms(began)
        assert output == "hi", output
        return spent

    def timed(self, command: str, image: str = IMAGE, network: str = "none", *words: str) -> float:
        """What a command that times itself says, in milliseconds, in a container."""
        output = _docker(*self._run("--rm", "--network", network, "--memory", "2g", *words, image, "sh", "-c", command))
        return stopwatch.told(output)

    @contextlib.contextmanager
    def serving(self, command: str) -> Iterator[str]:
        """The address of a container that runs a shell's command."""
        container = _docker(*self._run("-d", IMAGE, "sh", "-c", command))
        try:
            yield _docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", container)
        finally:
            _docker("rm", "-f", container)

    def cached(self, dockerfile: str) -> float:
        """`docker build` where every step is in the cache."""
        with tempfile.TemporaryDirectory() as context:
            (Path(context) / "Dockerfile").write_text(dockerfile.format(image=IMAGE))
            environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
            began = time.perf_counter()
            _docker("build", "--quiet", "--label", self.label, context, env=environment)
            return _ms(began)

    def run_kept(self, network: str) -> float:
        """`docker run` without `--rm`: nobody waits for the removal."""
        name = f"manyoyo-bench-{secrets.token_hex(4)}"
        began = time.perf_counter()
        output = _docker(*self._run("--name", name, "--network", network, IMAGE, "echo", "hi"))
        spent = _ms(began)
        assert output == "hi", output
        _docker("rm", "-f", name)
        return spent

    @contextlib.contextmanager
    def service(self) -> Iterator[str]:
        """A container that stays, for execs."""
        container = _docker(*self._run("-d", IMAGE, "sleep", "10000"))
        try:
            yield container
        finally:
            _docker("rm", "-f", container)

    def exec(self, container: str) -> float:
        began = time.perf_counter()
        output = _docker("exec", container, "echo", "hi")
        spent = _ms(began)
        assert output == "hi", output
        return spent

    def build(self, dockerfile: str, network: str) -> float:
        """`docker build` with the classic builder, which is the class of builder that sandboxes use."""
        with tempfile.TemporaryDirectory() as context:
            (Path(context) / "Dockerfile").write_text(dockerfile.format(image=IMAGE))
            environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
            began = time.perf_counter()
            words = ("build", "--no-cache", "--quiet", "--network", network, "--label", self.label, context)
            image = _docker(*words, env=environment)
            spent = _ms(began)
        _docker("rmi", "-f", image)
        return spent

    # -- by docker-py

    def py_run(self, network: str, api: docker.DockerClient | None = None) -> float:
        """`containers.run(remove=True)` over a connection that is open."""
        began = time.perf_counter()
        output = (api or self.api).containers.run(
            IMAGE, ["echo", "hi"], remove=True, network_mode=network, labels=[self.label], runtime=self._runtime
        )
        spent = _ms(began)
        assert output == b"hi\n", output
        return spent

    def py_build(self, dockerfile: str, api: docker.DockerClient) -> None:
        """A build by the classic builder, which is the one that docker-py knows."""
        file = io.BytesIO(dockerfile.format(image=IMAGE).encode())
        labels = dict([self.label.split("=", 1)])
        image, _ = api.images.build(fileobj=file, nocache=True, rm=True, labels=labels)
        api.images.remove(image.id, force=True)

    def py_exec(self, container: str, api: docker.DockerClient | None = None) -> float:
        held = (api or self.api).containers.get(container)
        began = time.perf_counter()
        ended = held.exec_run(["echo", "hi"])
        spent = _ms(began)
        assert ended.output == b"hi\n", ended
        return spent


def _docker(*words: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(words)} failed with {done.returncode}:\n{done.stderr}")
    return done.stdout.strip()


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
