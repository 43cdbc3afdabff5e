"""Signals are noted in the main thread, and left alone in any other."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from fasthg.files import written_together
from fasthg.runtime.signals import Signals, unwinding


def test_the_main_thread_notes_signals_and_restores_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    notes: list[str] = []
    with Signals(note=notes.append) as signals:
        signal.raise_signal(signal.SIGUSR1)
        assert signals.save_wanted() and not signals.save_wanted()
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before and not notes


def test_another_thread_gets_a_note_and_no_handler() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    notes: list[str] = []
    handlers: list[object] = []

    def work() -> None:
        with Signals(note=notes.append) as signals:
            handlers.extend(
                signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            )
            assert signals.stop is None and not signals.save_wanted()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert handlers == before
    assert notes == ["not the main thread: signals neither stop this work nor save it"]


def test_the_end_of_a_terminal_asks_for_the_end_unless_it_is_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.stop is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert signals.stop == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_temporary_files_go_before_a_signal_ends_the_process(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, unwinding(), written_together(tmp_path) as folder:
        (folder / "a").touch()
        signal.raise_signal(number)
    assert ended.value.code == 128 + number and not [*tmp_path.iterdir()]
    assert signal.getsignal(number) == before
