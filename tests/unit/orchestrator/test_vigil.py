"""The vigil: what stands still while we look is judged in time, what a clock alone makes old is not."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.vigil import Sign, Vigil

LIMIT_S, NOTICE_S, BEAT_S = 15.0, 3.5, 3.0


def test_what_speaks_is_never_judged() -> None:
    vigil = Vigil(LIMIT_S, NOTICE_S)
    for second in range(100):
        at = float(second - second % 3)
        assert vigil.look([Sign("w", at, second - at)], float(second)) == []


def test_what_was_last_heard_between_two_looks_is_judged_to_the_moment() -> None:
    vigil = Vigil(LIMIT_S, NOTICE_S)
    assert vigil.look([Sign("w", 0.0, 0.5)], 100.0) == []
    assert vigil.look([Sign("w", 1.2, 0.3)], 101.0) == []  # heard of at 100.7
    assert vigil.look([Sign("w", 1.2, 7.5)], 108.2) == []
    assert vigil.look([Sign("w", 1.2, 14.9)], 115.6) == []
    assert vigil.look([Sign("w", 1.2, 15.1)], 115.8) == ["w"]


def test_a_loop_that_is_slow_finds_the_dead_all_the_same() -> None:
    vigil, found = Vigil(LIMIT_S, NOTICE_S), list[str]()
    for look in range(4):
        found = vigil.look([Sign("w", 0.0, look * 9.0)], look * 9.0)
    assert found == ["w"]


def test_what_is_gone_and_comes_again_begins_anew() -> None:
    vigil = Vigil(LIMIT_S, NOTICE_S)
    for second, signs in enumerate([[Sign("w", 0.0, 0.0)], [], [Sign("w", 0.0, 2.0)]]):
        assert vigil.look(signs, float(second)) == []
    assert vigil.look([Sign("w", 0.0, 9.0)], 9.0) == []
    assert vigil.look([Sign("w", 0.0, 15.5)], 15.5) == []
    assert vigil.look([Sign("w", 0.0, 16.5)], 16.5) == ["w"]


@given(
    st.lists(st.tuples(st.floats(0.2, 2.0), st.floats(0.0, 1e6)), min_size=1, max_size=60),
    st.floats(0.0, 1.0),
)
def test_whatever_the_database_clock_does_who_beats_lives(looks: list[tuple[float, float]], phase: float) -> None:
    """Looks at any pace, the clock set anew before any of them, a heartbeat each three seconds."""
    vigil, now_s, offset_s = Vigil(LIMIT_S, NOTICE_S), 0.0, 0.0
    heard_at, beats = 0.0, -1
    for pause_s, set_by_s in looks:
        now_s += pause_s
        offset_s += set_by_s
        if (latest := int((now_s + phase * BEAT_S) // BEAT_S)) > beats:
            beats, heard_at = latest, max(0.0, latest * BEAT_S - phase * BEAT_S) + offset_s
        assert vigil.look([Sign("w", heard_at, now_s + offset_s - heard_at)], now_s) == []


@given(st.lists(st.tuples(st.floats(0.2, 2.0), st.floats(0.0, 1e6)), min_size=60, max_size=60), st.floats(0.0, 1e6))
def test_whatever_the_database_clock_does_the_dead_are_found(looks: list[tuple[float, float]], age_s: float) -> None:
    vigil, now_s, clock_s, found = Vigil(LIMIT_S, NOTICE_S), 0.0, age_s, list[str]()
    for pause_s, leap_s in looks:
        found = vigil.look([Sign("w", 0.0, clock_s)], now_s)
        late_s = now_s - (LIMIT_S - min(age_s, LIMIT_S - NOTICE_S))
        assert found == (["w"] if late_s >= 0 else []) or abs(late_s) < 1e-6
        now_s += pause_s
        clock_s += pause_s + leap_s
