"""Apache Kafka itself on this machine: one small KRaft JVM per node, made from nothing and thrown away afterwards.

No emulator stands in for it: they miss exactly the details of transactions that the offline lane rests on.
`scripts/setup` fetches the jars; `kafka/server.properties` and `kafka/topics.yaml` say how the nodes and topics look.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Self

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from sidecar.core.errors import SidecarError

ROOT = Path(__file__).resolve().parent.parent
JARS = ROOT / ".cache" / "kafka" / "libs"
START_TIMEOUT_S = 60.0  # measured: 1.1 s for one node, 3.2 s for three, on two idle cores
STOP_TIMEOUT_S = 10.0  # measured: 0.3 s after SIGTERM
LOWEST_PORT = 15000  # of those picked by free_ports: above what is commonly installed
PORTS_TRIED = 1000
ALREADY_EXISTS = 36  # TOPIC_ALREADY_EXISTS; aiokafka returns errors of create_topics instead of raising them


class BrokerError(SidecarError):
    """The local broker cannot run; the message says what to do."""


def kafka_version(jars: Path = JARS) -> str:
    """The version of the fetched jars. Raises BrokerError, with the remedy, if there are none."""
    names = [
        match[1] for jar in jars.glob("kafka_2.13-*.jar") if (match := re.fullmatch(r"kafka_2\.13-(.*)\.jar", jar.name))
    ]
    if not names:
        raise BrokerError(f"no Apache Kafka in {jars}: run scripts/setup (needs Java 17 and Maven)")
    return names[0]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listened on a moment ago, all different.

    They lie below those that the kernel gives to outgoing connections. Of those, a server that was stopped may not get
    its own back: a client that dials it again meanwhile can be given that very port, and is then connected to itself.
    """
    free: list[int] = []
    for port in random.sample(range(LOWEST_PORT, _first_outgoing_port()), k=PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no listener
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise BrokerError(f"fewer than {count} of {PORTS_TRIED} ports of 127.0.0.1 are free: end what listens there")


def _first_outgoing_port() -> int:
    """Where the kernel's range for outgoing connections starts: 32768 unless somebody set it or this is no Linux."""
    with contextlib.suppress(OSError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        return max(first, LOWEST_PORT + PORTS_TRIED)
    return 32768


@dataclass(slots=True, kw_only=True)
class _Node:
    """One JVM: where it listens, where it keeps its data, and the process if it runs."""

    id: int
    ports: dict[str, int]  # by the listener's name
    advertised: dict[str, int]  # what clients of a listener are told, if not its own port
    directory: Path
    process: asyncio.subprocess.Process | None = None


class LocalKafka:
    """A cluster of one or three nodes for as long as the context lasts.

    Inside the context `bootstrap_servers` answers and the internal topics can be created. Afterwards every process
    has ended (SIGTERM, then SIGKILL after `STOP_TIMEOUT_S`) and the data are gone.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        listeners: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        format_arguments: Sequence[str] = (),
        jars: Path = JARS,
    ) -> None:
        self.version = kafka_version(jars)
        self.cluster_id = _cluster_id()
        self.directory = Path(tempfile.mkdtemp(prefix="kafka-"))
        self._protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **(listeners or {})}
        ports = iter(free_ports(brokers * len(self._protocols)))
        self._nodes = [
            _Node(
                id=number,
                ports={name: next(ports) for name in self._protocols},
                advertised={},
                directory=self.directory / str(number),
            )
            for number in range(1, brokers + 1)
        ]
        self._properties = dict(properties or {})
        self._format_arguments = list(format_arguments)
        self._jars = jars

    @property
    def brokers(self) -> int:
        """Return how many nodes the cluster has, running or not."""
        return len(self._nodes)

    @property
    def bootstrap_servers(self) -> str:
        """All nodes, for any client's setting of that name."""
        return ",".join(f"127.0.0.1:{self.port(index)}" for index in range(self.brokers))

    def port(self, index: int = 0, listener: str = "PLAINTEXT") -> int:
        """Return where this node listens."""
        return self._nodes[index].ports[listener]

    def advertise(self, index: int, listener: str, port: int) -> None:
        """Clients of this listener will be told to use `port`: a proxy's. Before the context is entered."""
        self._nodes[index].advertised[listener] = port

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self._format(node) for node in self._nodes))
            for index in range(self.brokers):
                await self.start(index)
            await self.wait_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def start(self, index: int = 0) -> None:
        """The process of this node runs; it may not answer yet (`wait_ready`)."""
        node = self._nodes[index]
        node.process = await asyncio.create_subprocess_exec(
            *self._java("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=64m"),
            f"-Dorg.slf4j.simpleLogger.logFile={node.directory}/broker.log",
            *("kafka.Kafka", str(node.directory / "server.properties")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal ends the client first, then, through us, the broker
        )

    async def stop(self, index: int = 0, how: signal.Signals = signal.SIGTERM) -> None:
        """The process of this node has ended; SIGKILL helps after `STOP_TIMEOUT_S`."""
        process = self._nodes[index].process
        if process is None:
            return
        self._nodes[index].process = None
        if process.returncode is None:
            process.send_signal(how)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Every running node answers an admin client and counts all of them. Raises BrokerError with the log's end."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._answer():
                    self._raise_if_dead()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise BrokerError(f"Apache Kafka did not answer within {timeout_s:.0f} s: {self._log_end()}") from None

    async def create_topics(self, partitions: int | None = None, file: Path = ROOT / "kafka" / "topics.yaml") -> None:
        """The topics of `kafka/topics.yaml` exist, replicated on every node."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            await create_topics(admin, file, partitions=partitions, replicas=self.brokers)
        finally:
            await admin.close()

    async def _answer(self) -> bool:
        running = [node for node in self._nodes if node.process is not None]
        answers = await asyncio.gather(*(_registered(node.ports["PLAINTEXT"]) for node in running))
        return all(registered >= len(running) for registered in answers)

    async def _format(self, node: _Node) -> None:
        node.directory.mkdir(parents=True)
        config = node.directory / "server.properties"
        config.write_text(self._config(node))
        process = await asyncio.create_subprocess_exec(
            *self._java(),
            *("kafka.tools.StorageTool", "format", "-g", "-t", self.cluster_id, "-c", str(config)),
            *self._format_arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise BrokerError(f"formatting the broker's storage failed: {output.decode(errors='replace').strip()}")

    def _config(self, node: _Node) -> str:
        clients = {name: port for name, port in node.ports.items() if name != "CONTROLLER"}
        filled = Template((ROOT / "kafka" / "server.properties").read_text()).substitute(
            node_id=node.id,
            listeners=_listeners(node.ports),
            advertised=_listeners(clients | node.advertised),
            protocols=",".join(f"{name}:{protocol}" for name, protocol in self._protocols.items()),
            directory=node.directory,
            voters=",".join(f"{each.id}@127.0.0.1:{each.ports['CONTROLLER']}" for each in self._nodes),
            replicas=self.brokers,
            min_insync=max(1, self.brokers - 1),
        )
        return filled + "".join(f"{name}={value}\n" for name, value in self._properties.items())  # the last one wins

    def _java(self, *options: str) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise BrokerError("Java 17 or newer is missing (on Debian: scripts/demo --install-prerequisites)")
        quick = ("-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        return [java, *options, *quick, "-cp", f"{self._jars}/*"]

    def _raise_if_dead(self) -> None:
        for node in self._nodes:
            if node.process is not None and node.process.returncode is not None:
                raise BrokerError(f"Apache Kafka ended with {node.process.returncode}: {self._log_end()}")

    def _log_end(self) -> str:
        logs = [node.directory / "broker.log" for node in self._nodes]
        lines = [
            line
            for log in logs
            if log.exists()
            for line in log.read_text(errors="replace").splitlines()
            if line[:1].strip()
        ]
        return " | ".join(lines[-5:]) or "no log"

    async def _end(self) -> None:
        await asyncio.gather(*(self.stop(index) for index in range(self.brokers)))
        shutil.rmtree(self.directory, ignore_errors=True)


def _listeners(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


async def _registered(port: int) -> int:
    """Return how many brokers the node at this port knows; 0 if it does not answer."""
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # the admin client would log each refusal
        writer.close()
        await admin.start()
        return len((await admin.describe_cluster())["brokers"])
    except (KafkaError, OSError):
        return 0
    finally:
        await admin.close()


async def create_topics(
    admin: AIOKafkaAdminClient, file: Path, *, partitions: int | None = None, replicas: int = 1
) -> None:
    """The topics of `file` exist in this cluster; those that existed are left as they are. Raises BrokerError."""
    wanted = yaml.safe_load(await asyncio.to_thread(file.read_text))
    topics = [
        NewTopic(
            name=name,
            num_partitions=partitions or wanted["partitions"],
            replication_factor=replicas,
            topic_configs={key: str(value) for key, value in config.items()},
        )
        for name, config in wanted["topics"].items()
    ]
    answer = await admin.create_topics(topics)
    refused = {error[0]: error[1:] for error in answer.topic_errors if error[1] not in (0, ALREADY_EXISTS)}
    if refused:
        raise BrokerError(f"the broker refused topics: {refused}")


def _cluster_id() -> str:
    while True:
        text = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        if not text.startswith("-"):  # the format tool would take it for an option
            return text
