"""Data sets of a hub, against a small server that speaks its routes: one commit for a whole run, the files of one
split, and one sentence for each way in which they cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub import TOKEN, Commands, Hub

from trueup.campaign import load_campaign
from trueup.errors import ConfigError, DataError
from trueup.provenance.splits import files_of_split

REPOSITORY = Path(__file__).parents[3]
ASK = """
import json, os, sys
from pathlib import Path
from trueup.campaign import load_campaign
from trueup.checking.model import settle
from trueup.data.formats import read_demonstrations
from trueup.data.records import Dropped
from trueup.errors import TrueupError
from trueup.models.sources import hub
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["env"])
    try:
        campaign, notes = load_campaign(Path(asked["config"])), []
        for hub_id in campaign.hub_ids(["sft"]):
            campaign.run_dir.mkdir(parents=True, exist_ok=True)
            campaign, note = settle(campaign, hub_id, keep=True)
            notes.append(note)
        for hub_id in campaign.hub_ids(["sft"]):
            hub.fetch(hub_id)
        source = campaign.stages["sft"].data[0]
        rows = read_demonstrations(source.path, Dropped(), choice=source.choice(0))
        prompts = [row.messages[0].content for row in rows]
        answer = {"rows": prompts, "path": str(source.path), "notes": notes, "error": ""}
    except TrueupError as error:
        answer = {"error": str(error)}
    print("answer", json.dumps(answer), flush=True)
"""
Ask = Callable[..., Any]


def parquet(*prompts: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts, "completion": prompts}), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "README.md": b"A card.",
    "data/train-00000-of-00002.parquet": parquet("1"),
    "data/train-00001-of-00002.parquet": parquet("2"),
    "data/test-00000-of-00001.parquet": parquet("3"),
}


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Iterator[Ask]:
    """What a run reads whose `sft.data` is this data set; one machine, whose hub can be another one."""
    processes: dict[str, subprocess.Popen[str]] = {}

    def asked(data: Any, at: str | None = None, run: str = "run", **env: str) -> Any:
        address = at or hub.address
        if address not in processes:
            kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
            places = {"HF_HOME": str(tmp_path / "hf"), "TRUEUP_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": address}
            processes[address] = subprocess.Popen(
                [sys.executable, "-c", ASK],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=REPOSITORY,
                env={**kept, **places, "HF_HUB_DISABLE_TELEMETRY": "1", **env},
            )
        process = processes[address]
        assert process.stdin is not None and process.stdout is not None
        line = {"config": str(campaign_file(tmp_path, data, run)), "env": env}
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()
        return json.loads(next(line for line in process.stdout if line.startswith("answer ")).removeprefix("answer "))

    with hub.served():
        yield asked
        for process in processes.values():
            process.kill()
            process.communicate()


def campaign_file(folder: Path, data: Any, run: str = "run") -> Path:
    values = {"name": "x", "run_dir": str(folder / run), "sft": {"data": [data]}, "sample": {"prompts": "starter"}}
    (folder / "campaign.yaml").write_text(json.dumps(values))
    return folder / "campaign.yaml"


def test_a_split_of_a_data_set_is_read_and_no_file_of_another_is_fetched(hub: Hub, ask: Ask) -> None:
    repository = hub.model("datasets/owner/rows", FILES)
    commit = repository.branches["main"]
    answer = ask("owner/rows?split=train")
    assert answer["rows"] == ["1", "2"] and answer["path"] == f"hf:/owner/rows@{commit}?split=train"
    assert not [line for line in hub.asked if "test-00000" in line]
    hub.asked.clear()
    assert ask({"path": "owner/rows?split=train", "max_rows": 1})["rows"] in (["1"], ["2"])
    assert not [line for line in hub.asked if line.startswith("GET /datasets/")], "what is there is not fetched again"


def test_a_run_stays_at_its_commit_while_the_hub_cannot_be_asked_and_says_when_the_branch_has_moved(
    hub: Hub, ask: Ask
) -> None:
    repository = hub.model("datasets/owner/rows", FILES)
    first = repository.branches["main"]
    ask("owner/rows?split=train")
    hub.is_down = True
    answer = ask("owner/rows?split=train")
    assert answer["rows"] == ["1", "2"] and f"the run stays at commit {first[:7]}" in answer["notes"][0]
    hub.is_down = False
    repository.push({**FILES, "data/train-00000-of-00002.parquet": parquet("new")})
    answer = ask("owner/rows?split=train")
    assert answer["rows"] == ["new", "2"]
    assert f"hf://datasets/owner/rows@{first}?split=train keeps the old files" in answer["notes"][0]
    assert ask(f"owner/rows@{first}?split=train", run="other")["rows"] == ["1", "2"]


def test_each_way_in_which_a_data_set_cannot_be_had_is_one_sentence_that_says_what_to_do(hub: Hub, ask: Ask) -> None:
    hub.model("datasets/owner/rows", FILES)
    hub.model("datasets/owner/gated", FILES, is_gated=True)
    hub.model("datasets/owner/pictures", {"README.md": b"", "a.png": b""})
    name, nowhere = "sft.data.0.path", "http://127.0.0.1:9"
    sentences = {
        "owner/rows": f"{name}: owner/rows: has several splits; it has test, train: name one of them, as in ?split",
        "owner/rows?split=dev": f"{name}: owner/rows: has no split 'dev'; it has test, train: name one of them",
        "owner/rows?subset=b": f"{name}: owner/rows: has no subset 'b'; it has default: name one of them",
        "owner/rows@v2?split=train": f"{name}: owner/rows has no branch, tag or commit 'v2': name one that it has",
        "owner/rose": f"{name}: owner/rose: {hub.address} has no such data set, or it is private: correct the ",
        "owner/gated?split=train": f"{name}: owner/gated: is gated, and nobody is logged in to the hub here: accept ",
        "owner/pictures": f"{name}: owner/pictures: holds no file of rows (",
    }
    for data, sentence in sentences.items():
        error = ask(data)["error"]
        assert error.startswith(sentence) and "\n" not in error, error
    assert ask("owner/rose")["error"].endswith("did you mean owner/rows?")
    assert ask("owner/gated?split=train", run="allowed", HF_TOKEN=TOKEN)["rows"] == ["1", "2"]
    error = ask("owner/other", at=nowhere)["error"]
    assert (
        error.startswith(f"{name}: owner/other: {nowhere} cannot be reached (") and "to a local file or folder" in error
    )
    error = ask("owner/other", at=f"{nowhere}/offline", HF_HUB_OFFLINE="1")["error"]
    assert error.startswith(
        f"{name}: owner/other: HF_HUB_OFFLINE is set and the data set is not on this machine: unset"
    )
    assert "`hf download owner/other --repo-type dataset`" in error


CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - {split: test, path: [main/test-*]}
- config_name: socratic
  default: true
  data_dir: socratic
---
"""
NAMES = ["main/train-0.parquet", "main/train-1.parquet", "main/test-0.parquet", "socratic/train.jsonl", "other.json"]


@pytest.mark.parametrize(
    ("names", "card", "subset", "split", "expected"),
    [
        (["a.json", "b.json"], "", None, None, ["a.json", "b.json"]),
        (["train.csv", "test.csv"], "", None, "test", ["test.csv"]),
        (["dev/x.jsonl", "train/x.jsonl"], "", None, "validation", ["dev/x.jsonl"]),
        (NAMES, CARD, "main", "train", NAMES[:2]),
        (NAMES, CARD, "main", "test", NAMES[2:3]),
        (NAMES, CARD, None, None, ["socratic/train.jsonl"]),
        (NAMES, CARD, "socratic", None, ["socratic/train.jsonl"]),
    ],
)
def test_the_files_of_a_split_are_those_of_the_card_or_those_whose_names_say_it(
    names: list[str], card: str, subset: str | None, split: str | None, expected: list[str]
) -> None:
    assert files_of_split(names, card, subset, split) == expected
    with pytest.raises(DataError, match="has no split 'none'"):
        files_of_split(names, card, subset, "none")


def test_a_file_of_that_name_beside_the_campaign_counts_and_an_unknown_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    assert load_campaign(campaign_file(tmp_path, "owner/rows")).hub_ids(["sft"]) == []
    assert load_campaign(campaign_file(tmp_path, "owner/rows.jsonl")).hub_ids(["sft"]) == []
    [hub_id] = load_campaign(campaign_file(tmp_path, "hf://datasets/owner/rows@v1?split=a")).hub_ids(["sft"])
    assert (hub_id.id, hub_id.revision, hub_id.split) == ("owner/rows", "v1", "a")
    with pytest.raises(ConfigError, match="'spilt' is no part of a hub data set; write subset or split"):
        load_campaign(campaign_file(tmp_path, "owner/others?spilt=train"))


def test_labels_import_takes_a_hub_data_set_and_a_folder(hub: Hub, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is it {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    hub.model("datasets/owner/labels", {"train.jsonl": text.encode(), "test.jsonl": b""})
    config = campaign_file(tmp_path, "starter")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text(text.replace("it", "that"))
    with hub.served() as address:
        command = Commands(tmp_path, address)
        try:
            code, out, _ = command("labels", "import", config, "owner/labels?split=train")
            assert code == 0 and "3 labels imported" in out
            code, out, _ = command("labels", "import", config, tmp_path / "more")
            assert code == 0 and "3 labels imported" in out
            code, _, err = command("labels", "import", config, "owner/labels")
            assert code == 2 and "has several splits; it has test, train" in err
        finally:
            command.end()


@pytest.mark.parametrize(("algorithm", "key"), [("ppo", "prompts"), ("grpo", "prompts"), ("ppo", "ptx_data")])
@pytest.mark.parametrize("within", [True, False])
def test_a_data_set_of_an_algorithm_stays_at_its_commit_wherever_its_key_stands(
    tmp_path: Path, algorithm: str, key: str, within: bool
) -> None:
    keys = {key: "owner/rows"} if key == "prompts" else {key: ["owner/rows"], "ptx_coef": 0.1}
    align = {"algorithm": algorithm, **({algorithm: keys} if within else keys)}
    file = campaign_file(tmp_path, "starter")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "label": {"source": "simulated"}, "align": align}))
    campaign = load_campaign(file)
    [hub_id] = campaign.hub_ids(["align"])
    kept = campaign.at(hub_id, "0" * 40)
    [settled] = kept.hub_ids(["align"])
    assert settled.revision == "0" * 40
