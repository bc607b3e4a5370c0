"""What the nested engine fetches (`FROM`, `ADD http://…`) it fetches from the outer container: whose own loopback is no place to fetch from."""

import anyio.to_thread
import docker
import pytest

from manyoyo_mcp.errors import Reason
from manyoyo_mcp.sessions.manager import Manager
from tests.support import BUSYBOX, Box, busybox_context, exec_in

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
_SERVE = """
echo 0 > /proc/sys/net/ipv6/conf/lo/disable_ipv6; mkdir -p /run/www; echo served-by-the-outer > /run/www/file
for at in 127.0.0.1 '[::1]'; do busybox httpd -p $at:8099 -h /run/www || exit 1; done
"""
_LISTENING = "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" { print $2 }'; cat /proc/net/udp /proc/net/udp6 | awk '$4 == \"07\" { print $2 }'"


async def outer(box: Box, script: str) -> str:
    def call() -> str:
        container = docker.from_env().containers.get(box.sandbox.outer.container_id)
        code, said = exec_in(container, ["sh", "-c", script])
        assert code == 0, said
        return str(said.decode())

    return await anyio.to_thread.run_sync(call)


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_the_engine_fetches_nothing_from_there(manager: Manager, engine: str) -> None:
    sandbox = await manager.start(engine, memory=1 << 30)  # type: ignore[arg-type]
    box = Box(manager, sandbox)
    try:
        assert (await box.build(files=busybox_context(), tags=[BUSYBOX])).image_id
        ports = {int(line.rpartition(":")[2], 16) for line in (await outer(box, _LISTENING)).split()}
        assert ports <= {53, 1053}, "nothing listens in the outer container but its name server"
        await outer(box, _SERVE)
        own = (await outer(box, "hostname -i || busybox hostname -i")).split()[0]
        for address in ("127.0.0.1", "[::1]", "localhost", "0.0.0.0", own):
            said: list[bytes] = []
            built = await box.build(
                f"FROM {BUSYBOX}\nADD http://{address}:8099/file /file\nRUN cat /file\n", output=said
            )
            assert built.reason is Reason.BUILD_FAILED and b"served-by-the-outer" not in b"".join(said), (
                address,
                built,
            )
        # As where nothing listens: it is not the network policy's list that such an address is missing in.
        told = await box.build("FROM 127.0.0.1:8099/image\n")
        assert told.reason is Reason.BUILD_FAILED and told.cause_code == "IMAGE_NOT_FOUND", told
    finally:
        await manager.remove(sandbox)
