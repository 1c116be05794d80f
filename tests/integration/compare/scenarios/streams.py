"""ModelStreamInfer: one stream, any number of requests, any mixture of models."""

from __future__ import annotations

from typing import Any

from tests.integration.compare.messages import EMPTY_FINAL, ids, query, tensor, text, tokens
from tests.integration.compare.scenario import Await, Close, Open, Scenario, Send, Subject


def streamed(name: str, *bodies: bytes, **options: Any) -> Scenario:
    """These requests on one stream, at once; it is closed and read to its end."""
    return Scenario(name=name, steps=(Open(), *(Send(body=body) for body in bodies), Close()), **options)


FINALS = {EMPTY_FINAL: True}
MORE = [7, 8, 1]
STREAMS = Subject(
    title="Streams (ModelStreamInfer)",
    scenarios=(
        streamed("ids, token by token", ids(id="a")),
        streamed("ids, in one piece", ids(id="a", streaming=False)),
        streamed("ids, streaming not said", ids(id="a", streaming=None)),
        streamed("text, piece by piece", text(id="a")),
        streamed("text, in one piece", text(id="a", stream=False)),
        streamed("text, stream not said", text(id="a", stream=None)),
        streamed("ids, empty final asked for", ids(id="a", parameters=FINALS)),
        streamed("text, empty final asked for", text(id="a", parameters=FINALS)),
        streamed("preprocessing, empty final asked for", query(id="a", parameters=FINALS)),
        streamed("empty final refused by a false parameter", ids(id="a", parameters={EMPTY_FINAL: False})),
        streamed("empty final parameter of the wrong type", ids(id="a", parameters={EMPTY_FINAL: "true"})),
        streamed("no request at all"),
        streamed("one that is not scheduled", query(id="a")),
        streamed("three requests of the engine model", ids(id="a"), ids(prompt=MORE, id="b"), ids(tokens=3, id="c")),
        streamed("engine, text and preprocessing mixed", ids(id="a"), query(id="b"), text(id="c"), tokens(id="d")),
        streamed(
            "three that are not scheduled keep their order", query("x", id="a"), tokens(id="a"), query("y", id="a")
        ),
        streamed("without an id", ids()),
        streamed("two without an id", ids(), ids(), twins=True),
        streamed("two of the same id", ids(id="a"), ids(id="a"), twins=True),
        streamed("an id of 4,000 characters", ids(id="x" * 4000)),
        streamed("an id that is not ASCII", ids(id="día-日本-🙂")),
        streamed("an id with a line break and quotes", text(id='a"\n\tb')),
        Scenario(
            name="a second request after the first has ended",
            steps=(Open(), Send(body=ids(id="a", tokens=4)), Await(responses=4), Send(body=text(id="b")), Close()),
        ),
        streamed("version 1 of the engine model", ids(id="a", version="1")),
        streamed("requested outputs, both of the engine model", ids(id="a", outputs=("output_ids", "sequence_length"))),
        streamed("requested outputs, in the other order", ids(id="a", outputs=("sequence_length", "output_ids"))),
        streamed("requested output, only one", ids(id="a", outputs=("output_ids",))),
        streamed("requested output, text", text(id="a", outputs=("text_output",))),
        streamed(
            "counts of tokens returned",
            ids(
                id="a",
                more=[
                    tensor("return_num_input_tokens", "BOOL", [True]),
                    tensor("return_num_output_tokens", "BOOL", [True]),
                ],
            ),
        ),
        streamed("performance figures returned", ids(id="a", more=[tensor("return_perf_metrics", "BOOL", [True])])),
        streamed(
            "two sequences, sampled by a seed",
            ids(
                id="a",
                more=[
                    tensor("num_return_sequences", "INT32", [2]),
                    tensor("runtime_top_k", "INT32", [4]),
                    tensor("seed", "UINT64", [11]),
                ],
            ),
        ),
        streamed(
            "sampled by a seed",
            text(
                id="a",
                more=[
                    tensor("top_k", "INT32", [4]),
                    tensor("seed", "UINT64", [11]),
                    tensor("temperature", "FP32", [0.7]),
                ],
            ),
        ),
        streamed(
            "the prompt repeated in the output",
            ids(id="a", streaming=False, more=[tensor("exclude_input_in_output", "BOOL", [False])]),
        ),
        streamed("an end id that ends it", ids(id="a", tokens=60, more=[tensor("end_id", "INT32", [2])])),
        streamed(
            "stop words by ids", ids(id="a", tokens=12, more=[tensor("stop_words_list", "INT32", [1216, 1], (1, 2, 1))])
        ),
        streamed("stop words by text", text(id="a", tokens=30, more=[tensor("stop_words", "BYTES", [b" window"])])),
        streamed("bad words by text", text(id="a", tokens=12, more=[tensor("bad_words", "BYTES", [b" window"])])),
    ),
)
