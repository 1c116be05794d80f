"""A file that is no recording is refused with its place and its reason, and nothing in it ever runs."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.core.events import Arrived, EngineUp, Event, Woke
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim import segment as module
from sidecar.sim.replay import recorded, replay
from sidecar.sim.segment import RecordingError, opened
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.segment_files import segments

ENGINES = (EngineSettings(name="a", slots=2),)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def arrived(number: int) -> Event:
    return Arrived(
        request=Request(
            id=f"w{number}",
            lane=Lane.OFFLINE,
            model="tensorrt_llm",
            arrived_s=1.0,
            prompt_tokens=9,
            output_tokens_max=9,
        )
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A good segment: its header, its state with some requests in it, seven records, its end."""
    directory = tmp_path_factory.mktemp("good")
    scheduler = Scheduler(SchedulerSettings(), ENGINES)
    for number in range(5):
        scheduler.handle(arrived(number), 1.0)
    recorder = Recorder(RecorderSettings(directory=directory), scheduler)
    for event in (EngineUp(engine="a"), *map(arrived, range(5, 10)), Woke()):
        recorder.handled(2.0, event, scheduler.handle(event, 2.0))
    recorder.close()
    (file,) = segments(directory)
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def written(directory: Path, lines: list[str]) -> Path:
    path = directory / "decisions-000001.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{each}\n" for each in lines).encode(), 1))
    return path


def test_a_good_segment_says_who_wrote_it_and_replays(tmp_path: Path, lines: list[str]) -> None:
    path = written(tmp_path, lines)
    found = replay([path])

    assert (found.records, found.mismatches, found.missing, found.truncated, found.notes) == (7, 0, 0, False, [])
    header = opened(path).header
    assert (header.segment, header.engines, header.missing) == (1, ENGINES, 0)


# ---- whatever the file holds: an error of ours, or a reading ---------------------------------------------------------

any_bytes = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_somehow(path: Path) -> None:
    """Each way to read a file ends in figures or in a RecordingError."""
    told = [str(path)]
    for read in (replay, recorded):
        try:
            read([path])
        except RecordingError as error:
            told.append(str(error))
    assert all(each.isprintable() for each in told)
    assert all(str(path) in each or "record" in each for each in told)  # a reading of several files counts records


@any_bytes
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_recording_or_an_error(tmp_path: Path, content: bytes, packed: bool) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content) if packed else content)
    read_somehow(path)


@any_bytes
@given(st.integers(0, 10**6), st.integers(0, 10**6), ANYTHING)
def test_any_value_in_the_place_of_another_is_taken_or_named(
    tmp_path: Path, lines: list[str], line: int, place: int, value: Any
) -> None:
    changed = list(lines)
    at = line % len(lines)
    changed[at] = json.dumps(replaced(json.loads(lines[at]), place, value))
    read_somehow(written(tmp_path, changed))


def replaced(plain: Any, place: int, value: Any) -> Any:
    """`plain` with one of its parts, at any depth, changed into `value`."""
    if not plain or not isinstance(plain, list | dict):
        return value
    keys = range(len(plain)) if isinstance(plain, list) else list(plain)
    rest, chosen = divmod(place, len(keys) + 1)
    if chosen == len(keys):
        return value
    plain[keys[chosen]] = replaced(plain[keys[chosen]], rest, value)
    return plain


@any_bytes
@example(-1)
@example(-8)
@given(st.integers(0, 10**6))
def test_a_file_that_is_cut_off_anywhere_is_read_up_to_there_or_refused(
    tmp_path: Path, lines: list[str], at: int
) -> None:
    path = written(tmp_path, lines)
    content = path.read_bytes()
    path.write_bytes(content[: at % len(content)])
    try:
        found = replay([path])
    except RecordingError:
        return
    assert found.mismatches == 0
    assert found.truncated or found.records == 7  # cut within the checksum, behind the last line: nothing is missing


# ---- one by one ------------------------------------------------------------------------------------------------------


def header(**changes: Any) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        lines[0] = json.dumps(json.loads(lines[0]) | changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header(recording=5), "format 5, this version reads 4"),
        (header(recording=1), "format 1, this version reads 4; format 1 held pickled objects"),
        (header(recording=2), "format 2 held other names of fields: replay the file with the sidecar that wrote it"),
        (
            header(fields="0123", sidecar="9.9"),
            "another version of the scheduler (sidecar '9.9'), whose events have other",
        ),
        (header(settings=["SchedulerSettings"]), ":1: SchedulerSettings has"),
        (header(engines=[["EngineSettings"]]), ":1: EngineSettings has"),
        (header(engines="a"), ":1: no header"),
        (header(nodes=0), ":1: no header"),
        (header(nodes=10**12), ":1: no header"),
        (header(missing={"records": "x"}), ":1: no header"),
        (lambda lines: lines.insert(3, "{"), ":4: no JSON"),
        (lambda lines: lines.insert(3, "[" * 100_000), ":4: no JSON"),
        (lambda lines: lines.insert(3, "1" * 5000), ":4: no JSON"),
        (lambda lines: lines.__delitem__(slice(5, None)), ":5: the file ends in the state"),
        (lambda lines: lines.append("[]"), "goes on behind its last line"),
        (lambda lines: lines.pop(-2), "6 records, and the last line is"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(
    tmp_path: Path, lines: list[str], change: Callable[[list[str]], Any], message: str
) -> None:
    changed = list(lines)
    change(changed)
    with pytest.raises(RecordingError) as caught:
        replay([written(tmp_path, changed)])
    assert message in str(caught.value)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_BYTES_MAX", 1000)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 5_000_000))
    with pytest.raises(RecordingError, match=":1: longer than 1000 bytes"):
        replay([path])


def test_a_state_without_end_is_not_read_to_its_end(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATE_BYTES_MAX", 10_000)
    shape = json.dumps({"class": "settings.ReservationMode", "fields": []})
    with pytest.raises(RecordingError, match="the state is larger"):
        replay([written(tmp_path, [lines[0], *[shape] * 1000])])


def test_nothing_in_a_recording_of_the_old_format_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    state = pickle.dumps(Evil()).hex()
    for old in ({"format": 1, "state": state}, {"recording": 2, "state": state}):
        with pytest.raises(RecordingError):
            replay([written(tmp_path, [json.dumps(old)])])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["missing.gz", "directory", "plain.txt", "empty.gz"])
@pytest.mark.parametrize("what", ["--check", "--what-if"])
def test_the_command_names_a_file_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "plain.txt").write_text("some text\n")
    (tmp_path / "empty.gz").touch()
    path = str(tmp_path / name)

    assert main(["replay", path, what, *(["slots=1"] if what == "--what-if" else [])], {}, COMMANDS) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"sidecar: {path}")
    assert told.count("\n") == 1


def test_no_module_of_the_product_reads_or_writes_pickles() -> None:
    root = Path(__file__).parents[2]
    for path in [*(root / "sidecar").rglob("*.py"), *(root / "engine").rglob("*.py")]:
        text = path.read_text()
        for word in ("import pickle", "from pickle", "cPickle", "import marshal", "import shelve", "allow_pickle=True"):
            assert word not in text, f"{path}: {word}"
