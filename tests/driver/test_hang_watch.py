"""An engine that answers probes and computes nothing is told from one that is only busy."""

from __future__ import annotations

from sidecar.driver.hang_watch import HangWatch, Quiet


def quiet(seconds: float, patience_s: float = 60.0, requests: int = 3) -> Quiet:
    return Quiet(requests=requests, seconds=seconds, patience_s=patience_s)


def test_an_engine_with_nothing_to_do_never_hangs() -> None:
    watch = HangWatch(60.0)
    watch.counted(7, 0.0)
    assert watch.look(None, 1000.0) == ""


def test_no_token_and_a_counter_that_stands_still_are_a_hang_after_a_quarter_of_the_patience() -> None:
    watch = HangWatch(60.0)
    watch.counted(7, 0.0)
    watch.counted(7, 14.0)
    assert watch.look(quiet(14.0), 14.0) == ""
    reason = "it hangs: no token for 16 s with 3 in flight, and its counter of iterations stands at 7"
    assert watch.look(quiet(16.0), 16.0) == reason


def test_an_engine_that_iterates_is_busy_however_long_nobody_got_a_token() -> None:
    watch = HangWatch(60.0)
    for second in range(200):
        watch.counted(second, float(second))
        assert watch.look(quiet(float(second)), float(second)) == ""


def test_one_that_stood_still_before_the_first_request_has_its_time_from_there() -> None:
    watch = HangWatch(60.0)
    watch.counted(7, 0.0)  # idle for an hour
    assert watch.look(quiet(2.0), 3600.0) == ""


def test_while_the_counter_cannot_be_read_the_patience_is_that_of_a_dispatch() -> None:
    watch = HangWatch(60.0)
    watch.counted(7, 0.0)
    watch.counted(None, 1.0)
    assert watch.look(quiet(20.0), 21.0) == ""
    assert watch.look(quiet(61.0), 62.0)


def test_without_a_counter_the_patience_is_that_of_a_dispatch() -> None:
    watch = HangWatch(60.0)
    assert watch.look(quiet(59.0), 100.0) == ""
    assert watch.look(quiet(80.0, patience_s=90.0), 100.0) == ""  # a long prompt among them
    assert watch.look(quiet(61.0), 100.0) == "it hangs: no token for 61 s with 3 in flight"


def test_a_hang_lasts_without_requests_until_the_counter_moves() -> None:
    watch = HangWatch(60.0)
    watch.counted(7, 0.0)
    assert watch.look(quiet(16.0), 16.0)
    watch.counted(None, 17.0)  # a scrape that failed proves nothing
    assert watch.look(None, 17.0)
    watch.counted(7, 18.0)
    assert watch.look(None, 20.0)
    watch.counted(8, 21.0)
    assert watch.look(None, 21.0) == ""


def test_a_hang_ends_with_the_server_and_after_a_while_it_gets_another_try() -> None:
    watch = HangWatch(60.0)
    assert watch.look(quiet(61.0), 61.0)
    watch.gone()
    assert watch.look(None, 62.0) == ""
    assert watch.look(quiet(61.0), 130.0)
    assert watch.look(None, 190.0)
    assert watch.look(None, 190.1) == ""


def test_a_timeout_of_0_switches_it_off() -> None:
    watch = HangWatch(0.0)
    watch.counted(7, 0.0)
    assert watch.look(quiet(1000.0, patience_s=0.0), 1000.0) == ""
