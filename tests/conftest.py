"""Tiny models, tokenizers and campaigns that are built here, so that the real stages run offline in seconds.

bases("plain")   a base model of web text: no chat template, EOS is <|endoftext|>, no other special token
bases("untied")  the same, with an output head of its own
bases("llama")   no chat template, adds <s> to every text, EOS is </s>, has <unk>
bases("chatml")  its vocabulary has the markers of ChatML, EOS is <|im_end|>, and it brings a template of its own
tiny_base        the directory of bases("plain")
campaign(...)    writes a campaign file over tiny data, and loads it
"""

from __future__ import annotations

import os

# Before torch and transformers are imported by anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import manifest_of

REPOSITORY = Path(__file__).parents[1]
# TRUEUP_TEST_DEVICE=cuda: the stages of tiny campaigns run on a GPU, in float32, so that what must be equal is.
DEVICE = os.environ.get("TRUEUP_TEST_DEVICE", "cpu")
PLACED = {"device": DEVICE} if DEVICE == "cpu" else {"device": DEVICE, "dtype": "float32"}

COLOURS = "red blue green black white brown pink grey gold teal lime plum navy rose sand mint".split()
DEMONSTRATIONS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": f"Say {c}."}, {"role": "assistant", "content": f"It is {c}."}],
        "category": k,
    }
    for c, k in zip(COLOURS, ["conversation", "creative"] * 8, strict=True)
]
PROMPTS = [{"prompt": f"Tell me about {c} things.", "category": "conversation"} for c in COLOURS]
OWN_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test but a slow one sees the embedded model of this machine."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _young_garbage() -> None:
    """Leave what large packages brought out of garbage collection. Otherwise each of the many collections that a stage
    asks for goes through a million objects, and takes longer than the training of a tiny model."""
    global _modules_left_out
    if len(sys.modules) > _modules_left_out + 200:
        _modules_left_out = len(sys.modules)
        gc.collect()
        gc.freeze()


_modules_left_out = 0


@pytest.fixture(scope="session", autouse=True)
def _cards_compiled_once() -> Iterator[None]:
    """PEFT and TRL write a model card beside each adapter and checkpoint, and compile its template anew each time: a
    twentieth of what a tiny training takes."""
    import jinja2

    compile, compiled = jinja2.Environment.compile, dict[Any, Any]()

    def once(self: jinja2.Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.shared or not isinstance(source, str) or args or kwargs:
            return compile(self, source, *args, **kwargs)
        if (self, source) not in compiled:  # an environment that templates share has its settings for ever
            compiled[self, source] = compile(self, source)
        return compiled[self, source]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", once)
        yield


def make_tokenizer(kind: str) -> Any:
    """A byte-level BPE tokenizer of about 300 tokens, trained on the sentences above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {
        "plain": ["<|endoftext|>"],
        "untied": ["<|endoftext|>"],
        "llama": ["<unk>", "<s>", "</s>"],
        "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [message["content"] for row in DEMONSTRATIONS for message in row["messages"]] + [
        row["prompt"] for row in PROMPTS
    ]
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if kind in ("plain", "untied"):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = OWN_CHATML
    return made


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a random two-layer Llama with a tokenizer of the kind."""
    made: dict[str, Path] = {}

    def base(kind: str) -> Path:
        if kind not in made:
            import torch
            from transformers import LlamaConfig, LlamaForCausalLM

            tokenizer = make_tokenizer(kind)
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                tie_word_embeddings=kind != "untied",
                initializer_range=0.2,  # opinions strong enough for an adapter to work with
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            made[kind] = tmp_path_factory.mktemp("base") / kind
            LlamaForCausalLM(config).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return base


@pytest.fixture(scope="session")
def tiny_base(bases: Callable[[str], Path]) -> Path:
    return bases("plain")


@pytest.fixture(scope="session")
def campaign(tiny_base: Path) -> Callable[..., Any]:
    """`campaign(folder, sft={"max_steps": 2}, ...)` writes folder/campaign.yaml and its data, and loads it.

    Sections given are merged over the tiny ones key by key; None takes a key away; a stage that trains
    every weight has no adapter of ours. Results go to folder/run.
    """

    def make(folder: Path, **overrides: Any) -> Any:
        from trueup.campaign import load_campaign

        write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS)
        write_jsonl(folder / "prompts.jsonl", PROMPTS)
        training = {"train_batch_size": 4, "learning_rate": 1.0e-2, "max_steps": 4, "max_length": 96, "lora": {"r": 4}}
        values: dict[str, Any] = {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"name": str(tiny_base), "chat_template": "plain", **PLACED},
            "split": {"heldout_fraction": 0.3},
            "sft": {**training, "data": ["demonstrations.jsonl"]},
            "sample": {"prompts": "prompts.jsonl", "num_candidates": 3, "max_new_tokens": 8},
            "label": {"source": "simulated"},
            "reward": dict(training),
            "align": {**training, "algorithm": "dpo"},
            "compare": {},
        }
        for name, section in overrides.items():
            if isinstance(section, dict) and section.get("full_finetuning"):
                values[name].pop("lora", None)
        file = folder / "campaign.yaml"
        file.write_text(yaml.safe_dump(_merged(values, overrides), sort_keys=False), encoding="utf-8")
        return load_campaign(file)

    return make


@pytest.fixture(scope="session")
def policies_run() -> Callable[..., Path]:
    """`policies_run(run_dir, base)` is a run whose SFT and alignment left random adapters, beside the merged models;
    alignment two steps on its way, too; and a reward model. `size` is how far the adapters move the base."""

    def adapter(model: Any, folder: Path, seed: int, size: float, r: int = 4) -> Any:
        import torch
        from peft import LoraConfig, TaskType, get_peft_model

        torch.manual_seed(seed)
        lora = LoraConfig(r=r, lora_alpha=8, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=size)
        model.save_pretrained(folder)
        return model.merge_and_unload()

    def make(run_dir: Path, base: Path, size: float = 0.2) -> Path:
        import torch

        from trueup import runs
        from trueup.models import loading
        from trueup.models.config import ModelConfig

        config = ModelConfig(name=str(base), chat_template="plain", **PLACED)
        sft, align, reward = (runs.stage_dir(run_dir, stage) for stage in ("sft", "align", "reward"))
        loaded = loading.load_base(config)
        loaded.model = adapter(loaded.model, sft / "adapter", 1, size)
        loading.save(loaded, sft / "model")
        # Steps are relative to the SFT policy, as the end is, so each is made on a fresh one.
        for step in (10, 2):
            adapter(loading.load_policy(sft / "model", config).model, align / "steps" / f"step-{step}", step, size)
        loaded = loading.load_policy(sft / "model", config)
        loaded.model = adapter(loaded.model, align / "adapter", 4, size, r=6)
        loading.save(loaded, align / "model")
        torch.manual_seed(0)
        loading.save(loading.load_reward_model(sft / "model", config, fresh_head=True), reward / "model")
        for stage in (sft, align, reward):
            section = {"model": config.model_dump(mode="json")}
            (stage / "config.yaml").write_text(yaml.safe_dump({stage.name: section}), encoding="utf-8")
            manifest = manifest_of(stage.name, identity={"algorithm": "dpo"})
            (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return run_dir

    return make


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    made = dict(under)
    for key, value in over.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = _merged(made[key], value)
        else:
            made[key] = value
    return made


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON Lines; a row that is text is written as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def jsonl() -> Callable[[Path, list[Any]], Path]:
    return write_jsonl


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a fresh process, from the repository."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)

    return run


TRUEUP = [sys.executable, "-c", "import sys; from trueup.cli import main; sys.exit(main())"]


@pytest.fixture
def trueup() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in a process group of its own; what is still there after the test is ended."""
    import signal

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, before: Callable[[], None] = lambda: None) -> subprocess.Popen[str]:
        def prepare() -> None:
            # What a shell starts in the background ignores Ctrl-C, and so would everything that we start.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            before()

        process = subprocess.Popen(
            [*TRUEUP, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,
            preexec_fn=prepare,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
