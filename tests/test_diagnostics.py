"""Errors, remarks, DEBUG lines, and the line of the user's code."""

from __future__ import annotations

import json
import threading
import warnings

from tinyc import config, diagnostics
from tinyc.diagnostics import Remark, collect, emit


def remark(message: str = "because") -> Remark:
    return Remark("missed", "fuse", "softmax", message, ("train.py", 3), {"bytes": 16, "gain": 0.5})


def test_errors_are_what_python_programs_catch():
    assert issubclass(diagnostics.ShapeError, ValueError)
    assert issubclass(diagnostics.DTypeError, TypeError)
    assert issubclass(diagnostics.AxisError, IndexError)
    assert issubclass(diagnostics.AxisError, ValueError)
    assert issubclass(diagnostics.BoundsError, IndexError)
    assert issubclass(diagnostics.CompilerNotFound, diagnostics.CompileError)
    assert diagnostics.ScheduleError("too deep").reason == "too deep"


def test_remarks_go_through_json():
    assert Remark.from_dict(json.loads(json.dumps(remark().to_dict()))) == remark()


def test_remarks_read_as_sentences():
    expected = "fuse: missed: softmax: because [train.py:3] (bytes 16, gain 0.5)"
    assert str(remark()) == expected


def test_collectors_nest_and_end():
    with collect() as outer:
        with collect() as inner:
            emit(remark("one"))
        emit(remark("two"))
    emit(remark("three"))
    assert [r.message for r in inner] == ["one"]
    assert [r.message for r in outer] == ["one", "two"]


def test_threads_do_not_see_each_others_remarks():
    with collect() as mine:
        thread = threading.Thread(target=lambda: emit(remark("elsewhere")))
        thread.start()
        thread.join()
        emit(remark("here"))
    assert [r.message for r in mine] == ["here"]


def test_debug_prints_plain_text_on_standard_error(capsys):
    with config.debug("3@fuse"):
        emit(remark())
        emit(Remark("applied", "memory", "arena", "reused"))
        diagnostics.debug_line(1, "compiled")
        diagnostics.debug_line(2, "ran", kernel="k")
    shown = capsys.readouterr()
    assert shown.err == str(remark()) + "\ncompiled\n"
    assert shown.out == ""


def test_diffs_have_colours_on_a_terminal_only(monkeypatch, capsys):
    text = "pass simplify\n--- before\n+++ after\n-gone\n+come\n kept"
    diagnostics.print_debug(text, "blue")
    assert capsys.readouterr().err == text + "\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    diagnostics.print_debug(text, "blue")
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "\033[34mpass simplify\033[0m"
    assert shown[3:] == ["\033[31m-gone\033[0m", "\033[32m+come\033[0m", " kept"]
    monkeypatch.setenv("NO_COLOR", "1")
    diagnostics.print_debug(text, "blue")
    assert capsys.readouterr().err == text + "\n"


def test_warnings_come_once_and_on_the_users_line(recwarn):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            diagnostics.warn_once("test-once", "only once")
    assert [str(w.message) for w in caught] == ["only once"]
    assert caught[0].filename == __file__


def test_the_callers_line_is_found_through_frames_of_tinyc():
    filename, line = diagnostics.caller_origin()
    assert filename == __file__
    assert diagnostics.format_origin((filename, line)) == f"test_diagnostics.py:{line}"
    assert diagnostics.format_origin(None) == "?"
