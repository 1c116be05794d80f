"""Odd items and messages come from a seed, begin as good ones, and are odd in many ways."""

from __future__ import annotations

import json
from random import Random

from google.protobuf.message import DecodeError

from dev.mutations import OddRecord, good_line, good_message, odd_message, odd_record
from sidecar.triton import wire

COUNT = 400


def test_the_same_seed_gives_the_same_oddities_and_another_seed_others() -> None:
    def drawn(seed: int) -> list[object]:
        draw = Random(seed)
        return [(odd_record(draw, number), odd_message(draw, number)) for number in range(50)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_good_line_is_greedy_in_either_format() -> None:
    text, chat = good_line(1, "hello"), good_line(2, "hello", chat=True)
    assert (text["url"], text["body"]["prompt"]) == ("/v1/completions", "hello")
    assert (chat["url"], chat["body"]["messages"][0]["content"]) == ("/v1/chat/completions", "hello")
    assert {each["body"]["temperature"] for each in (text, chat)} == {0}
    assert text["custom_id"] != chat["custom_id"]


def test_a_good_message_names_its_lane_only_if_it_has_one() -> None:
    assert "x-lane" not in good_message("a", "hello").parameters
    assert good_message("a", "hello", lane="offline").parameters["x-lane"].string_param == "offline"
    assert wire.InferRequest.FromString(good_message("a", "hello").SerializeToString()).id == "a"


def test_odd_records_are_json_and_none_json_with_and_without_keys_values_and_headers() -> None:
    draw = Random(1)
    found = [odd_record(draw, number) for number in range(COUNT)]
    readable = sum(is_json(each.value) for each in found)
    assert 0.4 * COUNT < readable < 0.95 * COUNT
    assert any(each.value is None for each in found)
    assert any(each.headers for each in found)
    assert len({each.key for each in found}) > 2
    assert all(each.key is not None or each.value is not None for each in found), "no producer sends neither"


def is_json(value: bytes | None) -> bool:
    try:
        json.loads(value or b"")
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def test_no_change_reaches_into_the_next_record() -> None:
    def drawn() -> list[OddRecord]:
        draw = Random(5)
        return [odd_record(draw, number) for number in range(COUNT)]

    assert drawn() == drawn(), "what was drawn is a copy: else the first run has changed what the second draws from"


def test_odd_messages_are_mostly_readable_and_sometimes_not() -> None:
    draw, unreadable = Random(2), 0
    for number in range(COUNT):
        try:
            wire.InferRequest.FromString(odd_message(draw, number))
        except DecodeError:
            unreadable += 1
    assert 0 < unreadable < 0.15 * COUNT
