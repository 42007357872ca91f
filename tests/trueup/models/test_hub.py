"""Hub ids, against a small server that speaks the hub's routes: one commit for a whole run, one sentence for each way
in which a model cannot be had, and never a part of a model for the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, Files, Hub, files_of

REPOSITORY = Path(__file__).parents[3]

ASK = """
import json, os, sys
from pathlib import Path
from trueup.errors import TrueupError
from trueup.models.sources.hub import fetch, settle
from trueup.provenance import commits
from trueup.provenance.commits import HubId
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["env"])
    run_dir = asked["run_dir"] and Path(asked["run_dir"])
    beside = asked["beside"] and Path(asked["beside"])
    try:
        hub_id = HubId(asked["name"], asked["revision"], beside=beside)
        settled = settle(hub_id, run_dir)
        if run_dir:
            commits.keep(run_dir, hub_id, settled.commit)
        place = fetch(hub_id.at(settled.commit))
        answer = {"commit": settled.commit, "note": settled.note, "folder": str(place), "error": ""}
    except TrueupError as error:
        answer = {"error": str(error)}
    print("answer", json.dumps(answer), flush=True)
"""
"""A process that settles and fetches models as stages do, without PyTorch. huggingface_hub reads the hub's address and
the place of its cache once, when it is imported."""


class Asker:
    """A fresh machine: a process with a hub's cache of its own, which is asked for models."""

    def __init__(self, home: Path, address: str, **env: str):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        places = {"HF_HOME": str(home / "hf"), "TRUEUP_CACHE": str(home / "cache"), "HF_ENDPOINT": address}
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env={**kept, **places, "HF_HUB_DISABLE_TELEMETRY": "1", **env},
        )

    def send(self, name: str, revision: str | None, run_dir: Path | None, beside: Path | None, env: Any) -> None:
        assert self.process.stdin is not None
        paths = {key: path and str(path) for key, path in {"run_dir": run_dir, "beside": beside}.items()}
        self.process.stdin.write(json.dumps({"name": name, "revision": revision, "env": env, **paths}) + "\n")
        self.process.stdin.flush()

    def __call__(
        self,
        name: str,
        revision: str | None = None,
        run_dir: Path | None = None,
        beside: Path | None = None,
        **env: str,
    ) -> Any:
        """The answer for a hub id: its commit, a note and the folder, or an error."""
        assert self.process.stdout is not None
        self.send(name, revision, run_dir, beside, env)
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError("the process ended")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def asker(hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Asker]]:
    """`asker()` is a machine that reaches the hub; `asker(address)` one that reaches something else."""
    made: list[Asker] = []
    with hub.served() as address:

        def start(at: str = address, home: Path = tmp_path / "machine", **env: str) -> Asker:
            made.append(Asker(home, at, **env))
            return made[-1]

        yield start
        for each in made:
            each.end()


def named(files: Files, **names: str) -> Files:
    """The files under other names: `model="pytorch_model.bin"`."""
    return {names.get(name.partition(".")[0], name): data for name, data in files.items()}


# ---- One sentence -----------------------------------------------------------------------------------------------


def test_each_way_in_which_a_model_cannot_be_had_is_one_sentence_that_says_what_to_do(
    hub: Hub, asker: Callable[..., Asker], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    files = files_of(bases("chatml"))
    hub.model("owner/tiny-model", files)
    hub.model("owner/closed", files, is_gated=True)
    hub.model("owner/quantised", {"README.md": b"x", "tiny.Q4_K.gguf": b"x", "tiny.Q8_0.gguf": b"x"})
    hub.model("owner/pickled", named(files, model="pytorch_model.bin"))
    hub.model("owner/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    hub.model("owner/pictures", {"README.md": b"x"})
    (tmp_path / "beside" / "my-model").mkdir(parents=True)
    (tmp_path / "beside" / "my-model" / "config.json").write_text("{}")
    ask = asker()
    address = hub.address

    def error(name: str, revision: str | None = None, **more: Any) -> str:
        answer = ask(name, revision, **more)
        assert "\n" not in answer["error"]
        return answer["error"]

    unknown = f"{address} has no such model, or it is private: correct the name, or log in with `hf auth login` if the "
    assert error("owner/tiny-modle") == f"model.name: owner/tiny-modle: {unknown}model is yours; did you mean {TINY}?"
    assert error("tiny-model") == f"model.name: tiny-model: {unknown}model is yours; did you mean owner/tiny-model?"
    assert error("someone/else-entirely") == f"model.name: someone/else-entirely: {unknown}model is yours"
    beside = tmp_path / "beside"
    assert error("me/my-modell", beside=beside).endswith("if the model is yours; did you mean ./my-model?")
    assert error("owner/tiny-model", "mian") == (
        "model.revision: owner/tiny-model has no branch, tag or commit 'mian': name one that it has, or leave the key "
        "out; did you mean main?"
    )
    assert error("owner/closed") == (
        "model.name: owner/closed: is gated, and nobody is logged in to the hub here: accept its conditions at "
        f"{address}/owner/closed, and log in with `hf auth login` (or set HF_TOKEN)"
    )
    assert error("owner/closed", HF_TOKEN="hf_another") == (
        "model.name: owner/closed: is gated, and the account that is logged in has no access: ask for access at "
        f"{address}/owner/closed, or log in as somebody else with `hf auth login`"
    )
    assert error("owner/closed", HF_TOKEN=TOKEN) == ""
    assert error("owner/quantised") == (
        "model.name: owner/quantised: holds GGUF files and no safetensors: fetch one (`hf download owner/quantised "
        "tiny.Q4_K.gguf --local-dir .`) and set model.name to ./tiny.Q4_K.gguf, or name the model that it was made from"
    )
    assert error("owner/pickled").startswith(
        "model.name: owner/pickled: holds its weights as pytorch_model.bin and not as safetensors; such a file can run "
        "code when it is read: if you trust its owner, convert it with transformers"
    )
    assert error("owner/lora") == (
        "model.name: owner/lora: holds an adapter and no model: name it as model.adapter, and set model.name to the "
        "model that it was trained on"
    )
    assert error("owner/pictures") == (
        "model.name: owner/pictures: holds no config.json and no safetensors: it is no model of transformers; name "
        "another"
    )
    assert error("owner/a model").startswith("model.name: owner/a model: neither a path nor a hub id (")
    hub.is_down = True
    assert error("owner/other") == (
        f"model.name: owner/other: {address} answers 503 Service Unavailable: try again later"
    )
    caches = [path.name for path in (ask.home / "hf" / "hub").glob("models--*")]
    assert caches == ["models--owner--closed"], "of a model that is refused nothing is fetched"


TINY = "owner/tiny-model"


def test_without_a_connection_what_is_on_this_machine_counts_and_says_so(
    hub: Hub, asker: Callable[..., Asker], bases: Callable[[str], Path]
) -> None:
    commit = hub.model(TINY, files_of(bases("chatml"))).branches["main"]
    assert asker()(TINY)["commit"] == commit
    nobody = asker("http://127.0.0.1:9")
    answer = nobody(TINY, commit)
    assert (answer["commit"], answer["note"]) == (commit, "")
    answer = nobody(TINY)
    assert answer["commit"] == commit
    assert answer["note"].startswith("owner/tiny-model: http://127.0.0.1:9 cannot be reached (")
    assert answer["note"].endswith(f"; commit {commit[:7]} counts, which is here")
    error = nobody("owner/tiny-modul")["error"]
    start = "model.name: owner/tiny-modul: http://127.0.0.1:9 cannot be reached ("
    assert error.startswith(start) and error.endswith(
        "and the model is not on this machine: connect, or set model.name to a local folder; did you mean "
        "owner/tiny-model?"
    )
    offline = asker(HF_HUB_OFFLINE="1")
    asked = len(hub.asked)
    assert offline("owner/other")["error"] == (
        "model.name: owner/other: HF_HUB_OFFLINE is set and the model is not on this machine: unset it, or fetch the "
        "model where the hub can be reached (`hf download owner/other`)"
    )
    assert offline(TINY, commit)["commit"] == commit
    assert len(hub.asked) == asked


# ---- One commit -------------------------------------------------------------------------------------------------


def test_a_run_stays_at_its_commit_until_a_file_that_counts_has_changed_on_the_branch(
    hub: Hub, asker: Callable[..., Asker], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    files = files_of(bases("chatml"))
    model, run = hub.model(TINY, files), tmp_path / "run"
    run.mkdir()
    first = model.branches["main"]
    ask = asker()
    assert ask(TINY, run_dir=run)["commit"] == first
    card = model.push({**files, "README.md": b"a new card"})
    answer = ask(TINY, run_dir=run)
    assert answer["commit"] == first
    moved = f"owner/tiny-model: main has moved from {first[:7]} to {card[:7]}"
    assert answer["note"] == f"{moved}, and no file that counts has changed: {first[:7]} stays"
    second = model.push({**files, "generation_config.json": b'{"temperature": 0.5}'})
    hub.is_down = True
    answer = ask(TINY, run_dir=run)
    assert answer["commit"] == first
    assert answer["note"] == (
        f"owner/tiny-model: {hub.address} answers 503 Service Unavailable; the run stays at commit {first[:7]}"
    )
    hub.is_down = False
    answer = ask(TINY, run_dir=run)
    assert answer["commit"] == second and (Path(answer["folder"]) / "generation_config.json").stat().st_size < 30
    moved = f"owner/tiny-model: main has moved from {first[:7]} to {second[:7]}"
    assert answer["note"] == f"{moved} (model.revision: {first} keeps the old files)"
    assert ask(TINY, first, run_dir=run)["commit"] == first, "a commit that the campaign names is not asked about"


# ---- A whole model ----------------------------------------------------------------------------------------------


def test_a_download_that_was_cut_off_is_never_taken_for_a_model(
    hub: Hub, asker: Callable[..., Asker], bases: Callable[[str], Path]
) -> None:
    files = files_of(bases("chatml"))
    commit = hub.model(TINY, files).branches["main"]
    hub.cut_after = 1000
    killed = asker()
    killed.send(TINY, None, None, None, {})
    assert hub.is_cut.wait(60)
    killed.end()
    hub.cut_after = None
    hub.goes_on.set()
    error = asker(HF_HUB_OFFLINE="1")(TINY, commit)["error"]
    part = "only a part of the model is on this machine (model.safetensors is missing or cut off)"
    assert error.startswith(f"model.name: owner/tiny-model: HF_HUB_OFFLINE is set and {part}: unset it, or fetch")
    ask = asker()
    weights = Path(ask(TINY)["folder"]) / "model.safetensors"
    assert weights.read_bytes() == files["model.safetensors"]
    whole = weights.resolve()
    whole.write_bytes(files["model.safetensors"][:2000])  # a disk was full, or a copy was broken off
    assert (Path(ask(TINY)["folder"]) / "model.safetensors").read_bytes() == files["model.safetensors"]
