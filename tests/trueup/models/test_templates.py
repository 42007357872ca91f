"""The form in which each family's template asks for an answer, and the tokens that end one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

import templates
from trueup.data.records import Dropped, Message, Preference
from trueup.errors import DataError, ModelError
from trueup.models import loading
from trueup.models.chat import answer_text, encode_completion, encode_demonstration, encode_prompt, sampled_ids
from trueup.models.config import NAMED_TEMPLATES, TEMPLATES, ModelConfig
from trueup.models.lockstep import Detokeniser
from trueup.models.sampling import Decoding, sample
from trueup.models.templates.choice import set_template
from trueup.models.templates.ends import as_trained, ends_turn, turn_ends
from trueup.training.pairs import encode_pairs

WHY = [Message(role="user", content="Why?")]
SYSTEM = [Message(role="system", content="Be brief."), *WHY]
SHIPPED = {file.stem: file for file in templates.shipped_templates()}


def of_family(name: str, **config: Any) -> Any:
    """A tokenizer with the control tokens of a family and its template, as Trueup takes it."""
    file = SHIPPED.get(name) or TEMPLATES / f"{name}.jinja"
    made = templates.tiny_tokenizer(file.read_text(encoding="utf-8"))
    set_template(made, ModelConfig(**config))
    return made


def ask(tokenizer: Any, messages: list[Message] = WHY, **kwargs: Any) -> str:
    """What an engine renders that reads the saved template and knows nothing of Trueup."""
    turns = [message.model_dump(include={"role", "content"}) for message in messages]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **kwargs))


# ---- Form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "opening", "end"),
    [
        ("gemma3", "<start_of_turn>model\n", "<end_of_turn>"),
        ("llama3_1", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("qwen2_5", "<|im_start|>assistant\n", "<|im_end|>"),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("qwen3_6", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("nemotron_3_nano", "<|im_start|>assistant\n<think></think>", "<|im_end|>"),
        ("glm4moe", "<|assistant|>\n<think></think>\n", "<|eos|>"),
        ("deepseek_r1_distill", "<｜Assistant｜><think>\n\n</think>\n\n", "<｜end▁of▁sentence｜>"),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>", "<|return|>"),
        ("muse_glimmer", "<|start|>assistant to=user<|message|>", "<|eot|>"),
        ("cohere2", "<|CHATBOT_TOKEN|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("phi3_5", "<|assistant|>\n", "<|end|>"),
        ("smolvlm", "Assistant:", "<end_of_utterance>"),
        ("alpaca", "### Response:\n", "<|eos|>"),
        ("vicuna_v1.1", "ASSISTANT:", "<|eos|>"),
        ("llama2", "[/INST]", "<|eos|>"),
    ],
)
def test_a_family_is_asked_in_its_own_form_and_ends_with_its_own_token(family: str, opening: str, end: str) -> None:
    made = of_family(family)
    assert ask(made).endswith(opening)
    assert made.eos_token == end
    assert "<|eos|>" in made.convert_ids_to_tokens(turn_ends(made)), "what was EOS before ends an answer too"


@pytest.mark.parametrize("family", [*SHIPPED, *NAMED_TEMPLATES])
def test_a_saved_template_is_taken_again_as_it_was_saved(family: str, tmp_path: Path) -> None:
    made = of_family(family)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (ask(again), turn_ends(again)) == (ask(made), turn_ends(made))
    set_template(again, ModelConfig())
    assert (ask(again), turn_ends(again)) == (ask(made), turn_ends(made))


def test_a_tokenizer_from_elsewhere_is_settled_where_it_is_read(tmp_path: Path) -> None:
    """A reward model that others trained from Qwen 3 saw an empty block of reasoning before every answer."""
    made = templates.tiny_tokenizer(SHIPPED["qwen3"].read_text(encoding="utf-8"))
    made.save_pretrained(tmp_path)

    def read(folder: Path) -> Any:
        """The tokenizer of a reward model that a key names; the keys of `model` are not for it."""
        (folder / "config.json").write_text('{"model_type": "llama"}')
        of_model = ModelConfig(chat_template="plain")
        return loading.load_base_tokenizer(of_model.of_key("label.reward_model", str(folder), None))

    assert ask(read(tmp_path)) == ask(of_family("qwen3"))
    templates.tiny_tokenizer(SHIPPED["gemma"].read_text(encoding="utf-8")).save_pretrained(tmp_path / "gemma")
    gemma = read(tmp_path / "gemma")
    assert "Be brief." in gemma.decode(encode_prompt(gemma, SYSTEM)), "no key of the campaign could fold it"
    templates.tiny_tokenizer(SHIPPED["smolvlm"].read_text(encoding="utf-8")).save_pretrained(tmp_path / "parts")
    parts = read(tmp_path / "parts")
    assert ask(parts, SYSTEM) == ask(of_family("smolvlm"), SYSTEM), "it has a system turn, in parts"


def test_the_table_of_families_in_the_documents_is_what_the_code_does() -> None:
    shown = Path("docs/models.md").read_text(encoding="utf-8")
    assert "\n".join(templates.table()) in shown, "write it anew with `python benchmarks/templates.py --table`"


@pytest.mark.parametrize("family", [name for name in SHIPPED if f"{name}_training" in SHIPPED])
def test_trls_own_training_templates_train_the_same_text_and_the_same_end(family: str) -> None:
    """What TRL marks with `generation` is more than the answer in some families (the block of reasoning, a line break
    behind the end), and never another text or another end."""
    own, theirs = (SHIPPED[name].read_text(encoding="utf-8") for name in (family, f"{family}_training"))
    made = templates.tiny_tokenizer(own + theirs)
    made.chat_template = own
    set_template(made, ModelConfig(), made.convert_tokens_to_ids(["<|user|>"]) if family == "glm4moe" else [])
    prompt = encode_prompt(made, WHY)  # it refuses a template that is not as trained
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    if family in ("idefics3", "llava_next", "smolvlm"):
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    marked = made.apply_chat_template(turns, chat_template=theirs, return_assistant_tokens_mask=True, return_dict=True)
    text = made.decode([id for id, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask])
    trained = made.decode(encode_completion(made, "So."))
    assert trained in text
    assert text.partition(trained)[0].removeprefix("\n") in made.decode(prompt), "the rest is asked, not trained"


@pytest.mark.parametrize("family", ["llama3_2", "gptoss", "muse_glimmer"])
def test_a_prompt_does_not_change_with_the_day(family: str) -> None:
    made = of_family(family, template_date=date(2025, 2, 3))
    assert "2025-02-03" in ask(made) or "03 Feb 2025" in ask(made)
    assert "strftime_now(" not in made.chat_template


def test_a_template_variable_is_the_default_of_every_engine_and_a_request_may_change_it() -> None:
    assert "low" in ask(of_family("gptoss", chat_template_kwargs={"reasoning_effort": "low"}))
    made = of_family("qwen3_6")
    assert ask(made, enable_thinking=True).endswith("<think>\n")
    with pytest.raises(ModelError, match=r"chat_template_kwargs\.enable_thinkin: .* did you mean enable_thinking\?"):
        of_family("qwen3", chat_template_kwargs={"enable_thinkin": False})


@pytest.mark.parametrize(
    ("family", "opening"), [("qwen3", "assistant\n"), ("qwen3_6", "<think>\n"), ("deepseek_r1_distill", "<think>\n")]
)
def test_a_model_that_may_think_is_asked_to(family: str, opening: str) -> None:
    assert ask(of_family(family, thinking=True)).endswith(opening)


@pytest.mark.parametrize("family", [*(name for name in SHIPPED if not name.endswith("_training")), *NAMED_TEMPLATES])
def test_no_dialogue_is_refused_where_system_text_is_folded(family: str) -> None:
    file = SHIPPED.get(family) or TEMPLATES / f"{family}.jinja"
    made = templates.tiny_tokenizer(file.read_text(encoding="utf-8"))
    counts, lines = templates.count(made, dialogues=12, fold_system=True)
    assert counts["wrong"] == 0 and counts["exact"] >= 11, lines
    assert all("this answer brings reasoning" in line for line in lines)


@pytest.mark.parametrize("family", [*SHIPPED, *NAMED_TEMPLATES])
def test_another_engines_jinja_asks_in_the_same_form(family: str) -> None:
    """minijinja is what servers in Rust have; llama.cpp's is as strict."""
    import minijinja

    def refuse(message: str) -> None:
        raise ValueError(message)

    made = of_family(family, fold_system=True)
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, pycompat=True)
    environment.add_global("raise_exception", refuse)
    tokens = {"eos_token": made.eos_token, "bos_token": made.bos_token}
    messages = [*SYSTEM, Message(role="assistant", content="So."), *SYSTEM]
    turns = [message.model_dump(include={"role", "content"}) for message in messages]
    assert environment.render_str(
        made.get_chat_template(), messages=turns, add_generation_prompt=True, **tokens
    ) == ask(made, messages)


def test_a_saved_template_is_settled_anew_where_another_form_is_wished(tmp_path: Path) -> None:
    of_family("deepseek_r1_distill").save_pretrained(tmp_path / "r1")
    of_family("llama3_2").save_pretrained(tmp_path / "llama")
    again = AutoTokenizer.from_pretrained(tmp_path / "r1")
    set_template(again, ModelConfig(thinking=True))
    assert ask(again).endswith("<think>\n")
    dated = AutoTokenizer.from_pretrained(tmp_path / "llama")
    set_template(dated, ModelConfig(template_date=date(2025, 2, 3)))
    assert "03 Feb 2025" in ask(dated)
    edited = AutoTokenizer.from_pretrained(tmp_path / "llama")
    edited.chat_template += "{{ '!' if add_generation_prompt }}"
    set_template(edited, ModelConfig())
    assert ask(edited).endswith("!"), "whoever edits a saved template means it"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("enable_thinking", r"set model\.thinking, which keeps reasoning apart"),
        ("bos_token", "is set wherever a template is rendered"),
    ],
)
def test_a_variable_that_another_key_or_the_renderer_sets_is_refused(key: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.chat_template_kwargs\.{key}: {said}"):
        of_family("qwen3", chat_template_kwargs={key: True})


def settled(text: str, vocabulary: str = "", **config: Any) -> Any:
    """A tokenizer with the markers of a template of one's own, settled."""
    made = templates.tiny_tokenizer(text + vocabulary)
    made.chat_template = text
    set_template(made, ModelConfig(**config))
    return made


TURN = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}END{% endfor %}{{ '<|assistant|>' if ASKS }}"
TURN = TURN.replace("ASKS", "add_generation_prompt")
ROLES = "<|user|><|assistant|><|system|><|end|><|now|>"


def test_a_date_is_refused_where_a_template_writes_none() -> None:
    with pytest.raises(ModelError, match=r"model\.template_date: the chat template writes no date"):
        of_family("qwen3", template_date=date(2025, 2, 3))


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_a_request_with_parts_of_its_own_is_rendered_as_it_stands(family: str) -> None:
    """A server's request may bring pictures; settling the template for texts must not get in its way."""
    made = of_family(family, fold_system=True)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    own = SHIPPED[family].read_text(encoding="utf-8")
    asked, before = (
        made.apply_chat_template(turns, chat_template=text, add_generation_prompt=True, tokenize=False)
        for text in (made.chat_template, own)
    )
    assert asked == before


def test_a_date_that_cannot_be_fixed_is_refused() -> None:
    fixed = settled('{{ strftime_now(format="%Y") }}' + TURN.replace("END", "<|end|>"), ROLES)
    assert ask(fixed).startswith("2026<|user|>")
    for call in ("{% set f = '%Y' %}{{ strftime_now(f) }}", "{{ strftime_now('%d ' + '%b') }}"):
        with pytest.raises(ModelError, match="today's date in a form that cannot be fixed"):
            settled(call + TURN, ROLES)


def test_an_end_is_found_between_turns_behind_a_system_turn_and_in_the_bare_vocabulary() -> None:
    between = TURN.replace("END", "{{ '<|end|>' if not loop.last }}")
    assert settled(between, ROLES).eos_token == "<|end|>"
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('No') }}{% endif %}"
    assert settled(needs_system + TURN.replace("END", "<|end|>"), ROLES).eos_token == "<|end|>"
    opener_only = settled(TURN.replace("END", ""), ROLES)
    assert opener_only.eos_token == "<|eos|>", "the next turn's beginning is no end, unless the model stops there"
    set_template(opener_only, ModelConfig(), opener_only.convert_tokens_to_ids(["<|user|>"]))
    assert opener_only.eos_token == "<|user|>"


def test_every_end_is_a_control_token_in_the_texts_of_a_row() -> None:
    made = templates.tiny_tokenizer(TURN.replace("END", "<|end|>") + ROLES)
    made.add_tokens(["<stop>"])
    made.chat_template = TURN.replace("END", "<|end|>")
    stop = made.convert_tokens_to_ids("<stop>")
    set_template(made, ModelConfig(), [stop])
    prompt = encode_prompt(made, [Message(role="user", content="Say <stop> please")])
    assert stop not in prompt and "Say <stop> please" in made.decode(prompt)
    assert stop not in encode_completion(made, "It is <stop>")


@pytest.mark.parametrize("family", ["qwen3", "qwen3_6", "deepseek_r1_distill"])
def test_an_answer_with_reasoning_is_refused_where_the_block_is_closed_before_it(family: str) -> None:
    row = [*WHY, Message(role="assistant", content="<think>\nHm.\n</think>\n\nSo.")]
    with pytest.raises(
        DataError, match=r"message 2 \(assistant\): this answer brings reasoning.* model\.thinking: true"
    ):
        encode_demonstration(of_family(family), row)


def test_a_pair_with_reasoning_is_refused_there_too() -> None:
    texts = {"chosen": "<think>Hm.</think>So.", "rejected": "No."}
    answers = {side: [Message(role="assistant", content=text)] for side, text in texts.items()}
    keys: dict[str, Any] = {
        "label_id": "1",
        "source": "import",
        "annotator": "a",
        "created_utc": "",
        "split": "train",
        "prompt_id": "p",
    }
    with pytest.raises(DataError, match="this answer brings reasoning"):
        encode_pairs([Preference(prompt=WHY, **keys, **answers)], of_family("qwen3"), 512, Dropped())


def test_folding_is_advised_only_where_it_would_help() -> None:
    late = [*WHY, Message(role="system", content="Be brief.")]
    with pytest.raises(DataError, match=r"set model\.chat_template to chatml or plain"):
        encode_prompt(of_family("gemma", fold_system=True), late)


@pytest.mark.parametrize("family", ["gptoss", "gemma3", "alpaca"])
def test_thinking_is_refused_where_a_template_has_no_block_for_it(family: str) -> None:
    with pytest.raises(ModelError, match=r"model\.thinking: the chat template writes no block of reasoning"):
        of_family(family, thinking=True)


def test_system_text_goes_into_the_next_question_where_a_template_has_no_place_for_it() -> None:
    with pytest.raises(DataError, match=r"System role not supported.* set model\.fold_system: true"):
        encode_prompt(of_family("gemma"), SYSTEM)
    made = of_family("gemma", fold_system=True)
    assert "user\nBe brief.\n\nWhy?<end_of_turn>" in ask(made, SYSTEM)
    assert made.decode(encode_prompt(made, SYSTEM)) == ask(made, SYSTEM)


@pytest.mark.parametrize("family", ["smolvlm", "vicuna_v1.1", "mistral"])
def test_a_blank_before_an_answer_is_a_part_of_its_first_token_and_not_of_its_text(family: str) -> None:
    made = of_family(family)
    for text in ("So.", " So.", "", "\nSo."):
        ids = encode_completion(made, text)
        assert made.decode(ids) == f" {text}{made.eos_token}"
        assert answer_text(made, ids) == text


# ---- Ends -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_ends(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base whose own configuration names two more tokens at which it stops, as Llama 3's does."""
    base = loading.load_base(ModelConfig(name=str(bases("chatml"))))
    loading.save(base, tmp_path)
    file = tmp_path / "generation_config.json"
    config = json.loads(file.read_text())
    others = base.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>"])
    file.write_text(json.dumps(config | {"eos_token_id": [*others, base.tokenizer.eos_token_id, 10**6]}))
    return tmp_path


def test_the_ends_of_a_model_are_its_templates_its_tokenizers_and_its_own(with_ends: Path, tmp_path: Path) -> None:
    base = loading.load_base(ModelConfig(name=str(with_ends)))
    ends = ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    assert base.tokenizer.convert_ids_to_tokens(turn_ends(base.tokenizer)) == ends, "the one that is trained is first"
    assert turn_ends(copy.deepcopy(base.tokenizer)) == turn_ends(base.tokenizer)
    loading.save(base, tmp_path / "saved")
    saved = loading.load_policy(tmp_path / "saved", ModelConfig())
    assert turn_ends(saved.tokenizer) == turn_ends(base.tokenizer)
    exported = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert exported.eos_token_id == turn_ends(base.tokenizer), "other engines stop at each of them"


def test_an_answer_ends_at_each_of_them(with_ends: Path) -> None:
    base = loading.load_base(ModelConfig(name=str(with_ends)))
    for end in turn_ends(base.tokenizer):
        hook = base.model.register_forward_hook(_always(end))
        ((answer,),) = sample(base, [WHY], Decoding(5, temperature=0.0, seed=0), 1, 1)
        hook.remove()
        assert (answer.token_ids, answer.finished, answer.text) == ([end], True, "")
        assert Detokeniser(base.tokenizer).add(end, last=True) == ""
        assert as_trained(base.tokenizer, [5, end]) == [5, base.tokenizer.eos_token_id]
        assert sampled_ids(base.tokenizer, base.tokenizer.decode([5]), True, [5, end]) == [5, end]
        assert sampled_ids(base.tokenizer, base.tokenizer.decode([5]), False, [5, end]) is None
    assert not ends_turn(base.tokenizer, []) and not ends_turn(base.tokenizer, [5])


def _always(token: int) -> Any:
    """A hook that lets a model want this token and no other."""

    def only(_module: Any, _args: Any, out: Any) -> Any:
        out.logits[:] = 0.0
        out.logits[..., token] = 100.0
        return out

    return only
