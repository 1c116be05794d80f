"""What lies between the messages: compression, metadata, sizes."""

from __future__ import annotations

from tests.integration.compare.allowed import REFUSED_EARLIER
from tests.integration.compare.messages import ids, query, tensor, text, tokens
from tests.integration.compare.scenario import Ask, Close, Open, Scenario, Send, Subject

BIG = 4 * 1024 * 1024


def with_metadata(name: str, *metadata: tuple[str, str]) -> tuple[Scenario, ...]:
    """A stream and a unary call with this metadata."""
    return (
        Scenario(name=f"{name}, stream", steps=(Open(metadata=metadata), Send(body=ids(id="a")), Close())),
        Scenario(name=f"{name}, unary", steps=(Ask(method="ModelInfer", body=query(id="a"), metadata=metadata),)),
    )


def compressed(how: str) -> tuple[Scenario, ...]:
    """A stream, a unary call and one about a model, compressed."""
    return (
        Scenario(
            name=f"{how}, stream",
            steps=(Open(compression=how), Send(body=text(id="a")), Send(body=query(id="b")), Close()),
            clients=("python", "go") if how == "gzip" else ("python",),
        ),
        Scenario(
            name=f"{how}, unary",
            steps=(
                Ask(method="ModelInfer", body=query("word " * 200, id="a"), compression=how),
                Ask(method="ServerMetadata", compression=how),
            ),
        ),
    )


def long_text(size: int) -> bytes:
    return b"the train to the coast " * (size // 23)


TRANSPORT = Subject(
    title="Compression, metadata, sizes",
    scenarios=(
        *compressed("gzip"),
        *compressed("deflate"),
        *with_metadata("own metadata", ("x-own", "1"), ("x-own", "2"), ("x-tenant", "t")),
        *with_metadata("a trace parent", ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
        *with_metadata("authorization", ("authorization", "Basic dXNlcjpwYXNz")),
        *with_metadata("a key of a restricted protocol", ("triton-grpc-protocol-x", "y")),
        Scenario(
            name="4 MiB of text to a model that is not scheduled",
            steps=(Ask(method="ModelInfer", body=tokens([75] * (BIG // 4), id="a")),),
            clients=("python", "go"),
        ),
        Scenario(
            name="20 MiB of text to a model that is not scheduled, by stream",
            steps=(Open(), Send(body=tokens([75] * (5 * BIG // 4), id="a")), Close()),
        ),
        Scenario(
            name="4 MiB of text as a prompt",
            steps=(Open(), Send(body=text(long_text(BIG), id="a")), Close()),
            differs=(REFUSED_EARLIER,),
        ),
        Scenario(
            name="20 MiB of ids as a prompt",
            steps=(Open(), Send(body=ids(prompt=[7] * (5 * BIG // 4), id="a")), Close()),
            differs=(REFUSED_EARLIER,),
        ),
        Scenario(
            name="8 MiB of an unknown input",
            steps=(Open(), Send(body=ids(id="a", more=[tensor("no-such", "INT32", [1] * (2 * BIG // 4))])), Close()),
        ),
        Scenario(
            name="8 MiB of parameters",
            steps=(Ask(method="ModelInfer", body=query(id="a", parameters={"x": "y" * 2 * BIG})),),
        ),
    ),
)
