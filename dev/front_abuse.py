"""Callers who do not behave, in a process of their own: `python -m dev.front_abuse KIND HOST:PORT SECONDS SEED`.

What they got is printed as JSON: how often each status came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import grpc
import grpc.aio

from sidecar.call import Metadata
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, token_request

UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
MIB = 1 << 20
TENANT = (("x-tenant", "abuser"), ("triton_grpc_error", "true"))
CALLS_PER_CONNECTION = 250


class Abuser:
    """One kind of abuse for so many seconds."""

    def __init__(self, address: str, seconds: float, seed: int) -> None:
        self.statuses: Counter[str] = Counter()
        self._address = address
        self._until_s = asyncio.get_running_loop().time() + seconds
        self._draw = Random(seed)
        self._channels: list[grpc.aio.Channel] = []

    @property
    def left_s(self) -> float:
        """How much of the time is left."""
        return max(self._until_s - asyncio.get_running_loop().time(), 0.0)

    @property
    def over(self) -> bool:
        """True once the time is over."""
        return not self.left_s

    def stream(self, number: int, metadata: Metadata = TENANT) -> Any:
        """A new stream on one of a few connections."""
        while len(self._channels) <= number // CALLS_PER_CONNECTION:
            options = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1))
            self._channels.append(grpc.aio.insecure_channel(self._address, options=options))
        return self._channels[number // CALLS_PER_CONNECTION].stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=wire.InferRequest.SerializeToString,
            response_deserializer=wire.StreamResponse.FromString,
        )(metadata=metadata)

    async def close(self) -> None:
        """No connection is left."""
        for each in self._channels:
            await each.close()

    async def flood(self) -> None:
        """500 streams send one request after the other, and do not wait as long as they are told."""

        async def one(number: int) -> None:
            while not self.over:
                await self._ask(self.stream(number), request("f", output=8))
                await asyncio.sleep(0.05)

        await asyncio.gather(*map(one, range(500)))

    async def never_read(self) -> None:
        """50 streams ask for 20 answers of 2,000 tokens each, and read none."""
        streams = [self.stream(number) for number in range(50)]
        for each in streams:
            for number in range(20):
                await each.write(request(f"n{number}", output=2_000))
        await asyncio.sleep(self.left_s)
        for each in streams:
            each.cancel()
            self.statuses["unread"] += 1

    async def cancels(self) -> None:
        """5,000 requests are cancelled at random moments."""

        async def one(number: int) -> None:
            for _ in range(50):
                call = self.stream(number)
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                    await call.write(request("c", output=self._draw.choice((1, 8, 200))))
                    await asyncio.sleep(self._draw.choice((0, 0, 0.01, 0.1)))
                call.cancel()
                self.statuses["cancelled"] += 1

        await asyncio.gather(*map(one, range(100)))

    async def idle(self) -> None:
        """2,000 streams are opened, and say nothing."""
        streams = [self.stream(number) for number in range(2_000)]
        await asyncio.sleep(self.left_s)
        for each in streams:
            self.statuses[(await each.code()).name if each.done() else "idle"] += 1
            each.cancel()

    async def connects(self) -> None:
        """Up to 1,000 connections a second are opened and closed at once."""
        host, _, port = self._address.rpartition(":")
        while not self.over:
            made = await asyncio.gather(
                *(asyncio.open_connection(host, int(port)) for _ in range(50)), return_exceptions=True
            )
            for each in made:
                if isinstance(each, BaseException):
                    self.statuses[type(each).__name__] += 1
                else:
                    each[1].close()
                    self.statuses["connected"] += 1
            await asyncio.sleep(0.05)

    async def big(self) -> None:
        """Messages of 64 MiB, 12 at a time: some a little below the bound, some beyond it."""

        async def one(number: int) -> None:
            while not self.over:
                sent = request(f"b{number}", output=1)
                sent.parameters["note"].string_param = "x" * (64 * MIB - (1024 if number % 2 else -1024))
                await self._ask(self.stream(number), sent)

        await asyncio.gather(*map(one, range(12)))

    async def one_stream(self) -> None:
        """10,000 requests on one stream."""
        call = self.stream(0, TENANT[:1])  # an error ends no such stream

        async def read() -> None:
            for _ in range(10_000):
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                self.statuses["error" if answer.error_message else "response"] += 1

        reading = asyncio.ensure_future(read())
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for number in range(10_000):
                await call.write(request(f"o{number}", output=1))
            await call.done_writing()
        await asyncio.wait([reading], timeout=60)
        reading.cancel()
        call.cancel()

    async def long_prompts(self) -> None:
        """Prompts of 100,000 ids, 32 at a time."""

        async def one(number: int) -> None:
            while not self.over:
                await self._ask(self.stream(number), request(f"l{number}", output=1, prompt=100_000))

        await asyncio.gather(*map(one, range(32)))

    async def _ask(self, call: Any, sent: Any) -> None:
        try:
            await call.write(sent)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            self.statuses["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.statuses[error.code().name] += 1
        except asyncio.InvalidStateError:
            self.statuses[(await call.code()).name] += 1


KINDS: dict[str, Callable[[Abuser], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        *(Abuser.flood, Abuser.never_read, Abuser.cancels, Abuser.idle, Abuser.connects, Abuser.big),
        *(Abuser.one_stream, Abuser.long_prompts),
    )
}


def request(request_id: str, *, output: int, prompt: int = 3) -> Any:
    """A streamed request for so many tokens."""
    made = token_request("tensorrt_llm", (1,) * prompt, output, request_id)
    wire.add_tensor(made, "streaming", "BOOL", (True,), (1, 1))
    return made


async def main(kind: str, address: str, seconds: float, seed: int) -> Counter[str]:
    """What the abusers got."""
    abuser = Abuser(address, seconds, seed)
    await KINDS[kind](abuser)
    await abuser.close()
    return abuser.statuses


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))))
