"""Secrets and control characters: what must not reach an artifact, a log or a terminal."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import Field

from trueup import runs
from trueup.campaign import load_campaign, why_stale
from trueup.cli import main
from trueup.config import StageConfig
from trueup.console import printable
from trueup.provenance.masking import masked

SECRET = "hunter2-T0p"
URLS = (
    f"postgresql+psycopg://team:{SECRET}@db.example.org/labels",
    f"postgresql://team:{SECRET}@db.example.org:5432/labels?sslmode=require",
    f"postgresql://team:pa@ss/{SECRET}@db/labels",
    f"postgresql://db/labels?user=team&password={SECRET}",
    f"http://judge:{SECRET}@127.0.0.1:8000/v1",
    f"https://{SECRET}@judge.example.org/v1",
    f"https://judge.example.org/v1?api_key={SECRET}&model=a",
    f"mysql://:{SECRET}@db/labels",
)
HARMLESS = (
    "postgresql://team@db/labels",
    "sqlite:////srv/runs/a b/labels.sqlite",
    "http://127.0.0.1:8000/v1",
    "https://example.org/v1?model=a&limit=64",
    "a:b@c, see x@y.org",
    "12:30 @ noon",
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("text", ["{}", "could not reach {}: refused", '["{}"]'])
def test_a_url_keeps_everything_but_its_secret(url: str, text: str) -> None:
    hidden = masked(text.format(url))
    assert SECRET not in hidden and "***" in hidden and re.match(r"\w+", url)[0] in hidden  # type: ignore[index]
    assert masked({"a": [{"b": text.format(url)}]}) == {"a": [{"b": hidden}]}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == printable(text) == text
    assert masked({"new_tokens": True, "max_new_tokens": 64, "pad_token": text}) == {
        "new_tokens": True,
        "max_new_tokens": 64,
        "pad_token": text,
    }
    assert masked({"eos_token": "<|im_end|>", "key": "a", "tokens": "b"}) == {
        "eos_token": "<|im_end|>",
        "key": "a",
        "tokens": "b",
    }


def test_a_text_of_any_length_is_masked_in_a_time_that_grows_with_it() -> None:
    started = time.process_time()
    for part in ("x", "http://a:", "https://a", "?key", "&passwkey", "a.b+", "://"):
        text = part * (30_000 // len(part))
        assert masked(f"{text} http://name:word@host") == f"{masked(text)} http://name:***@host"
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "key",
    "hub_token hf_token token api_key openai_api_key X-Api-Key password db_password Authorization secret client_secret "
    "secrets access_key".split(),
)
def test_what_stands_under_the_name_of_a_secret_is_hidden(key: str) -> None:
    assert masked({"trainer_args": {key: SECRET}}) == {"trainer_args": {key: "***"}}


class Secretive(StageConfig):
    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "nowhere:run"
    store: str
    trainer_args: dict[str, Any] = Field({})


@pytest.mark.parametrize("url", URLS)
def test_no_file_that_a_stage_leaves_holds_a_secret_and_a_new_password_makes_nothing_stale(
    tmp_path: Path, url: str
) -> None:
    config = Secretive(run_dir=tmp_path, store=url, trainer_args={"hub_token": SECRET})
    runs.begin(config).finish()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"manifest.json", "config.yaml", "seals.jsonl"}
    assert not [path for path in written if SECRET in path.read_text()]
    assert yaml.safe_load((tmp_path / "sft/config.yaml").read_text())["sft"]["trainer_args"] == {"hub_token": "***"}
    other = Secretive(run_dir=tmp_path, store=url.replace(SECRET, "another"), trainer_args={"hub_token": "another"})
    assert why_stale(other) is None
    assert why_stale(Secretive(run_dir=tmp_path, store="sqlite:///elsewhere")) is not None


@pytest.mark.parametrize("url", [url for url in URLS if url.startswith("postgresql")])
@pytest.mark.parametrize("command", ["status", "check", "accounts list", "labels stats", "label"])
def test_no_command_prints_the_password_of_the_store(
    campaign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, command: str
) -> None:
    made = campaign(tmp_path, label={"source": "human"})
    text = made.source.read_text()
    values = yaml.safe_load(text)
    values["label"]["store"] = url.replace("db.example.org:5432", "127.0.0.1:1").replace(
        "db.example.org", "127.0.0.1:1"
    )
    made.source.write_text(yaml.safe_dump(values))
    main([*command.split(), str(made.source)])
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err and told.out + told.err


def test_a_password_in_the_environment_is_used_and_one_that_a_run_hides_is_asked_for(
    campaign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueup.errors import ConfigError

    made = campaign(tmp_path, label={"source": "human", "store": "postgresql+psycopg://team@db/labels"})
    label: Any = load_campaign(made.source).stages["label"]
    assert str(label.store_url) == "postgresql+psycopg://team@db/labels"
    monkeypatch.setenv("TRUEUP_STORE_PASSWORD", SECRET)
    assert label.store_url.password == SECRET and label.store_url.host == "db"
    assert SECRET not in json.dumps(label.identity())
    hidden = label.model_copy(update={"store": "postgresql+psycopg://team:***@db/labels"})
    assert hidden.store_url == label.store_url
    monkeypatch.delenv("TRUEUP_STORE_PASSWORD")
    with pytest.raises(ConfigError, match="set the variable TRUEUP_STORE_PASSWORD"):
        _ = hidden.store_url


@pytest.mark.parametrize("code", [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x202E, 0x2066])
def test_a_terminal_shows_control_characters_and_obeys_none(code: int) -> None:
    shown = printable(f"an answer {chr(code)}[2J with a tail\n\tand a line")
    assert (
        chr(code) not in shown and shown.startswith("an answer \\") and shown.endswith("[2J with a tail\n\tand a line")
    )


def test_a_command_prints_no_escape_that_stands_in_a_file_name(
    campaign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = campaign(tmp_path, sft={"data": [str(tmp_path / "a\x1b]0;owned\x07.jsonl")]})
    assert main(["check", str(made.source)]) == 1
    told = capsys.readouterr().out
    assert "\x1b" not in told and "\\x1b]0;owned\\x07" in told
