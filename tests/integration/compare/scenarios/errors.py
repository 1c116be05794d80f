"""Wrong requests of scheduled models, one fault at a time."""

from __future__ import annotations

from collections.abc import Sequence

from tests.integration.compare.allowed import (
    CUT_IN_SILENCE,
    REFUSED_BEFORE_THE_MODEL,
    REFUSED_EARLIER,
    SAID,
    SURPLUS,
    UNREADABLE,
)
from tests.integration.compare.messages import (
    ENGINE,
    PROMPT,
    TEXT,
    Tensor,
    ids,
    ids_inputs,
    infer,
    tensor,
    text,
    text_inputs,
    typed,
)
from tests.integration.compare.scenario import Subject
from tests.integration.compare.scenarios.streams import streamed


def without(model: str, *names: str) -> bytes:
    """A right request but for these inputs, which are missing."""
    return infer(model, *(each for each in _inputs(model) if each.name not in names), id="a")


def swapped(model: str, other: Tensor) -> bytes:
    """A right request but for this input."""
    return infer(model, *(other if each.name == other.name else each for each in _inputs(model)), id="a")


def beside(model: str, *more: Tensor) -> bytes:
    """A right request, and these inputs."""
    return infer(model, *_inputs(model), *more, id="a")


def number(name: str, value: int) -> Tensor:
    """A scalar INT32."""
    return tensor(name, "INT32", [value])


def bare(name: str, shape: Sequence[int], raw: bytes | None = None, datatype: str = "INT32") -> Tensor:
    """An input whose contents are just these bytes."""
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), raw=raw)


def lengths(name: str) -> Tensor:
    """A scalar input with typed contents, of a right request."""
    return typed(name, "INT32", [{"input_lengths": len(PROMPT), "request_output_len": 6}[name]])


def typed_ids(values: Sequence[int], shape: Sequence[int]) -> bytes:
    """A request with typed contents."""
    prompt = typed("input_ids", "INT32", values, shape)
    return infer(ENGINE, prompt, lengths("input_lengths"), lengths("request_output_len"), id="a")


def _inputs(model: str) -> list[Tensor]:
    return ids_inputs() if model == ENGINE else text_inputs()


OUT = "request_output_len"
TWO_TEXTS = infer(
    TEXT,
    tensor("text_input", "BYTES", [b"a", b"b"], (2, 1)),
    tensor("max_tokens", "INT32", [3, 3], (2, 1)),
    id="a",
)
TWO_PROMPTS = infer(
    ENGINE,
    tensor("input_ids", "INT32", [7, 1, 8, 1], (2, 2)),
    tensor("input_lengths", "INT32", [2, 2], (2, 1)),
    tensor(OUT, "INT32", [3, 3], (2, 1)),
    id="a",
)
SHAPES = Subject(
    title="Wrong tensors",
    scenarios=(
        streamed("a required input is missing", without(ENGINE, OUT), differs=(REFUSED_BEFORE_THE_MODEL,)),
        streamed(
            "two required inputs are missing",
            without(ENGINE, OUT, "input_lengths"),
            differs=(REFUSED_BEFORE_THE_MODEL,),
        ),
        streamed("all required inputs are missing", without(ENGINE, OUT, "input_lengths", "input_ids")),
        streamed("the prompt ids are missing", without(ENGINE, "input_ids"), differs=(REFUSED_EARLIER,)),
        streamed("no input at all", infer(ENGINE, id="a")),
        streamed("max_tokens is missing", without(TEXT, "max_tokens"), differs=(SAID,)),
        streamed("the text is missing", without(TEXT, "text_input"), differs=(SAID,)),
        streamed("no input at all of the text model", infer(TEXT, id="a")),
        streamed("an unknown input", beside(ENGINE, tensor("temprature", "FP32", [0.5]))),
        streamed("an unknown input by text", beside(TEXT, tensor("temprature", "FP32", [0.5]))),
        streamed("an unknown input without an id", ids(more=[tensor("temprature", "FP32", [0.5])])),
        streamed("an input twice", beside(ENGINE, tensor("streaming", "BOOL", [False]))),
        streamed("an input twice by text", beside(TEXT, tensor("stream", "BOOL", [False]))),
        streamed("a wrong datatype", swapped(ENGINE, tensor(OUT, "INT64", [6]))),
        streamed("a wrong datatype by text", swapped(TEXT, tensor("max_tokens", "INT64", [6]))),
        streamed(
            "UINT32 for INT32, as an older client of NVIDIA sends it", swapped(ENGINE, tensor(OUT, "UINT32", [6]))
        ),
        streamed("a datatype that does not exist", swapped(ENGINE, bare(OUT, (1, 1), bytes([6, 0, 0, 0]), "INT33"))),
        streamed("a dimension too many", swapped(ENGINE, tensor(OUT, "INT32", [6], (1, 1, 1)))),
        streamed("a dimension too few", swapped(ENGINE, tensor(OUT, "INT32", [6], (1,)))),
        streamed("a dimension too few by text", swapped(TEXT, tensor("text_input", "BYTES", [b"a"], (1,)))),
        streamed("no dimension", swapped(ENGINE, bare(OUT, (), bytes(4)))),
        streamed("a dimension of 0", swapped(ENGINE, bare(OUT, (1, 0), b""))),
        streamed("a wrong dimension", swapped(ENGINE, tensor(OUT, "INT32", [6, 6]))),
        streamed("a negative dimension", swapped(ENGINE, bare("input_ids", (1, -1), bytes(16)))),
        streamed("fewer bytes than the shape needs", swapped(ENGINE, bare("input_ids", (1, 4), bytes(4)))),
        streamed("more bytes than the shape needs", swapped(ENGINE, bare("input_ids", (1, 4), bytes(24)))),
        streamed("typed contents", typed_ids(PROMPT, (1, 4))),
        streamed(
            "typed text",
            infer(TEXT, typed("text_input", "BYTES", [b"the train"]), typed("max_tokens", "INT32", [6]), id="a"),
        ),
        streamed("typed contents longer than their shape", typed_ids([*PROMPT] * 9, (1, 4))),
        streamed("typed contents shorter than their shape", typed_ids([7, 1], (1, 4))),
        streamed(
            "typed contents of another datatype",
            infer(ENGINE, typed("input_ids", "FP32", [1.0, 2.0]), lengths("input_lengths"), lengths(OUT), id="a"),
        ),
        streamed("typed and raw contents mixed", swapped(ENGINE, typed("input_ids", "INT32", PROMPT))),
        streamed(
            "raw contents for fewer inputs than there are", swapped(ENGINE, bare("streaming", (1, 1), None, "BOOL"))
        ),
        streamed("raw contents for more inputs than there are", ids(id="a", trailing_raw=(b"\0",)), differs=(SURPLUS,)),
        streamed(
            "contents neither typed nor raw",
            infer(ENGINE, bare("input_ids", (1, 4)), bare("input_lengths", (1, 1)), bare(OUT, (1, 1)), id="a"),
        ),
        streamed("a batch of two by text", TWO_TEXTS),
        streamed("a batch of two ids", TWO_PROMPTS),
        streamed("an unknown requested output", ids(id="a", outputs=("no_such",))),
        streamed("a requested output twice", ids(id="a", outputs=("output_ids", "output_ids", "sequence_length"))),
        streamed("two texts in one tensor", swapped(TEXT, tensor("text_input", "BYTES", [b"a", b"b"]))),
        streamed(
            "a text that ends before its length",
            swapped(TEXT, bare("text_input", (1, 1), bytes([32, 0, 0, 0]) + b"abc", "BYTES")),
            differs=(REFUSED_BEFORE_THE_MODEL,),
        ),
        streamed(
            "stop words of a wrong shape", beside(ENGINE, tensor("stop_words_list", "INT32", [1, 2, 3], (1, 3, 1)))
        ),
        streamed("an unknown model", infer("no-such", *ids_inputs(), id="a")),
        streamed("an unknown version", ids(version="9", id="a")),
        streamed("a version that is no number", ids(version="one", id="a")),
        streamed("an unknown version of the text model", text(version="9", id="a")),
        streamed(
            "a good, a bad and a good one",
            ids(id="x"),
            without(ENGINE, OUT),
            ids(id="z"),
            differs=(REFUSED_BEFORE_THE_MODEL,),
        ),
        streamed("bytes that are no message", b"\xff\xff\xff", clients=("python", "go"), differs=(UNREADABLE,)),
        streamed(
            "bytes that are no message, behind a good request", ids(id="a"), b"\xff\xff\xff", differs=(UNREADABLE,)
        ),
        streamed("an empty message", b""),
    ),
)
VALUES = Subject(
    title="Wrong values",
    scenarios=(
        streamed("an empty list of ids", ids(prompt=[], id="a"), differs=(REFUSED_EARLIER,)),
        streamed(
            "input_lengths longer than the ids", swapped(ENGINE, number("input_lengths", 9)), differs=(REFUSED_EARLIER,)
        ),
        streamed("input_lengths shorter than the ids", swapped(ENGINE, number("input_lengths", 2))),
        streamed("input_lengths 0", swapped(ENGINE, number("input_lengths", 0)), differs=(REFUSED_EARLIER,)),
        streamed("an id outside of the vocabulary", ids(prompt=[7, 99_999_999, 1], id="a")),
        streamed("a negative id", ids(prompt=[7, -5, 1], id="a")),
        streamed("max_tokens 0", text(tokens=0, id="a"), differs=(REFUSED_EARLIER,)),
        streamed("max_tokens negative", text(tokens=-3, id="a"), differs=(REFUSED_EARLIER,)),
        streamed("max_tokens beyond the model's length", text(tokens=1_000_000, id="a"), differs=(CUT_IN_SILENCE,)),
        streamed("request_output_len 0", ids(tokens=0, id="a"), differs=(REFUSED_EARLIER,)),
        streamed("request_output_len negative", ids(tokens=-3, id="a"), differs=(REFUSED_EARLIER,)),
        streamed(
            "a prompt beyond the model's length", ids(prompt=[7] * 3000 + [1], id="a"), differs=(REFUSED_EARLIER,)
        ),
        streamed(
            "prompt and output beyond the model's length together",
            ids(prompt=[7] * 2040 + [1], tokens=40, id="a"),
            differs=(CUT_IN_SILENCE,),
        ),
        streamed(
            "beam_width 2",
            beside(ENGINE, number("beam_width", 2)),
            differs=(REFUSED_EARLIER,),
            clients=("python", "go"),
        ),
        streamed("beam_width 2 by text", beside(TEXT, number("beam_width", 2)), differs=(REFUSED_EARLIER,)),
        streamed("beam_width 0", beside(ENGINE, number("beam_width", 0)), differs=(REFUSED_EARLIER,)),
        streamed("beam_width 1", beside(ENGINE, number("beam_width", 1))),
        streamed("two sequences without sampling", beside(ENGINE, number("num_return_sequences", 2))),
        streamed(
            "more sequences than slots",
            beside(ENGINE, number("num_return_sequences", 9), number("runtime_top_k", 4)),
            differs=(REFUSED_EARLIER,),
        ),
        streamed(
            "num_return_sequences 0", beside(ENGINE, number("num_return_sequences", 0)), differs=(REFUSED_EARLIER,)
        ),
        streamed(
            "num_return_sequences negative",
            beside(ENGINE, number("num_return_sequences", -1)),
            differs=(REFUSED_EARLIER,),
        ),
        streamed("an empty text", text("", id="a"), differs=(REFUSED_EARLIER,)),
        streamed("a text that is not UTF-8", text(b"\xff\xfe\xfd", id="a"), differs=(REFUSED_EARLIER,)),
        streamed("a text with a NUL", text("a\0b", id="a")),
        streamed("a text of one blank", text(" ", id="a")),
        streamed("bad words that are not UTF-8", beside(TEXT, tensor("bad_words", "BYTES", [b"\xff"]))),
        streamed("a feature that the engine refuses", beside(ENGINE, tensor("return_log_probs", "BOOL", [True]))),
        streamed("a negative temperature", beside(ENGINE, tensor("temperature", "FP32", [-1.0]))),
        streamed("a temperature that is no number", beside(ENGINE, tensor("temperature", "FP32", [float("nan")]))),
        streamed("runtime_top_k negative", beside(ENGINE, number("runtime_top_k", -1))),
        streamed("runtime_top_p beyond 1", beside(ENGINE, tensor("runtime_top_p", "FP32", [1.5]))),
        streamed("min_tokens negative", beside(ENGINE, number("min_tokens", -1))),
        streamed(
            "stop words whose offsets fall", beside(ENGINE, tensor("stop_words_list", "INT32", [5, 6, 2, 1], (1, 2, 2)))
        ),
        streamed("the largest seed", beside(ENGINE, tensor("seed", "UINT64", [2**64 - 1]), number("runtime_top_k", 4))),
        streamed(
            "retention arrays of different lengths",
            beside(
                ENGINE,
                tensor("retention_token_range_starts", "INT32", [0, 4]),
                tensor("retention_token_range_ends", "INT32", [4]),
                tensor("retention_token_range_priorities", "INT32", [1]),
                tensor("retention_token_range_durations_ms", "INT32", [1]),
            ),
        ),
    ),
)
