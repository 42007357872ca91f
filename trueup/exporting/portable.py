"""An exported model's files in a form for all readers: transformers 4.57 and 5, plain Jinja, and compatible engines.

transformers 5 writes keys that 4.57 does not know; 4.57 then loads the model with its defaults, without a warning. So
the files have the old keys beside the new ones. Weights are not touched.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from trueup.data.records import Message
from trueup.files import Json
from trueup.models.chat import blank_before, encode_completion, encode_prompt
from trueup.models.templates.choice import portable_text

_TEMPLATE = "chat_template.jinja"


def make_portable(folder: Path, reward_model: bool = False) -> list[str]:
    """Rewrite config, tokenizer and templates of a saved model in place; returns remarks for the user.

    reward_model  plain transformers must score a conversation in the tokens of its training (`prompt_then_answer`)
    """
    remarks = []
    if config := _read(folder / "config.json"):
        portable = portable_config(config)
        if not _says_the_same(config, portable):
            remarks.append(
                f"config.json has no form of `{config.get('model_type')}` that transformers 4 and 5 read alike; "
                "it is left as transformers 5 writes it"
            )
            portable = {**config, "use_cache": True}
        _write(folder / "config.json", portable)
    if generation := _read(folder / "generation_config.json"):
        _write(folder / "generation_config.json", {**generation, "use_cache": True})
    for path in folder.rglob("*.jinja"):
        path.write_text(portable_text(path.read_text(encoding="utf-8")), encoding="utf-8")
    if reward_model and (folder / _TEMPLATE).exists():
        remarks += _score_as_trained(folder)
    if tokenizer := _read(folder / "tokenizer_config.json"):
        portable = portable_tokenizer(tokenizer, fast=(folder / "tokenizer.json").exists())
        if (folder / _TEMPLATE).exists():
            # In both places, since some engines read only one of them.
            portable["chat_template"] = (folder / _TEMPLATE).read_text(encoding="utf-8")
        _write(folder / "tokenizer_config.json", portable)
    return remarks


# ---- config.json ------------------------------------------------------------------------------------------------


def portable_config(config: Json) -> Json:
    """config.json with the keys that transformers 4.57 reads beside those of 5.

    transformers 5 has all settings of rotary embeddings in `rope_parameters`. It renamed other keys, and still
    understands their old names.
    """
    values = {
        key: portable_config(value) if key.endswith("_config") and value else value for key, value in config.items()
    }
    for old, new in _renamed(config.get("model_type")).items():
        if new in config:
            values.setdefault(old, config[new])
    if "use_cache" in config or "architectures" in config:
        values["use_cache"] = True  # training turns it off, and generation without it is slow
    if config.get("dtype"):
        values["torch_dtype"] = config["dtype"]
    return {**values, **_rope_of_4(config)}


def _rope_of_4(config: Json) -> Json:
    """`rope_parameters` in the keys of transformers 4: flat ones, and a separate one for the scaling."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    keys: Json = {}
    if "full_attention" in rope:  # by kind of layer: Gemma 3, Olmo 3
        local = rope.get("sliding_attention") or {}
        rope = rope["full_attention"] or {}
        if local.get("rope_theta", rope.get("rope_theta")) != rope.get("rope_theta"):
            keys["rope_local_base_freq"] = local["rope_theta"]
    theta, share = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    apart = ("rope_theta", "partial_rotary_factor", "type", "rope_type")
    scaling: Json = {key: value for key, value in rope.items() if key not in apart}
    kind = rope.get("rope_type", "default")
    if config.get("model_type") in ("phi3", "phimoe", "phi4_multimodal") and kind == "longrope":
        keys["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
        scaling["type"] = kind  # it accepts exactly these three keys
    elif kind != "default":
        scaling["rope_type"] = kind
    keys["rope_theta"] = theta
    keys["rope_scaling"] = None if kind == "default" else scaling
    if share is not None:
        keys["partial_rotary_factor"] = share
    if config.get("model_type") in ("gpt_neox", "gpt_neox_japanese"):
        keys |= {"rotary_emb_base": theta, "rotary_pct": share}
    return keys


def _renamed(model_type: str | None) -> dict[str, str]:
    """Old names of a family's keys, with their names in transformers 5."""
    return dict(CONFIG_MAPPING[model_type].attribute_map) if model_type in CONFIG_MAPPING else {}


def _says_the_same(config: Json, portable: Json) -> bool:
    """Whether the installed transformers reads the same model from both."""
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return True

    def read(values: Json) -> Json:
        # A copy, since reading may write into nested values.
        return CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(values))).to_dict()

    before, after = read({**config, "use_cache": True}), read(portable)
    for values in (before, after):
        if isinstance(values.get("rope_parameters"), dict):
            values["rope_parameters"].pop("type", None)  # the old name of `rope_type`, beside it
    return all(after.get(key) == value for key, value in before.items())


# ---- tokenizer_config.json and templates ------------------------------------------------------------------------


def portable_tokenizer(config: Json, fast: bool) -> Json:
    """tokenizer_config.json with a class that both versions have, and special tokens under the name that both read.

    fast  there is a tokenizer.json, which defines the tokenizer completely; any class but the plain one of transformers
          4 would change it on loading
    """
    values = {key: value for key, value in config.items() if key not in ("backend", "is_local", "local_files_only")}
    if fast and "auto_map" not in config:
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = values.pop("extra_special_tokens", None)
    if isinstance(extra, dict):
        values |= extra
        extra = list(extra.values())
    if extra:
        values["additional_special_tokens"] = extra
    return values


# ---- Reward models ----------------------------------------------------------------------------------------------

_BOUNDARY = "\ufdd0"
"""A mark between prompt and answer that a reward model's template writes and its tokenizer removes. Unicode reserves
this character, so texts do not contain it."""
_BEGINNINGS = {"a word": "It is.", "a space": " It is.", "a line break": "\nIt is."}


def _score_as_trained(folder: Path) -> list[str]:
    """Rewrite template and tokenizer so that a conversation has the tokens of its training; returns a remark on answers
    whose tokens still differ."""
    template, fast = folder / _TEMPLATE, folder / "tokenizer.json"
    if not fast.exists():
        template.write_text(prompt_then_answer(template.read_text(encoding="utf-8"), ""), encoding="utf-8")
        return [
            "without a tokenizer.json, prompt and answer cannot be kept apart: if they share a token, scores differ"
        ]
    trained = PreTrainedTokenizerFast.from_pretrained(folder)
    between = _BOUNDARY + blank_before(trained)
    template.write_text(prompt_then_answer(template.read_text(encoding="utf-8"), between), encoding="utf-8")
    _keep_answers_apart(fast)
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    prompt = [Message(role="user", content="Is it?")]
    prompt_ids = encode_prompt(trained, prompt)
    others = []
    for beginning, answer in _BEGINNINGS.items():
        turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
        ids = plain.apply_chat_template(turns, return_dict=True)["input_ids"]
        if ids != prompt_ids + encode_completion(trained, answer):
            others.append(beginning)
    return [
        f"this tokenizer writes an answer that begins with {' or '.join(others)} in other tokens behind a prompt than "
        "alone, as Trueup trained it: such answers get other scores in plain transformers"
    ] * bool(others)


def prompt_then_answer(template: str, between: str = _BOUNDARY) -> str:
    """The chat template of a reward model. It writes an answer at the end as in training: the prompt as a generation
    prompt, the answer, and EOS, where the score is read. Most templates write a newline after EOS; some write a prompt
    in another form once its answer is there.

    The template's text is unchanged. It still begins a line, because `lstrip_blocks` depends on that; `trim_blocks`
    removes the newline before it, and `+` keeps the white space after it.
    """
    return (
        "{% if messages | length > 1 and messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
        "{% set scored_answer = messages[-1]['content'] %}{% set messages = messages[:-1] %}"
        "{% set add_generation_prompt = true %}{% endif %}\n"
        + template.removesuffix("\n")
        + f"{{%+ if scored_answer is defined %}}{{{{ {between!a} + scored_answer + eos_token }}}}{{% endif %}}\n"
    )


def _keep_answers_apart(tokenizer_file: Path) -> None:
    """Let the tokenizer cut at the boundary and remove it, so that no token spans prompt and answer.

    Without it, the space that ends a prompt and an answer's first word become one token, which was never trained.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    cuts = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(_BOUNDARY, "removed"), *cuts])
    tokenizer.save(str(tokenizer_file))


# ---- Small ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
