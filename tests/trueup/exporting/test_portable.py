"""What `export` writes about a model is read alike by transformers 4.57 and 5, and by plain Jinja."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import templates
from trueup.data.records import Message
from trueup.errors import TrueupError
from trueup.exporting.portable import make_portable, portable_config, portable_tokenizer, prompt_then_answer
from trueup.models import loading
from trueup.models.chat import SPELLED, encode_completion, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.templates.choice import set_template
from trueup.models.templates.ends import turn_ends

REPOSITORY = Path(__file__).parents[3]
THETA = 5000.0
PLAIN = {"rope_type": "default", "rope_theta": THETA}
HALF = {**PLAIN, "partial_rotary_factor": 0.5}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": THETA,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": THETA}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
    "rope_theta": THETA,
}
BOTH_KINDS = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # what it is called here: (model type, its config, what transformers 4.57 must find)
    "llama": ("llama", {"rope_parameters": PLAIN}, {"rope_theta": THETA, "rope_scaling": None}),
    "llama, llama3": (
        "llama",
        {"rope_parameters": LLAMA3},
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}},
    ),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic": (
        "llama",
        {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}, "max_position_embeddings": 32},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}, {"rope_theta": THETA}),
    "qwen3": ("qwen3", {"rope_parameters": PLAIN, "head_dim": 8}, {"rope_theta": THETA}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "rope_parameters": PLAIN,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
        {"rope_theta": THETA, "num_experts": 4},
    ),
    "gemma2": ("gemma2", {"rope_parameters": PLAIN, "head_dim": 8, "sliding_window": 8}, {"rope_theta": THETA}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": BOTH_KINDS,
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {**PLAIN, "rope_theta": 700.0}},
        },
        {"rope_theta": THETA, "rope_local_base_freq": 700.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 8,
            "layer_types": BOTH_KINDS,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN},
        },
        {"rope_theta": THETA},
    ),
    "mistral": ("mistral", {"rope_parameters": PLAIN, "sliding_window": 16}, {"rope_theta": THETA}),
    "mixtral": ("mixtral", {"rope_parameters": PLAIN, "num_local_experts": 4}, {"rope_theta": THETA}),
    "phi3": ("phi3", {"rope_parameters": HALF, "num_attention_heads": 2}, {"partial_rotary_factor": 0.5}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 32, "rope_parameters": LONG},
        {
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": LONG["short_factor"],
                "long_factor": LONG["long_factor"],
            },
        },
    ),
    "gpt_neox": ("gpt_neox", {"rope_parameters": HALF}, {"rotary_emb_base": THETA, "rotary_pct": 0.5}),
    "stablelm": ("stablelm", {"rope_parameters": HALF}, {"rope_theta": THETA, "partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}, {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, {}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, {}),
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Say red."}],
    [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Say red."},
        {"role": "assistant", "content": "It is red."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "I do not\nknow."},
    ],
]


def tiny(name: str) -> Any:
    kind, keys, _ = FAMILIES[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **keys}))


def loss(model: Any) -> float:
    ids = (torch.arange(2 * 48) * 37 % 280 + 10).view(2, 48)
    with torch.inference_mode():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_of_every_family_says_the_same_to_both_versions(name: str, tmp_path: Path) -> None:
    """To 5 by the loss; to 4.57 by its keys here, and by its loss in the slow test below."""
    model = tiny(name)
    model.config.use_cache = False
    model.save_pretrained(tmp_path)
    assert make_portable(tmp_path) == []
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["use_cache"] is True and config["torch_dtype"] == config["dtype"] == "float32"
    for key, value in FAMILIES[name][2].items():
        assert config[key] == value, key
    assert loss(AutoModelForCausalLM.from_pretrained(tmp_path)) == pytest.approx(loss(model), abs=1e-6)


def test_a_model_within_a_model_is_rewritten_too() -> None:
    inner = {"model_type": "llama", "rope_parameters": PLAIN, "dtype": "bfloat16"}
    made = portable_config({"model_type": "something", "text_config": inner, "vision_config": None})
    assert made["text_config"]["rope_theta"] == THETA and made["text_config"]["torch_dtype"] == "bfloat16"


def test_a_config_that_both_versions_cannot_read_alike_is_left_and_named(tmp_path: Path) -> None:
    """Frequencies by kind of layer, in a family that reads `rope_scaling` for all layers alike."""
    kinds = {"full_attention": YARN, "sliding_attention": PLAIN}
    config = AutoConfig.for_model("qwen2", **{**SIZES, "layer_types": BOTH_KINDS, "rope_parameters": kinds})
    config.save_pretrained(tmp_path)
    (said,) = make_portable(tmp_path)
    assert said.startswith("config.json has no form of `qwen2` that transformers 4 and 5 read alike")
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters


# ---- The tokenizer -----------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chat_template": "plain"},
    "llama": {"chat_template": "plain"},
    "chatml": {"chat_template": "own"},
    "added": {"chat_template": "chatml", "new_tokens": True},
    "spaced": {},
}
SPACED = (
    "{% for message in messages %}{{ '### ' + message['role'] + ': ' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{{ '### assistant: ' if add_generation_prompt }}"
)
"""Asks with a space at the end, which many tokenizers put at the head of the next word."""


@pytest.fixture(params=LAYOUTS)
def saved(request: pytest.FixtureRequest, bases: Callable[[str], Path], tmp_path: Path) -> tuple[loading.Loaded, Path]:
    """A policy as a stage saves it, and the folder that was made portable."""
    kind = request.param if request.param in ("llama", "chatml") else "plain"
    layout = LAYOUTS[request.param]
    if request.param == "spaced":
        (tmp_path / "spaced.jinja").write_text(SPACED)
        layout = {"chat_template": str(tmp_path / "spaced.jinja")}
    config = ModelConfig(name=str(bases(kind)), device="cpu", **layout)
    loaded = loading.load_base(config)
    loading.save(loaded, tmp_path / "model")
    assert make_portable(tmp_path / "model") == []
    return loaded, tmp_path / "model"


def test_the_tokenizer_keeps_its_tokens_and_transformers_4_knows_its_keys(saved: tuple[loading.Loaded, Path]) -> None:
    loaded, folder = saved
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "extra_special_tokens"} & set(config)
    again = AutoTokenizer.from_pretrained(folder)
    for text in ("Say red.", f"{loaded.tokenizer.eos_token} a", "  two  blanks\n"):
        assert again(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert again.special_tokens_map == loaded.tokenizer.special_tokens_map
    assert set(again.all_special_tokens) == set(loaded.tokenizer.all_special_tokens)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        ends = turn_ends(loaded.tokenizer)
        assert values["eos_token_id"] == (ends if len(ends) > 1 else ends[0]) and values["use_cache"] is True
        assert values["pad_token_id"] == loaded.tokenizer.pad_token_id


def test_special_tokens_with_names_stay_reachable() -> None:
    made = portable_tokenizer({"extra_special_tokens": {"image_token": "<image>"}, "auto_map": {}}, fast=True)
    assert made == {"image_token": "<image>", "additional_special_tokens": ["<image>"], "auto_map": {}}


def render(template: str, conversation: list[dict[str, str]], eos: str, bos: str | None, **keys: Any) -> str:
    """As transformers' own environment, without the tag that it adds."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=conversation, eos_token=eos, bos_token=bos, **keys)


@pytest.mark.parametrize("prompt", [False, True])
def test_the_template_opens_in_plain_jinja_and_says_the_same(saved: tuple[loading.Loaded, Path], prompt: bool) -> None:
    loaded, folder = saved
    eos, bos = loaded.tokenizer.eos_token, loaded.tokenizer.bos_token
    written = (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == written
    for conversation in CONVERSATIONS:
        expected = loaded.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
        assert render(written, conversation, eos, bos, add_generation_prompt=prompt) == expected
        again = AutoTokenizer.from_pretrained(folder)
        assert again.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt) == expected


def test_the_template_opens_in_minijinja(saved: tuple[loading.Loaded, Path]) -> None:
    import minijinja

    loaded, folder = saved
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    for reward_model in (False, True):
        text = (folder / "chat_template.jinja").read_text()
        text = prompt_then_answer(text) if reward_model else text
        for conversation in CONVERSATIONS:
            keys = {"eos_token": loaded.tokenizer.eos_token, "bos_token": loaded.tokenizer.bos_token}
            said = environment.render_str(text, messages=conversation, add_generation_prompt=False, **keys)
            assert said == render(text, conversation, keys["eos_token"], keys["bos_token"])


@pytest.mark.parametrize(
    "around", ["{text}", "\n{text}\n", "  {text}  \n\n", "{text}the end", "{{%- if true %}}\n{text}{{% endif %}}"]
)
def test_the_template_of_a_reward_model_writes_prompt_answer_and_end_token_and_is_the_same_otherwise(
    saved: tuple[loading.Loaded, Path], around: str
) -> None:
    loaded, folder = saved
    eos, bos = loaded.tokenizer.eos_token, loaded.tokenizer.bos_token
    text = around.format(text=(folder / "chat_template.jinja").read_text())
    for conversation in CONVERSATIONS:
        *prompt, answer = conversation
        for asks in (False, True):
            after = render(prompt_then_answer(text), conversation, eos, bos, add_generation_prompt=asks)
            if answer["role"] == "assistant" and not asks:
                asked = render(text, prompt, eos, bos, add_generation_prompt=True)
                assert after == f"{asked}\ufdd0{answer['content']}{eos}"
            else:
                assert after == render(text, conversation, eos, bos, add_generation_prompt=asks)


def test_what_is_saved_can_be_read_by_whom_the_umask_lets(bases: Callable[[str], Path], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        loaded = loading.load_base(ModelConfig(name=str(bases("plain")), device="cpu"))
        loaded.model.config.use_cache = False  # as training leaves it
        loading.save(loaded, tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
    assert json.loads((tmp_path / "model/config.json").read_text())["use_cache"] is True


def test_a_finished_answer_is_the_same_tokens_to_plain_transformers_as_to_training(
    saved: tuple[loading.Loaded, Path],
) -> None:
    loaded, folder = saved
    assert make_portable(folder, reward_model=True) == []
    plain = AutoTokenizer.from_pretrained(folder)
    for conversation in CONVERSATIONS[1:]:
        *prompt, answer = [Message(**message) for message in conversation]
        for text in (answer.content, " It", "\n\nIt", "  It is.\n", ":)", ""):
            trained = encode_prompt(loaded.tokenizer, prompt) + encode_completion(loaded.tokenizer, text)
            turns = [*conversation[:-1], {"role": "assistant", "content": text}]
            assert plain.apply_chat_template(turns, return_dict=True)["input_ids"] == trained, text


def test_over_all_templates_that_trl_ships_plain_transformers_scores_the_tokens_that_were_trained(
    tmp_path: Path,
) -> None:
    compared = 0
    for file in templates.shipped_templates():
        trained = templates.tiny_tokenizer(file.read_text(encoding="utf-8"))
        try:
            set_template(trained, ModelConfig())
            encode_prompt(trained, [Message(role="user", content="Why?")])
        except TrueupError:
            continue  # refused in training
        trained.save_pretrained(folder := tmp_path / file.stem)
        assert make_portable(folder, reward_model=True) == [], file.name
        plain = AutoTokenizer.from_pretrained(folder)
        for n in range(6):
            told: set[str] = set()
            *prompt, answer = templates.dialogue(random.Random(n), control=[])
            try:
                ids = encode_prompt(trained, prompt, told) + encode_completion(trained, answer.content, changes=told)
            except TrueupError:
                continue
            turns = [{"role": message.role, "content": message.content} for message in (*prompt, answer)]
            if SPELLED not in told:  # here a text that spells a control token is that token
                assert plain.apply_chat_template(turns, return_dict=True)["input_ids"] == ids, (file.name, turns)
                compared += 1
    assert compared >= 100


def test_a_tokenizer_that_writes_an_answer_otherwise_behind_a_prompt_is_named(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """One that puts a space before every piece of text, so that the boundary brings one in."""
    tokenizer = AutoTokenizer.from_pretrained(bases("plain"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    set_template(tokenizer, ModelConfig(chat_template="plain"))
    tokenizer.save_pretrained(tmp_path)
    (known,) = make_portable(tmp_path, reward_model=True)
    assert known.startswith("this tokenizer writes an answer that begins with a word or a line break in other tokens")


# ---- Other engines -----------------------------------------------------------------------------------------------

ENVS = Path(os.environ.get("TRUEUP_ENGINES", "TRUEUP_ENGINES is not set")).absolute()
"""The folder of their environments."""
COMPARE = [sys.executable, str(REPOSITORY / "benchmarks/engines.py")]


def needs(engine: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (ENVS / engine / "ready").exists(),
        reason=f"{ENVS} has no environment {engine}: make it with `python benchmarks/engines.py EXPORT --setup ENVS`, "
        "and set TRUEUP_ENGINES=ENVS",
    )


@pytest.mark.slow
@needs("transformers-4")
def test_transformers_4_computes_the_same_loss_of_every_family(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases("plain"))
    expected = {}
    for name in FAMILIES:
        model = tiny(name)
        expected[name] = loss(model)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        make_portable(tmp_path / name)
    code = (
        "import json, sys, torch, transformers; from pathlib import Path\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "assert transformers.__version__.startswith('4.57'), transformers.__version__\n"
        "ids = (torch.arange(2 * 48) * 37 % 280 + 10).view(2, 48)\n"
        "def loss(folder):\n"
        "    AutoTokenizer.from_pretrained(folder)\n"
        "    return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids, labels=ids).loss.item()\n"
        "print(json.dumps({folder.name: loss(folder) for folder in Path(sys.argv[1]).iterdir()}))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command: list[str | Path] = [ENVS / "transformers-4/bin/python", "-c", code, tmp_path]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What the command says of the embedded model, or of a reward model on it, in all engines that are there."""
    folder, printed = tmp_path_factory.mktemp("exported"), dict[str, str]()
    config = ModelConfig(device="cpu", dtype="float32")

    def compare(what: str) -> str:
        if what not in printed:
            loading.save(loading.load_base(config), folder / "policy")
            if what == "reward":
                loading.save(loading.new_reward_model(folder / "policy", config), folder / "reward")
            make_portable(folder / what, reward_model=what == "reward")
            answer = subprocess.run([*COMPARE, folder / what, "--envs", ENVS], capture_output=True, text=True)
            printed[what] = answer.stdout + answer.stderr
        return printed[what]

    return compare


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("engine", "what"),
    [
        pytest.param("transformers-4", "policy", marks=needs("transformers-4")),
        pytest.param("transformers-4", "reward", marks=needs("transformers-4")),
        pytest.param("vllm", "policy", marks=needs("vllm")),
        pytest.param("vllm", "reward", marks=needs("vllm")),
        pytest.param("llama.cpp", "policy", marks=[needs("transformers-4"), needs("llama.cpp")]),
    ],
)
def test_each_engine_says_of_an_exported_model_what_transformers_5_says(
    compared: Callable[[str], str], engine: str, what: str
) -> None:
    printed = compared(what)
    line = re.search(rf"^{engine} +[\d.]+ +-?[\d.]+ +(\S+)  the same$", printed, re.MULTILINE)
    assert line and float(line[1]) <= 1e-4, printed


@pytest.mark.slow
@pytest.mark.parametrize("reward_model", [False, True], ids=["policy", "reward model"])
def test_the_command_compares_what_engines_say_and_sees_a_difference(
    bases: Callable[[str], Path], tmp_path: Path, reward_model: bool
) -> None:
    """This very Python stands for an older transformers, and one that fails."""
    config = ModelConfig(name=str(bases("plain")), device="cpu")
    loading.save(loading.load_base(config), folder := tmp_path / "policy")
    if reward_model:
        loading.save(loading.new_reward_model(folder, config), folder := tmp_path / "reward")
    make_portable(folder, reward_model=reward_model)

    def compare() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMPARE, folder, "--envs", tmp_path / "envs"], capture_output=True, text=True)

    answer = compare()
    assert answer.returncode == 2 and "no environment of transformers-4, vllm" in answer.stderr
    assert "make them with --setup" in answer.stderr
    python = tmp_path / "envs/transformers-4/bin/python"
    python.parent.mkdir(parents=True)
    (tmp_path / "envs/transformers-4/ready").touch()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    answer = compare()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("the same") == 2 and ("score" in answer.stdout) == reward_model
    python.write_text("#!/bin/sh\nexit 1\n")
    answer = compare()
    assert answer.returncode == 1 and "failed" in answer.stdout


def test_the_command_refuses_a_folder_without_a_model_before_it_makes_environments(tmp_path: Path) -> None:
    answer = subprocess.run([*COMPARE, tmp_path, "--setup", tmp_path / "envs"], capture_output=True, text=True)
    assert answer.returncode == 2 and f"{tmp_path}: no config.json" in answer.stderr
    assert not (tmp_path / "envs").exists()


@pytest.mark.slow
def test_the_command_says_what_llama_cpp_lacks_where_its_converter_cannot_run(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    loading.save(loading.load_base(ModelConfig(name=str(bases("plain")), device="cpu")), folder := tmp_path / "policy")
    make_portable(folder)
    (tmp_path / "envs/llama.cpp").mkdir(parents=True)
    (tmp_path / "envs/llama.cpp/ready").touch()
    answer = subprocess.run([*COMPARE, folder, "--envs", tmp_path / "envs"], capture_output=True, text=True)
    assert answer.returncode == 1 and re.search(
        r"llama.cpp +failed:\nits converter runs in .*/transformers-4: make that with --setup", answer.stdout
    )
