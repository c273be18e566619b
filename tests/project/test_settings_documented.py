"""The table of docs/settings.md is that of the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from store_service import config as settings
from store_service.config import Config, environment_variable
from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout

TOOL = ROOT / "tools/settings_table.py"


@pytest.fixture(scope="module")
def table() -> str:
    """What the tool prints."""
    run = subprocess.run(
        [sys.executable, TOOL], capture_output=True, text=True, timeout=scaled_timeout(), check=True
    )
    return run.stdout.strip()


def rows(table: str) -> list[tuple[str, str, str]]:
    """Variable, default and meaning of each setting."""
    return re.findall(r"^\| `(.+?)` \| `(.*?)` \| (.*) \|$", table, re.MULTILINE)


def test_the_page_has_the_table_of_the_code(table: str) -> None:
    """docs/settings.md has every setting with its default and meaning in config.py."""
    page = (ROOT / "docs/settings.md").read_text()

    found = re.findall(r"<!-- settings -->\n(.*?)<!-- /settings -->", page, re.DOTALL)
    assert len(found) == 1
    assert found[0].strip() == table, "put what tools/settings_table.py prints between the two comments"


def test_settings_table_is_complete(table: str) -> None:
    """Every setting, with whole sentences, and no removed one."""
    found = rows(table)

    assert [variable for variable, _, _ in found] == [
        environment_variable(name) for name in Config.model_fields
    ]
    assert [variable for variable, _, meaning in found if not re.fullmatch(r"\w.*\.", meaning)] == []


def test_documented_defaults_are_the_defaults(
    table: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Setting each variable to its documented default changes nothing."""
    monkeypatch.chdir(tmp_path)
    for name in Config.model_fields:
        monkeypatch.delenv(environment_variable(name), raising=False)
    by_default = settings.load()
    for variable, default, _ in rows(table):
        monkeypatch.setenv(variable, default)

    assert settings.load() == by_default
