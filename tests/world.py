"""A small internet for tests of what leaves a sandbox: one container that has names, addresses of every kind, and a registry; what leads
there is laid in the sandbox."""

import gzip
import hashlib
import json
import os
import re
import time
from typing import Any

import docker
import requests

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from tests.support import busybox_rootfs, exec_in, file_of

LISTED, WILD, UNLISTED, IN_RANGE, OTHER_RESOLVER = (
    "198.51.100.10",
    "198.51.100.11",
    "198.51.100.20",
    "198.51.100.33",
    "198.51.100.54",
)
METADATA, PRIVATE = "169.254.169.254", "10.77.0.5"
OVER6 = "2001:db8:77::10"
ALLOW = ["allowed.test:80", "allowed.test:5000", "*.wild.test", "198.51.100.32/28", "v6.test:5000"]
_NAMES = {
    "allowed.test": LISTED,
    "below.allowed.test": UNLISTED,
    "deep.wild.test": WILD,
    "other.test": UNLISTED,
    "rebind.wild.test": METADATA,
    "v6.test": OVER6,
}
_IPV6 = "for each in all eth0 lo; do echo 0 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done"
_SERVE = """
for each in {addresses}; do ip addr add $each/32 dev lo; done
{ipv6}
ip addr add {over6}/128 dev lo; ip addr add fd77::1/64 dev eth0 nodad
mkdir /www; echo hello > /www/index.html
for port in 80 8080; do busybox httpd -p $port -h /www; done
busybox nc -ll -p 7000 -e sh -c 'while echo tick; do sleep 0.1; done' &
dnsmasq --port=53 --no-resolv --no-hosts {names} --txt-record=secret.other.test,hello --log-queries --log-facility=/dns.log --pid-file=/run/1
dnsmasq --port=5354 --no-resolv --no-hosts {names} --pid-file=/run/2
printf 'version: 0.1\\nlog: {{level: error}}\\nstorage: {{filesystem: {{rootdirectory: /registry}}}}\\nhttp: {{addr: ":5000"}}\\n' > /registry.yml
docker-registry serve /registry.yml
"""


class World:
    """It runs from its making until `end`."""

    def __init__(self) -> None:
        self.host = docker.from_env()
        addresses = " ".join((LISTED, WILD, UNLISTED, IN_RANGE, OTHER_RESOLVER, METADATA, PRIVATE))
        names = " ".join(f"--address=/{name}/{address}" for name, address in _NAMES.items())
        script = _SERVE.format(addresses=addresses, over6=OVER6, ipv6=_IPV6, names=names)
        self.container = self.host.containers.run(
            outer.reference(Settings()), [script], entrypoint=["/usr/bin/catatonit", "--", "sh", "-c"], detach=True,
            privileged=True, runtime=os.environ.get("MANYOYO_HOST_RUNTIME"),
        )  # fmt: skip
        self.container.reload()
        self.address = str(self.container.attrs["NetworkSettings"]["IPAddress"])
        self.gateway = str(self.container.attrs["NetworkSettings"]["Gateway"])
        self._push("image")

    def end(self) -> None:
        self.container.remove(force=True, v=True)
        self.host.close()

    def lead(self, sandbox_id: str, over6: bool = True) -> None:
        """The world is the internet of this sandbox, and its name servers. Only one that is privileged can have it `over6` too."""
        _, resolv_conf = self.outer(sandbox_id, "cat /etc/resolv.conf")
        servers = re.findall(r"^nameserver ([0-9.]+)", resolv_conf, re.MULTILINE)
        assert servers and not servers[0].startswith("127."), resolv_conf
        for server in servers:
            self.container.exec_run(["ip", "addr", "replace", f"{server}/32", "dev", "lo"])
        script = f"""set -e
for each in 198.51.100.0/24 {METADATA} {PRIVATE} {" ".join(servers)}; do ip route replace $each via {self.address}; done
{"exit" if not over6 else ""}
{_IPV6}
ip addr replace fd77::2/64 dev eth0 nodad; ip route replace 2001:db8:77::/64 via fd77::1"""
        code, said = self.outer(sandbox_id, script)
        assert code == 0, said

    def outer(self, sandbox_id: str, script: str) -> tuple[int, str]:
        code, said = exec_in(self.host.containers.get(f"manyoyo-{sandbox_id}"), ["sh", "-c", script])
        return code, said.decode()

    def asked(self) -> str:
        """What its name server was asked."""
        return file_of(self.container, "/dns.log").decode()

    def _push(self, name: str) -> None:
        """An image into the registry, by its own API."""
        url = f"http://{self.address}:5000"
        deadline = time.monotonic() + 20
        while True:
            try:
                requests.get(f"{url}/v2/", timeout=1)
                break
            except requests.RequestException:
                assert time.monotonic() < deadline, self.container.logs().decode()
                time.sleep(0.05)
        root = busybox_rootfs()
        layer = gzip.compress(root, 1)
        config = {
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
        }  # fmt: skip
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._blob(
                url, name, "application/vnd.docker.container.image.v1+json", json.dumps(config).encode()
            ),
            "layers": [self._blob(url, name, "application/vnd.docker.image.rootfs.diff.tar.gzip", layer)],
        }
        answer = requests.put(
            f"{url}/v2/{name}/manifests/latest",
            json.dumps(manifest),
            headers={"Content-Type": manifest["mediaType"]},
            timeout=20,
        )
        assert answer.status_code == 201, answer.text

    def _blob(self, url: str, name: str, kind: str, content: bytes) -> dict[str, Any]:
        begun = requests.post(f"{url}/v2/{name}/blobs/uploads/", timeout=20)
        where = begun.headers["Location"]
        put = requests.put(
            f"{where}{'&' if '?' in where else '?'}digest={_digest(content)}", content,
            headers={"Content-Type": "application/octet-stream"}, timeout=20,
        )  # fmt: skip
        assert put.status_code == 201, put.text
        return {"mediaType": kind, "size": len(content), "digest": _digest(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
