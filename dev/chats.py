"""What the demo asks a real chat model: callers ask questions, items want reviews labelled and summed up."""

from __future__ import annotations

import asyncio
import codecs
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from aiokafka import AIOKafkaConsumer
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from dev.backlog import BAD_RECORDS
from dev.terminal_view import View
from sidecar.core.errors import SidecarError
from sidecar.triton.chat_template import ChatTemplate
from sidecar.triton.model_files import read_model_files

ONLINE_TOKENS = 60.0  # of an answer, in the middle
ITEM_TOKENS = 20.0  # mean output of a label or a summary
ITERATION_S = 0.017  # with 8 rows on two idle cores; on a busy host the backlog is longer than it need be
WIDE_ITERATION = 1.5  # what a token takes in a full batch ÷ what it took online, whose requests met now and then
ANSWERS_SHOWN = 4  # of each lane
SHOWN_WIDTH = 240
READ_TIMEOUT_S = 30.0
FIRST_QUESTION = "What is the capital of France, and what is it known for?"
FIRST_TOKENS = 80
SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do bees make honey?",
    "What is a good name for a cat?",
    "Explain what a database is in one sentence.",
    "Who wrote Romeo and Juliet?",
    "Name three fruits.",
    "What is the largest planet?",
    "Write one sentence about the sea.",
    "How do I make a cup of tea?",
)
LABEL: dict[str, Any] = {"max_tokens": 24, "stop": [",", "."]}
SUMMARY: dict[str, Any] = {"max_tokens": 120}
PLACES = ("hotel", "restaurant", "museum", "train", "cinema", "market", "beach", "bakery", "library", "ferry")
REMARKS = (
    "The room was clean and the staff was kind.",
    "The food was cold and the waiter was rude.",
    "We waited an hour in the rain, and nobody told us why.",
    "In the end the sun came out, and we had bread and tea.",
    "It was too loud to talk.",
    "The prices were fair, and the children loved it.",
    "I would come back tomorrow.",
    "Never again.",
)


class ChatPrompts:
    """Draws the questions of online callers, as text for Triton's text model."""

    def __init__(self, directory: Path) -> None:
        files = read_model_files(directory)
        added = Tokenizer.from_file(str(directory / "tokenizer.json")).get_added_tokens_decoder().values()
        assert files.template is not None  # setup writes it
        self._template = ChatTemplate(files.template, files.special, {each.content: each.special for each in added})

    def __call__(self, draw: random.Random) -> tuple[str, str]:
        """Return a question, and the prompt that its model reads."""
        question = draw.choice(QUESTIONS)
        return question, self._template.render([("system", SYSTEM), ("user", question)], 1 << 16).text


def items(*, count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of `count` records: labels, cut at their first comma; every fifth a summary; one in 100 is bad."""
    draw = random.Random(seed)
    for number in range(count):
        key = f"item-{number:05}".encode()
        review = f"About the {draw.choice(PLACES)}: {' '.join(draw.sample(REMARKS, k=1 + 3 * (number % 5 == 4)))}"
        if number % 100 == 9:
            yield key, BAD_RECORDS[number // 100 % len(BAD_RECORDS)]
            continue
        asked, bounds = f"{review}\nIs this review positive or negative?", LABEL
        if number % 5 == 4:
            asked, bounds = f"Summarize in two sentences: {review}", SUMMARY
        body: dict[str, Any] = {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}],
            "temperature": 0.0,
            **bounds,
        }
        if number % 2 == 0:
            yield key, json.dumps({"id": key.decode(), **body}).encode()
            continue
        url = "/v1/chat/completions"
        yield key, json.dumps({"custom_id": key.decode(), "method": "POST", "url": url, "body": body}).encode()


def asked_of(records: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return what each item asks, by its id; the bad ones ask nothing."""
    found = {}
    for key, value in records:
        if value not in BAD_RECORDS:
            line = json.loads(value)
            found[key.decode()] = line.get("body", line)["messages"][-1]["content"]
    return found


async def ask_first(view: View, settings: Path) -> None:
    """Ask one question with `sidecar chat`, as a reader may, and show the answer as it comes. Raises SidecarError."""
    options = ("--config", str(settings), "--max-tokens", str(FIRST_TOKENS))
    view.say(f'.venv/bin/sidecar chat "{FIRST_QUESTION}" {" ".join(options)}')
    command = (sys.executable, "-m", "sidecar", "chat", FIRST_QUESTION, *options)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    letters = codecs.getincrementaldecoder("utf-8")()
    try:
        with view.words() as write:
            while part := await process.stdout.read(4096):
                write(letters.decode(part))
        if code := await process.wait():
            raise SidecarError(f"sidecar chat ended with {code}")
    finally:
        if process.returncode is None:
            process.kill()


async def answers_of(bootstrap_servers: str, topic: str, asked: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first labels and summaries on the results topic, half and half, each with what was asked."""
    labels: dict[str, str] = {}
    summaries: dict[str, str] = {}
    options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, **options) as consumer:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                while min(len(labels), len(summaries)) < ANSWERS_SHOWN // 2:
                    line = json.loads((await consumer.getone()).value)
                    question = asked[line["custom_id"]]
                    kind = summaries if question.startswith("Summarize") else labels
                    kind[question] = line["response"]["body"]["choices"][0]["message"]["content"]
        except TimeoutError:
            pass  # a slow host made fewer
    return [pair for kind in (labels, summaries) for pair in list(kind.items())[: ANSWERS_SHOWN // 2]]


def show_answers(console: Console, title: str, answers: Iterable[Mapping[str, str]]) -> None:
    """A handful of questions with their answers, long ones shortened."""
    console.print(Text(title, style="italic"))
    for each in answers:
        console.print(Text(f"  ? {shorten(each['asked'], SHOWN_WIDTH)}", style="bold"), soft_wrap=True)
        console.print(Text(f"    {shorten(each['answer'], SHOWN_WIDTH)}"), soft_wrap=True)


def show_lanes(console: Console, answers: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Some answers of each lane, and where the others are; nothing if there are none."""
    for lane, some in answers.items():
        show_answers(console, f"Some {lane} answers", some)
    if answers:
        rest = "The other offline answers are on the results topic: --keep leaves it there to read, and says how."
        console.print(Text(rest), soft_wrap=True)
