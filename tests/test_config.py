"""The table of switches: parsing, overriding, the epoch that captured programs look at."""

from __future__ import annotations

import re
import warnings

import pytest

import tinyc.config as config
from tinyc.config import Debug, Settings, configure, debug, parse_debug, read_environment


class TestDebug:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("4", Debug(4)),
            ("4:softmax", Debug(4, kernel="softmax")),
            ("5@fuse", Debug(5, pass_name="fuse")),
            ("5:soft.*@fu", Debug(5, "soft.*", "fu")),
            ("0", Debug()),
        ],
    )
    def test_forms(self, text, expected):
        assert parse_debug(text) == expected

    @pytest.mark.parametrize("text", ["", "true", "*", "express:*", "-1", "3:[", "2.5"])
    def test_other_programs_forms_are_ignored(self, text):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Settings(**read_environment({"DEBUG": text})) == Settings()

    def test_filters(self):
        shown = Debug(4, kernel="soft", pass_name="fuse")
        assert shown.shows(4, kernel="softmax_3")
        assert not shown.shows(4, kernel="conv_1")
        assert not shown.shows(5)
        assert shown.shows(1)
        assert shown.shows(3, pass_name="fuse") and not shown.shows(3, pass_name="memory")
        assert not shown.shows(3, kernel="softmax", pass_name="memory")

    def test_with_a_filter_only_what_it_names_is_shown(self):
        assert not Debug(5, kernel="soft").shows(5, pass_name="fuse")
        assert not Debug(5, pass_name="fuse").shows(4, kernel="softmax")
        assert not Debug(5, pass_name="fuse").shows(2)
        assert Debug(5, pass_name="fuse").shows(1)
        assert not Debug(0).shows(1)


class TestEnvironment:
    def test_values_have_the_types_of_the_table(self):
        environ = {"TINYC_FUSE": "0", "TINYC_THREADS": "3", "TINYC_DEVICE": "numpy"}
        settings = Settings(**read_environment(environ))
        assert (settings.fuse, settings.threads, settings.device) == (False, 3, "numpy")

    def test_unknown_names_warn_with_a_suggestion(self):
        with pytest.warns(UserWarning, match=r"TINYC_FUZE.*did you mean TINYC_FUSE\?"):
            assert read_environment({"TINYC_FUZE": "0"}) == {}

    @pytest.mark.parametrize(
        ("name", "value"), [("THREADS", "two"), ("FUSE", "2"), ("DEVICE", "tpu")]
    )
    def test_bad_values_warn_and_are_ignored(self, name, value):
        with pytest.warns(UserWarning, match=rf"TINYC_{name}='{value}' is ignored"):
            assert read_environment({f"TINYC_{name}": value}) == {}

    def test_every_switch_is_used_and_documented(self):
        from pathlib import Path

        sources = Path(config.__file__).parent.rglob("*.py")
        text = "".join(p.read_text() for p in sources if p.name != "config.py")
        for spec in vars(Settings()):
            assert re.search(rf"\.{spec}\b", text), f"nothing reads the switch {spec}"


class TestConfigure:
    def test_a_block_restores_only_its_own_switches(self):
        with configure(fuse=False):
            assert not config.current().fuse
            configure(threads=2)
        assert config.current().fuse
        assert config.current().threads == 2

    def test_a_call_holds(self):
        configure(bounds=False)
        assert not config.current().bounds

    def test_debug_takes_numbers_and_texts(self):
        with debug(3):
            assert config.current().debug == Debug(3)
        with debug("4:softmax"):
            assert config.current().debug.kernel == "softmax"

    def test_errors_name_what_is_wrong(self):
        with pytest.raises(TypeError, match=r"switch 'fuze' is not set; did you mean fuse\?"):
            configure(fuze=True)
        with pytest.raises(TypeError, match="fuse is a bool, not int"):
            configure(fuse=1)
        with pytest.raises(ValueError, match="device='tpu': expected one of"):
            configure(device="tpu")

    def test_the_epoch_moves_when_programs_may_be_stale_and_only_then(self):
        before = config.epoch()
        with debug(0):
            pass
        configure(fuse=config.current().fuse)
        assert config.epoch() == before
        with configure(fuse=False):
            assert config.epoch() == before + 1
        assert config.epoch() == before + 2

    def test_where_a_value_comes_from(self, monkeypatch):
        assert config.source("fuse") == "default"
        with configure(fuse=False):
            assert config.source("fuse") == "program"
            monkeypatch.setitem(config._environment, "fuse", False)
            assert config.source("fuse") == "environment"
