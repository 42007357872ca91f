"""An exported model's files as its readers want them: transformers 4.57 and 5, plain Jinja, and what reads like them.

transformers 5 writes keys that 4.57 does not know, and 4.57 then loads the model with its defaults, without a word. So
the old keys stand beside the new ones. Weights are not touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trueup.chat import portable_text

_TEMPLATE = "chat_template.jinja"


def make_portable(folder: Path, reward_model: bool = False) -> list[str]:
    """Rewrite config, tokenizer and templates of a saved model in place; returns what somebody should know.

    reward_model  a conversation that ends with an answer is rendered up to that answer's end token, where the score is
                  read; most templates write a newline behind it
    """
    known = []
    if config := _read(folder / "config.json"):
        portable = portable_config(config)
        if not _says_the_same(config, portable):
            known.append(
                f"config.json has no form of `{config.get('model_type')}` that transformers 4 and 5 read alike; "
                "it is left as transformers 5 writes it"
            )
            portable = {**config, "use_cache": True}
        _write(folder / "config.json", portable)
    if generation := _read(folder / "generation_config.json"):
        _write(folder / "generation_config.json", {**generation, "use_cache": True})
    for path in folder.rglob("*.jinja"):
        text = portable_text(path.read_text(encoding="utf-8"))
        path.write_text(ends_at_the_end_token(text) if reward_model else text, encoding="utf-8")
    if tokenizer := _read(folder / "tokenizer_config.json"):
        portable = portable_tokenizer(tokenizer, fast=(folder / "tokenizer.json").exists())
        if (folder / _TEMPLATE).exists():
            # In both places: some engines read only the one, some only the other.
            portable["chat_template"] = (folder / _TEMPLATE).read_text(encoding="utf-8")
        _write(folder / "tokenizer_config.json", portable)
    return known


# ---- config.json ------------------------------------------------------------------------------------------------


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the keys that transformers 4.57 reads beside those of 5.

    transformers 5 keeps all about rotary embeddings in `rope_parameters`, and renamed some keys, which it still
    understands under their old names.
    """
    made = {
        key: portable_config(value) if key.endswith("_config") and value else value for key, value in config.items()
    }
    for old, new in _renamed(config.get("model_type")).items():
        if new in config:
            made.setdefault(old, config[new])
    if "use_cache" in config or "architectures" in config:
        made["use_cache"] = True  # training turns it off, and whoever generates without it waits
    if config.get("dtype"):
        made["torch_dtype"] = config["dtype"]
    return {**made, **_rope_of_4(config)}


def _rope_of_4(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` in the keys of transformers 4: flat ones, and the scaling apart."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    made: dict[str, Any] = {}
    if "full_attention" in rope:  # by kind of layer: Gemma 3, Olmo 3
        local = rope.get("sliding_attention") or {}
        rope = rope["full_attention"] or {}
        if local.get("rope_theta", rope.get("rope_theta")) != rope.get("rope_theta"):
            made["rope_local_base_freq"] = local["rope_theta"]
    theta, share = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    apart = ("rope_theta", "partial_rotary_factor", "type", "rope_type")
    scaling: dict[str, Any] = {key: value for key, value in rope.items() if key not in apart}
    kind = rope.get("rope_type", "default")
    if config.get("model_type") in ("phi3", "phimoe", "phi4_multimodal") and kind == "longrope":
        made["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
        scaling["type"] = kind  # it demands these three keys alone
    elif kind != "default":
        scaling["rope_type"] = kind
    made["rope_theta"] = theta
    made["rope_scaling"] = None if kind == "default" else scaling
    if share is not None:
        made["partial_rotary_factor"] = share
    if config.get("model_type") in ("gpt_neox", "gpt_neox_japanese"):
        made |= {"rotary_emb_base": theta, "rotary_pct": share}
    return made


def _renamed(model_type: str | None) -> dict[str, str]:
    """Old names of a family's keys, and what transformers 5 calls them."""
    from transformers import CONFIG_MAPPING

    return dict(CONFIG_MAPPING[model_type].attribute_map) if model_type in CONFIG_MAPPING else {}


def _says_the_same(config: dict[str, Any], portable: dict[str, Any]) -> bool:
    """Whether this transformers reads the same model from both."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return True

    def read(values: dict[str, Any]) -> dict[str, Any]:
        # A copy, since reading may write into nested values.
        return CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(values))).to_dict()

    before, after = read({**config, "use_cache": True}), read(portable)
    for values in (before, after):
        if isinstance(values.get("rope_parameters"), dict):
            values["rope_parameters"].pop("type", None)  # the old name of `rope_type`, beside it
    return all(after.get(key) == value for key, value in before.items())


# ---- tokenizer_config.json and templates ------------------------------------------------------------------------


def portable_tokenizer(config: dict[str, Any], fast: bool) -> dict[str, Any]:
    """tokenizer_config.json with a class that both versions have, and special tokens under the name that both read.

    fast  tokenizer.json is there: then all that the tokenizer does stands in it, and any class but the plain one of
          transformers 4 would change it on loading
    """
    made = {key: value for key, value in config.items() if key not in ("backend", "is_local", "local_files_only")}
    if fast and "auto_map" not in config:
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = made.pop("extra_special_tokens", None)
    if isinstance(extra, dict):
        made |= extra
        extra = list(extra.values())
    if extra:
        made["additional_special_tokens"] = extra
    return made


def ends_at_the_end_token(template: str) -> str:
    """The chat template, but nothing follows the end token of an answer that stands last.

    The template's text is rendered as it is, into a variable. It begins a line, as it did, since `lstrip_blocks` minds;
    `trim_blocks` takes the newline before it, and `+` keeps white space behind it.
    """
    text = template.removesuffix("\n")
    return (
        "{% set rendered %}\n" + text + "{%+ endset %}"
        "{%- if messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
        " and eos_token in rendered -%}"
        "{{- (rendered.split(eos_token)[:-1] | join(eos_token)) + eos_token -}}"
        "{%- else -%}{{- rendered -}}{%- endif -%}\n"
    )


# ---- Small ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
