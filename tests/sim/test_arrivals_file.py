"""A file of arrivals is read whole and checked before anything runs; what is simulated is what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.sim import comparison, workloads
from sidecar.sim.arrivals_file import FIELDS, Arrivals, read_csv, write_csv
from sidecar.sim.workloads import WorkloadError

HEADER = ",".join(FIELDS) + "\n"


def written(directory: Path, rows: str, name: str = "monday.csv") -> Path:
    path = directory / name
    path.write_text(rows if rows.startswith(FIELDS[0]) else HEADER + rows)
    return path


def read(path: Path) -> Arrivals:
    return read_csv(path, 1000)


def test_recorded_arrivals_come_back_as_they_were_written(tmp_path: Path) -> None:
    jobs = workloads.by_name("origin").online(1, 0.1)
    write_csv(tmp_path / "a.csv", jobs)
    found = read_csv(tmp_path / "a.csv", 10_000)
    assert (found.jobs, found.name, found.moved_s) == (tuple(jobs), "a", 0.0)


def test_the_span_is_that_of_the_file_in_whole_minutes(tmp_path: Path) -> None:
    found = read(written(tmp_path, "5,a,10,4,8\n130.5,b,10,4,8\n60,a,10,4,8\n"))
    assert found.hours == pytest.approx(3 / 60)
    assert [found.within(hours) for hours in (0.001, 1 / 60, 1)] == [0, 2, 3]


def test_timestamps_of_another_clock_are_moved_to_begin_at_0(tmp_path: Path) -> None:
    found = read(written(tmp_path, "1764000000.5,a,10,4,8\n1764000060.75,b,10,4,8\n"))
    assert [job.request.arrived_s for job in found.jobs] == [0.0, 60.25]
    assert found.moved_s == 1764000000.5


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\n1,a,10,4,8\r\n\n".encode())
    assert len(read(path).jobs) == 1


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1.0,default,ten,4,128", "prompt_tokens must be a whole number >= 1, not 'ten'"),
        ("1.0,default,10,0,128", "output_tokens must be a whole number >= 1, not '0'"),
        ("1.0,default,10,4,-1", "output_tokens_max must be a whole number >= 1, not '-1'"),
        ("1.0,default,10,4.5,8", "output_tokens must be a whole number >= 1, not '4.5'"),
        ("1.0,default,10,9,8", "output_tokens 9 is more than output_tokens_max 8"),
        ("nan,default,10,4,8", "arrived_s must be a number of seconds >= 0, not 'nan'"),
        ("-1,default,10,4,8", "arrived_s must be a number of seconds >= 0, not '-1'"),
        ("inf,default,10,4,8", "arrived_s must be a number of seconds >= 0, not 'inf'"),
        ("1.0,,10,4,8", "a tenant's name has 1 to 256 characters"),
        (f"1.0,{'x' * 257},10,4,8", "a tenant's name has 1 to 256 characters"),
        ("1.0,default,999,4,8", "999 + 8 tokens are more than the 1000 that the engine holds"),
        ("1.0,default,10,4", "4 columns, not 5"),
        ("1.0,default,10,4,8,9", "6 columns, not 5"),
        ("1.0,default," + "9" * 5000 + ",4,8", "prompt_tokens must be a whole number >= 1"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, row: str, fault: str) -> None:
    path = written(tmp_path, f"0.5,a,10,4,8\n{row}\n")
    with pytest.raises(WorkloadError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: {fault}")


def test_every_bad_row_is_named_until_there_are_ten(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError) as caught:
        read(written(tmp_path, "x,a,10,4,8\n" * 25))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == [str(number) for number in range(2, 12)]
    assert lines[-1].endswith("15 more bad rows")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "the first line must be arrived_s"),
        (b"time\n1.0\n", "the first line must be arrived_s"),
        (HEADER.encode(), "holds no arrivals"),
        (HEADER.encode() + b'1,"a,10,4,8\n', ":2: unexpected end of data"),
        (HEADER.encode("utf-16"), "not UTF-8"),
        (HEADER.encode() + b"1,\xff,10,4,8\n", "not UTF-8"),
    ],
)
def test_what_is_no_file_of_arrivals_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(WorkloadError, match=fault):
        read(tmp_path / "a.csv")


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_arrivals_or_an_error(tmp_path: Path, content: bytes, headed: bool) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(HEADER.encode() * headed + content)
    try:
        assert read(path).jobs
    except WorkloadError as error:
        assert str(path) in str(error)  # noqa: PT017 - both ends are right


# ---- the command -----------------------------------------------------------------------------------------------------


def rows(tenant: str, count: int = 40) -> str:
    return "".join(f"{1.5 * number},{tenant},50,4,16\n" for number in range(count))


@pytest.mark.slow
def test_a_tenant_of_any_name_is_compared_and_the_figures_have_the_name_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, rows("search"))
    report = tmp_path / "report.json"
    arguments = ["simulate", "--arrivals", str(path), "--policies", "ours", "--seeds", "1", "--json", str(report)]

    assert main(arguments, {}, COMMANDS) == 0
    told = capsys.readouterr()
    assert "monday" in told.out
    assert f"{path}: 40 of 40 arrivals over 1 min" in told.err
    found = json.loads(report.read_text())
    assert list(found["workloads"]) == ["monday"]
    assert found["arrivals"] == str(path)
    assert found["workloads"]["monday"]["hours"] == pytest.approx(1 / 60)
    for row in found["workloads"]["monday"]["policies"].values():
        assert row["online"] == {"n": 40, "refused": 0}
        assert row["other_tenants_ttft_ratio"]["p99"] is None


def test_arrivals_beyond_the_hours_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, rows("search") + "90,search,50,4,16\n4000,search,50,4,16\n")
    arguments = ["simulate", "--arrivals", str(path), "--policies", "online-only", "--seeds", "1", "--hours", "0.02"]
    assert main([*arguments, "--json", "-"], {}, COMMANDS) == 0
    told = capsys.readouterr()
    assert "40 of 42 arrivals over 1.2 min" in told.err
    assert json.loads(told.out)["workloads"]["monday"]["policies"]["online-only"]["online"]["n"] == 40


def never(*_: object) -> None:
    raise AssertionError("a run began although the arguments are wrong")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arrivals", "{missing}"],
        ["--arrivals", "{bad}"],
        ["--arrivals", "{good}", "--workload", "origin,knee"],
        ["--arrivals", "{late}", "--hours", "0.01"],
        ["--workload", "origin,nothing"],
        ["--policies", "ours,nothing"],
        ["--policies", "naive", "--faults"],
        ["--profile", "nothing"],
        ["--seeds", "0"],
        ["--slots", "100000"],
        ["--jobs", "0"],
        ["--first-seed", "-1"],
        ["--check-every", "-1"],
        ["--hours", "nan"],
        ["--hours", "inf"],
        ["--hours", "0"],
        ["--hours", "1e9"],
        ["--set", "window_ms=-1"],
        ["--set", "window_ms"],
        ["--set", "yield_rows=99"],
        ["--json", "{missing}/x.json"],
        ["--json", "{directory}"],
    ],
)
def test_every_mistake_is_told_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(comparison, "run", never)
    places = {"missing": tmp_path / "missing", "directory": tmp_path, "bad": written(tmp_path, "x\n", "bad.csv")}
    places |= {"good": written(tmp_path, rows("a"), "good.csv")}
    places |= {"late": written(tmp_path, "100,a,10,4,8\n300,a,10,4,8\n", "late.csv")}

    assert main(["simulate", *(each.format(**places) for each in arguments)], {}, COMMANDS) == 2
    told = capsys.readouterr().err
    assert told.startswith("sidecar: ")
    assert told.count("\n") == 1
