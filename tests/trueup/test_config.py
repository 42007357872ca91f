"""The campaign file: what it may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trueup.campaign import load_campaign
from trueup.errors import ConfigError

MINIMAL = "name: mine\nsft: {data: [starter]}\nsample: {prompts: starter}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_campaign(path, list(overrides))
    return str(caught.value)


def test_a_mistake_in_one_section_accuses_no_key_of_another(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "model: {thinking: true, dtype: nonsense}\n")
    said = problems(path, "sample.max_thinking_tokens=100")
    assert "1 problem\n" in said and "model.dtype: " in said and "max_thinking_tokens" not in said


# ---- What is wrong, all at once ---------------------------------------------------------------------------------


def test_all_problems_of_a_file_come_at_once_each_with_its_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        nmae: mine
        split: {heldout_fraction: 1.5}
        sft:
          learning_rte: 1.0e-3
          learning_rate: fast
          num_train_epochs: 0
          per_device_train_batch_size: many
          lora: {rank: 8, target_modules: 5}
        sample: {prompts: 3}
        label: {source: robots}
        reward: {pairs: nestd}
        align: {algorithm: dop}
        compare: {judges: [rubric, me]}
        """,
    )
    assert problems(path) == (
        f"{path}: 15 problems\n"
        "  nmae: unknown key; did you mean name?\n"
        "  name: is required\n"
        "  split.heldout_fraction: Input should be less than 1 (found 1.5)\n"
        "  sft.learning_rate: Input should be a valid number, unable to parse string as a number (found 'fast')\n"
        "  sft.num_train_epochs: Input should be greater than 0 (found 0)\n"
        "  sft.per_device_train_batch_size: Input should be a valid integer, unable to parse string as an integer "
        "(found 'many'), or: Input should be 'auto' (found 'many')\n"
        "  sft.lora.target_modules: Input should be a valid string (found 5), or: "
        "Input should be a valid list (found 5)\n"
        "  sft.lora.rank: unknown key; known are last_layers, lora_alpha, lora_dropout, r, target_modules\n"
        "  sft.data: is required\n"
        "  sft.learning_rte: unknown key; did you mean learning_rate?\n"
        "  sample.prompts: must be a path (found 3)\n"
        "  label.source: Input should be 'human', 'simulated', 'import', 'judge' or 'reward_model' (found 'robots')\n"
        "  reward.pairs: Input should be 'all', 'extremes' or 'nested' (found 'nestd')\n"
        "  align.algorithm: unknown 'dop'; did you mean dpo?\n"
        "  compare.judges.1: Input should be 'rubric', 'reward_model', 'second_reward_model', 'votes' or 'endpoint' "
        "(found 'me')"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sft: {data: [starter]}\nsample: {prompts: starter}", "  name: is required"),
        (MINIMAL + "sft: {data: [starter]}", "  line 4: the key 'sft' is written twice"),
        ("name: mine\nsft:\n  data: [starter]\n  data: [starter]\n", "  line 4: the key 'data' is written twice"),
        ("name: mine\n\tsft: 1", "  line 2: found character '\\t' that cannot start any token"),
        ("- a\n- b\n", "  a campaign is a mapping of keys to values, found list"),
        ("", "  a campaign is a mapping of keys to values, found NoneType"),
        ("{{ name }}: mine", "  line 1: {} cannot be a key"),
        (
            "name: mine\nsft: starter\nsample: {prompts: starter}",
            "  sft: must be a section of keys, or none (found 'starter')",
        ),
        (
            "name: mine\nsft: false\nsample: {prompts: starter}",
            "  sft: must be a section of keys, or none (found False)",
        ),
        ("name: mine\nsft: {}\nsample: {prompts: starter}", "  sft.data: is required"),
        ("name: mine\nsample: none", "  sample: must be a section of keys (found 'none')"),
        ("name: mine", "  sample.prompts: is required, unless label.source is import"),
        (
            "name: mine\nsample: {prompts: starter}\ncompare: {base: true}",
            "  compare.base: with sft: none the base model is the SFT policy, which is compared anyway: leave it out",
        ),
        (
            "name: mine\nsample: {prompts: starter}\nmodel: {new_tokens: true}",
            "  model.new_tokens: adds tokens whose embeddings SFT trains, and with sft: none nothing is trained there: "
            "leave it out",
        ),
        (
            "name: mine\nsample: {prompts: starter}\nmodel: {load_in_4bit: true}",
            "  model.load_in_4bit: quantises the base while SFT trains, and with sft: none nothing is trained there: "
            "leave it out",
        ),
        (
            MINIMAL + "model: {adapter: owner/adapter}",
            "  model.adapter: sft would train an adapter over an adapter. Leave the adapter out; or set sft: none, "
            "which merges it: then `trueup export RUN sft DIR` writes a model that model.name can name",
        ),
        (
            "name: mine\nsft: {data: starter}\nsample: {prompts: starter}",
            "  sft.data: Input should be a valid list (found 'starter')",
        ),
        (
            "name: mine\nsft: {data: []}\nsample: {prompts: starter}",
            "  sft.data: List should have at least 1 item after validation, not 0 (found [])",
        ),
        (
            "name: mine\nsft: {data: [{path: starter, max_row: 3}]}\nsample: {prompts: starter}",
            "  sft.data.0.max_row: unknown key; did you mean max_rows?",
        ),
        (MINIMAL + "label: {source: import}", "  label: with source: import, the key path is required"),
        (
            MINIMAL + "label: {also_use: [import]}",
            "  label: with also_use: [import], the key path is required",
        ),
        (
            MINIMAL + "label: {source: judge, judge_url: 'http://a'}",
            "  label: with source: judge, the key judge_model is required",
        ),
        (
            MINIMAL + "label: {also_use: [judge, reward_model]}",
            "  label: with also_use: [judge], the keys judge_url and judge_model are required",
        ),
        *(
            (
                MINIMAL + f"label: {{source: judge, judge_url: '{url}', judge_model: m}}",
                f"  label.judge_url: is no web address, such as http://127.0.0.1:8000/v1 (found '{url}')",
            )
            for url in ("127.0.0.1:8000", "ftp://judge", "http://", "file:///etc/hosts", "http://a b/v1", "judge")
        ),
        (
            MINIMAL + "compare: {judges: [endpoint], judge_url: 'http://[::1', judge_model: m}",
            "  compare.judge_url: is no web address: Invalid IPv6 URL (found 'http://[::1')",
        ),
        (
            MINIMAL + "compare: {judge_parameters: {extra_body: {until: 2024-01-01}}}",
            "  compare.judge_parameters: extra_body.until: is not JSON, so it cannot be sent (found "
            "datetime.date(2024, 1, 1))",
        ),
        (
            MINIMAL + "label: {judge_parameters: {max_tokens: 5, max_completion_tokens: 5}}",
            "  label.judge_parameters: max_tokens and max_completion_tokens are two names of one limit: leave one out",
        ),
        *(
            (
                MINIMAL + f"label: {{store: '{store}'}}",
                "  label.store: is a database in memory, and labels in it are lost; for example sqlite:///labels.sqlite",
            )
            for store in ("sqlite://", "sqlite:///:memory:", "sqlite:///a?mode=memory")
        ),
        (
            MINIMAL + "align: {algorithm: ppo, rewards: {rubric: 0}}",
            "  align: rewards: every weight is 0, so that no answer is worth more than another",
        ),
        (
            MINIMAL + "reward: {model: {name: other}}",
            "  reward.model: belongs at the top of the file, where all stages share it; a base of this stage's own is "
            "reward.base",
        ),
        (
            MINIMAL + "align: {split: {salt: x}}",
            "  align.split: belongs at the top of the file, where all stages share it",
        ),
        (
            MINIMAL + "compare: {run_dir: x}",
            "  compare.run_dir: belongs at the top of the file, where all stages share it",
        ),
    ],
)
def test_one_wrong_thing_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    assert problems(path) == f"{path}: 1 problem\n{said}"


def test_a_file_that_is_not_there_or_not_text_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: 1 problem\n  no such file"
    assert problems(tmp_path).startswith(f"{tmp_path}: 1 problem\n  cannot be read: ")
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
    assert "cannot be read: 'utf-8' codec" in problems(tmp_path / "a.yaml")


# ---- What is right ----------------------------------------------------------------------------------------------


def test_a_minimal_campaign_gets_every_default_and_shares_what_is_shared(tmp_path: Path) -> None:
    campaign = load_campaign(write(tmp_path, MINIMAL + "seed: 7\nreward: {seed: 8}\n"))
    assert campaign.run_dir == Path("runs/mine")
    assert {stage: config.seed for stage, config in campaign.stages.items()} == dict.fromkeys(campaign.stages, 7) | {
        "reward": 8
    }
    models = {id(config.model): config.model.name for config in campaign.stages.values()}  # type: ignore[attr-defined]
    assert list(models.values()) == ["embedded"]


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "1E-3", "+1e-3", "0.001", "10e-4", "1_0e-4"])
def test_a_small_number_may_be_written_as_people_write_it(tmp_path: Path, written: str) -> None:
    text = MINIMAL.replace(
        "[starter]}", f"[starter], learning_rate: {written}, trainer_args: {{weight_decay: {written}}}}}"
    )
    config: Any = load_campaign(write(tmp_path, text)).stages["sft"]
    assert config.learning_rate == pytest.approx(1e-3)
    assert isinstance(config.trainer_args["weight_decay"], float), "TRL would compare a string with 0 and crash"


@pytest.mark.parametrize("written", ["1e", "e-3", "v1e-3", "1e-3b", "12e"])
def test_text_that_only_looks_like_a_number_stays_text(tmp_path: Path, written: str) -> None:
    assert load_campaign(write(tmp_path, f"{MINIMAL}model: {{name: {written}}}")).config.model.name == written


def test_input_paths_start_from_the_campaign_file_and_starter_is_what_ships(tmp_path: Path) -> None:
    data = "[rows.jsonl, {path: /data/a.json, max_rows: 3}, starter]"
    text = f"name: mine\nsft: {{data: {data}}}\nsample: {{prompts: ../p.jsonl}}"
    campaign = load_campaign(write(tmp_path, text))
    first, second, third = campaign.stages["sft"].input_paths()
    assert (first, second) == (tmp_path / "rows.jsonl", Path("/data/a.json"))
    assert third.name == "demonstrations.jsonl" and third.is_file()
    assert campaign.stages["sample"].input_paths() == [tmp_path / "../p.jsonl"]


def test_a_models_name_and_its_template_are_relative_to_the_campaign_file_and_a_hub_id_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("owner/here", "plainly"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own.jinja").write_text("")
    monkeypatch.chdir("/")
    for written, name in {
        "embedded": "embedded",
        "owner/model": "owner/model",
        "gpt2": "gpt2",
        "owner/here": f"{tmp_path}/owner/here",
        "plainly": f"{tmp_path}/plainly",
        "./base": f"{tmp_path}/base",
        "../base": f"{tmp_path.parent}/base",
        "runs/a/sft/model": f"{tmp_path}/runs/a/sft/model",
        "small.gguf": f"{tmp_path}/small.gguf",
        "~/base": f"{tmp_path}/home/base",
        "/data/base": "/data/base",
    }.items():
        text = f"{MINIMAL}model: {{name: {written}}}\nlabel: {{source: reward_model, reward_model: {written}}}\n"
        campaign = load_campaign(write(tmp_path, text))
        label: Any = campaign.stages["label"]
        assert (campaign.config.model.name, label.reward_model) == (name, name), written
    for written, template in {
        "auto": "auto",
        "chatml": "chatml",
        "own.jinja": f"{tmp_path}/own.jinja",
        "t/none.jinja": f"{tmp_path}/t/none.jinja",
        "~/t.jinja": f"{tmp_path}/home/t.jinja",
        "chatlm": "chatlm",
    }.items():
        campaign = load_campaign(write(tmp_path, f"{MINIMAL}model: {{chat_template: {written}}}"))
        assert campaign.config.model.chat_template == template


HOMES = """name: mine
run_dir: ~/run
model: {name: ~/base}
sft: {data: [~/d.jsonl]}
sample: {prompts: ~/p.jsonl}
label: {source: import, path: ~/l.jsonl, store: 'sqlite:///~/s.sqlite', gold: ~/g.jsonl}
align: {algorithm: grpo, prompts: ~/q.jsonl, rewards: {'~/r.py:f': 1, gsm8k: 1}, checks: [{kind: gsm8k, path: ~/c}]}
compare: {others: {o: ~/other}}
"""


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    campaign = load_campaign(write(tmp_path, HOMES))
    stages: Any = campaign.stages
    found = [campaign.run_dir, *(path for stage in stages.values() for path in stage.input_paths())]
    found += [stages["label"].gold, *stages["compare"].others.values(), Path(stages["label"].store_url.database)]
    assert {str(path) for path in found} == {
        f"/home/me/{name}"
        for name in ("run", "d.jsonl", "p.jsonl", "l.jsonl", "s.sqlite", "g.jsonl", "q.jsonl", "r.py", "c", "other")
    }


def test_a_path_that_cannot_be_one_is_a_problem_with_its_key_and_no_traceback(tmp_path: Path) -> None:
    said = problems(write(tmp_path, HOMES.replace("~/", "~no-such-user-of-this-machine/"))).splitlines()[1:]
    assert {line.split(": ")[0].strip(): "a user that does not exist" in line for line in said} == dict.fromkeys(
        """run_dir model.name sft.data.0.path sample.prompts label.path label.store label.gold align.prompts
        align.rewards align.checks.0.path compare.others""".split(),
        True,
    )
    path = write(tmp_path, 'name: x\nrun_dir: "a\\0b"\nsft: {data: ["a\\0b"]}\nsample: {prompts: p}\n')
    assert [line.split(": ")[0].strip() for line in problems(path).splitlines()[1:]] == ["run_dir", "sft.data.0.path"]


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../b", "~/x", "", " ", "a\nb", "\x1b[2J"])
def test_a_campaigns_name_cannot_lead_out_of_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    (line,) = problems(write(tmp_path, MINIMAL.replace("name: mine", f"name: {json.dumps(name)}"))).splitlines()[1:]
    assert line.startswith(f"  name: {name!r} cannot name a folder in runs/")


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("seed: -1", "seed"),
        ("seed: 4294967296", "seed"),
        ("reward: {seed: -1}", "reward.seed"),
        ("reward: {learning_rate: .inf}", "reward.learning_rate"),
        ("reward: {max_grad_norm: .nan}", "reward.max_grad_norm"),
        ("reward: {max_steps: -2}", "reward.max_steps"),
    ],
)
def test_a_number_that_no_library_would_take_is_refused(tmp_path: Path, written: str, key: str) -> None:
    (line,) = problems(write(tmp_path, f"{MINIMAL}{written}\n")).splitlines()[1:]
    assert line.startswith(f"  {key}: Input should be ")


def test_a_moved_input_and_a_moved_run_keep_the_identity_of_a_stage_and_anything_else_changes_it(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, MINIMAL)

    def identity(*overrides: str) -> str:
        return load_campaign(path, list(overrides)).stages["sft"].sha256()

    same = identity()
    assert identity("sft.data=[elsewhere.jsonl]", "run_dir=/elsewhere", "name=other", "sample.top_k=3") == same
    assert (
        len({same, identity("seed=1"), identity("model.name=x"), identity("split.salt=x"), identity("sft.lora.r=4")})
        == 5
    )


@pytest.mark.parametrize("keys", ["lora: {}", "lora: {r: 16}", "lora: {last_layers: 2, target_modules: [q_proj]}"])
@pytest.mark.parametrize(
    "section", ["sft", "reward", "align", *(f"align, algorithm: {name}" for name in ("kto", "ppo", "grpo", "rloo"))]
)
def test_settings_of_an_adapter_are_refused_where_every_weight_is_trained(
    tmp_path: Path, section: str, keys: str
) -> None:
    stage, _, more = section.partition(", ")
    written = MINIMAL.replace("[starter]}", "[starter], full_finetuning: true, KEYS}") if stage == "sft" else MINIMAL
    written += "" if stage == "sft" else f"{stage}: {{full_finetuning: true, KEYS{', ' + more if more else ''}}}\n"
    assert problems(write(tmp_path, written.replace("KEYS", keys))) == (
        f"{tmp_path / 'campaign.yaml'}: 1 problem\n"
        f"  {stage}.lora: does nothing beside full_finetuning, which trains no adapter: leave one of them out"
    )
    load_campaign(write(tmp_path, written.replace("KEYS", "max_steps: 3")))
    load_campaign(write(tmp_path, written.replace("full_finetuning: true, KEYS", keys)))


# ---- --set ------------------------------------------------------------------------------------------------------


def test_set_overrides_keys_at_any_depth_and_reads_values_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    overrides = [
        "align.beta=3e-1",
        "sft.lora.r=4",
        "sft.data=[a.jsonl, b.jsonl]",
        "label.guideline=a=b",
        "sample.max_prompts=",
        "seed=5",
    ]
    campaign = load_campaign(path, overrides)
    stages: Any = campaign.stages
    assert (stages["align"].beta, stages["sft"].lora.r, stages["align"].seed) == (0.3, 4, 5)
    assert [path.name for path in stages["sft"].input_paths()] == ["a.jsonl", "b.jsonl"]
    assert (stages["label"].guideline, stages["sample"].max_prompts) == ("a=b", None)
    assert load_campaign(path).stages["align"] != stages["align"], "the file itself is untouched"


def test_set_changes_one_stage_although_a_yaml_anchor_is_shared_with_others(tmp_path: Path) -> None:
    text = MINIMAL.replace("[starter]}", "[starter], lora: &small {r: 4}}") + "reward: {lora: *small}\n"
    stages: Any = load_campaign(write(tmp_path, text), ["sft.lora.r=8"]).stages
    assert (stages["sft"].lora.r, stages["reward"].lora.r) == (8, 4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("align.beta", "--set: 1 problem\n  'align.beta' is not of the form key.subkey=value"),
        ("=3", "--set: 1 problem\n  '=3' is not of the form key.subkey=value"),
        ("align..beta=3", "--set: 1 problem\n  'align..beta=3' is not of the form key.subkey=value"),
        ("name.beta=3", "--set: 1 problem\n  name.beta: name is not a section"),
        ("sft.data=[a", "--set: 1 problem\n  'sft.data=[a': expected ',' or ']', but got '<stream end>'"),
        ("align.bta=3", "campaign.yaml: 1 problem\n  align.bta: unknown key; did you mean beta?"),
    ],
)
def test_a_wrong_override_is_an_error_with_its_key(tmp_path: Path, override: str, said: str) -> None:
    assert problems(write(tmp_path, MINIMAL), override).endswith(said)
