"""The topics file is read strictly, and each topic of the settings gets what its part of the lane needs."""

from __future__ import annotations

import pytest

from sidecar import data
from sidecar.core.errors import SettingsError
from sidecar.offline.topic_creation import FoundTopic, WantedTopic, differences, names, topic_rules, wanted_topics
from sidecar.settings.offline import OfflineSettings

RULES = topic_rules(data.read("topics.yaml"), "topics.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "t.yaml is not YAML"),
        ("- 1", "t.yaml must hold `partitions` and `topics`, and nothing else"),
        ("partitions: 6\ntopics: {a: {}}\nmore: 1", "and nothing else"),
        ("partitions: 0\ntopics: {a: {}}", "partitions must be >= 1, not 0"),
        ("partitions: yes\ntopics: {a: {}}", "partitions must be >= 1, not True"),
        ("partitions: 6\ntopics: {}", "must describe at least one topic"),
        ("partitions: 6\ntopics: {a: 1}", "topics.a must map names such as retention.ms to numbers or texts"),
        ("partitions: 6\ntopics: {a: {retention.ms: [1]}}", "topics.a must map names"),
        ("partitions: 6\ntopics: {a: {RETENTION: 1}}", "topics.a must map names"),
        ("partitions: 6\ntopics: {a: {unclean.leader.election.enable: true}}", "topics.a must map names"),
    ],
)
def test_a_topics_file_that_says_something_else_is_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        topic_rules(text, "t.yaml")
    assert told in str(raised.value)


def test_the_settings_name_three_topics_and_progress_only_if_it_is_told() -> None:
    assert names(OfflineSettings()) == ["inference.requests", "inference.results", "inference.requests.dlq"]
    assert names(OfflineSettings(progress_topic="p"))[3:] == ["p"]


def test_the_longest_record_of_the_settings_fits_into_each_topic() -> None:
    settings = OfflineSettings(message_bytes_max=8 << 20, progress_topic="inference.progress")
    limits = [each.config.get("max.message.bytes") for each in wanted_topics(settings, RULES, 6)]
    assert limits == [str(8 << 20), str(8 << 20), str((8 << 20) + 65_536), None]


def test_a_file_may_ask_for_a_higher_limit_than_the_settings() -> None:
    requests = "inference.requests: {max.message.bytes: 9000000}"
    rules = topic_rules(f"partitions: 1\ntopics: {{{requests}}}", "t.yaml")
    with pytest.raises(SettingsError, match=r"neither inference.results \(results_topic\) nor inference.results"):
        wanted_topics(OfflineSettings(), rules, 1)
    rest = "inference.results: {}, inference.requests.dlq: {}"
    rules = topic_rules(f"partitions: 1\ntopics: {{{requests}, {rest}}}", "t.yaml")
    assert wanted_topics(OfflineSettings(), rules, 1)[0].config == {"max.message.bytes": "9000000"}


def test_a_topic_of_another_name_gets_what_its_part_has_unless_the_file_names_it() -> None:
    rules = topic_rules(
        "partitions: 6\ntopics: {inference.requests: {}, inference.results: {retention.ms: 1},"
        " team.dead: {retention.ms: 2}, inference.requests.dlq: {retention.ms: 3}}",
        "t.yaml",
    )
    settings = OfflineSettings(requests_topic="team.in", results_topic="team.out", dead_letter_topic="team.dead")
    found = wanted_topics(settings, rules, 2)
    assert [(each.name, each.config.get("retention.ms")) for each in found] == [
        ("team.in", None),
        ("team.out", "1"),
        ("team.dead", "2"),
    ]


def test_a_difference_is_what_is_other_than_asked_for_but_no_higher_limit_and_nothing_unknown() -> None:
    wanted = WantedTopic(
        name="t", partitions=1, config={"retention.ms": "1", "max.message.bytes": "10", "cleanup.policy": "delete"}
    )
    assert list(differences(wanted, FoundTopic(partitions=1))) == []
    higher = FoundTopic(partitions=1, config={"retention.ms": "2", "max.message.bytes": "11"})
    assert list(differences(wanted, higher)) == ["retention.ms is 2, not 1"]
    lower = FoundTopic(partitions=1, config={"max.message.bytes": "9", "cleanup.policy": "compact"})
    assert list(differences(wanted, lower)) == [
        "max.message.bytes is 9, not 10",
        "cleanup.policy is compact, not delete",
    ]
