"""The page of an alignment by PPO, GRPO or RLOO: what it says of a training on disk, and that it trusts no text."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from looking import launched

from rlhf.align.config.online import GRPOConfig, OnlineConfig, PPOConfig, RLOOConfig
from rlhf.align.report import MOST_ROLLOUTS, write_report
from rlhf.align.schema import OnlineReport
from trueup.config import SplitConfig
from trueup.data.records import write_rows
from trueup.models.config import ModelConfig
from trueup.pages import wording
from trueup.runs import StageRun

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</blockquote></section><svg onload=\"document.title = 'owned'\">",
    "{{ 7 * 7 }}{% raw %}<!-- ",
    "a" * 400,
]
ANSWERS = [
    "A stitch in time saves nine because a small tear grows with every wash, so it is less work to mend it early.",
    "Water the roots, not the leaves, since wet leaves rot when the night is cold.",
    "It depends on the size of the pan. If it is small, fry one side at a time.",
]
STEPS, ROLLOUTS = 96, 24
REPORT: dict[str, Any] = {
    "algorithm": "ppo",
    "rewards": {"reward_model": 1.0, "/home/me/brevity.py:short": 0.5},
    "normalisation": {"mean": -0.31, "std": 2.4},
    "evaluations": [
        {"step": 0, "reward": -0.21, "kl": 0.0},
        {"step": 24, "reward": 0.1, "kl": 0.8},
        {"step": 48, "reward": 0.62, "kl": 2.4},
        {"step": 72, "reward": 0.71, "kl": 6.3},
        {"step": 96, "reward": 0.66, "kl": 9.8},
    ],
    "chosen_step": 48,
    "chosen_by": "reward",
    "steps_trained": STEPS,
    "kl_coef": {"first": 0.05, "last": 0.081},
}
SCHEMAS: dict[str, type[OnlineConfig]] = {"ppo": PPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}


def stage(folder: Path, algorithm: str = "ppo", **keys: Any) -> StageRun:
    directory = folder / "demo" / "align"
    directory.mkdir(parents=True)
    config = SCHEMAS[algorithm](
        run_dir=folder / "demo", model=ModelConfig(), split=SplitConfig(), **{"kl_budget": 5.0, **keys}
    )
    return StageRun(config, directory, False, [])


def trained(folder: Path, texts: list[str] = ANSWERS, rollouts: int = ROLLOUTS, **keys: Any) -> tuple[StageRun, Any]:
    """What PPO leaves on disk, made up, and its report."""
    draw = random.Random(0)
    made = stage(folder, **keys)
    history, metrics, samples = [], [], []
    for n in range(rollouts):
        t, step = n / max(1, rollouts - 1), n * STEPS // rollouts
        row: dict[str, Any] = {
            "scores": t - 0.3 + draw.gauss(0, 0.1),
            "length": 30 + 12 * t + draw.gauss(0, 1),
            "kl": 9 * t + draw.gauss(0, 0.4),
            "entropy": 2.4 - 0.9 * t + draw.gauss(0, 0.05),
            "eos_rate": 0.9 - 0.2 * t + draw.gauss(0, 0.02),
            "repetition": 0.05,
            "explained_variance": None if n == 0 else 0.6 * t + draw.gauss(0, 0.05),
        }
        history.append(row)
        told = {f"objective/{key}": row[key] for key in ("scores", "kl", "entropy")}
        told |= {"objective/kl_coef": 0.05 + 0.03 * t, "objective/rlhf_reward": row["scores"] - 0.05 * row["kl"]}
        told["answers/mean_length"] = row["length"]
        told |= {"val/explained_variance": row["explained_variance"], "val/eos_rate": row["eos_rate"]}
        for update in range(STEPS // rollouts):
            metrics.append(
                {
                    "step": step + update + 1,
                    "loss": draw.gauss(0, 0.05),
                    "grad_norm": 1 + draw.random(),
                    "loss/value_avg": 0.4 * math.exp(-2 * t) + draw.gauss(0, 0.02),
                    "policy/approxkl_avg": 0.01 * update,
                    "policy/clipfrac_avg": 0.06 * update,
                    "val/clipfrac_avg": 0.02 * update,
                    **(told if update == 0 else {}),
                }
            )
        for k in range(3):
            score, kl = row["scores"] + draw.gauss(0, 0.5), row["kl"] + draw.gauss(0, 1)
            samples.append(
                {
                    "step": step,
                    "prompt": [{"role": "user", "content": f"Question {n}: {texts[(n + 1) % len(texts)]}"}],
                    "completion": texts[(n + k) % len(texts)],
                    "score": score,
                    "kl": kl,
                    "total": score - 0.05 * kl,
                    "rewards": {"reward_model": score, "/home/me/brevity.py:short": None if k else 0.25},
                }
            )
    write_rows(made.dir / "metrics.jsonl", metrics)
    write_rows(made.dir / "samples.jsonl", samples)
    made.find("warn", "length_follows_reward", "step 80: reward rises with length (r = 0.91 over 20 rollouts)")
    made.find("info", "note", f"a note {texts[0]}")
    return made, {**REPORT, "rollouts": history}


def page(made: StageRun, report: dict[str, Any]) -> str:
    write_report(made, OnlineReport.model_validate(report))
    assert not list(made.dir.glob("*.partial"))
    return (made.dir / "report.html").read_text(encoding="utf-8")


def plain(html: str) -> str:
    """The words of a page."""
    words: list[str] = []

    class Words(HTMLParser):
        skipped = False

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.skipped = tag == "style"

        def handle_endtag(self, tag: str) -> None:
            self.skipped = False

        def handle_data(self, data: str) -> None:
            if not self.skipped:
                words.append(data)

    Words().feed(html)
    return re.sub(r"\s+", " ", " ".join(words))


# ---- What it says -----------------------------------------------------------------------------------------------


def test_the_headline_says_what_was_trained_how_long_and_why_this_step_is_the_result(tmp_path: Path) -> None:
    said = plain(page(*trained(tmp_path)))
    assert "Step 48 of 96" in said
    assert "Training by PPO began at the SFT policy and took 96 steps; step 48 is the aligned policy" in said
    assert "highest mean reward among those within the budget of 5.0 nats, on 32 prompts" in said
    assert "To look at step 80: reward rises with length (r = 0.91 over 20 rollouts) The training raises" in said
    assert "no evidence that the policy is better" in said


@pytest.mark.parametrize(
    ("keys", "report", "why"),
    [
        ({"kl_budget": None}, {}, "Of the steps that were kept it has the highest mean reward, on 32 prompts"),
        ({"eval_prompts": 0}, {"evaluations": [], "chosen_step": 96}, "last step: no prompts were kept to choose one"),
        (
            {"full_finetuning": True},
            {"chosen_step": 96},
            "It is the last step: what is kept along the way are adapters",
        ),
        ({}, {"chosen_step": 24, "evaluations": [{**REPORT["evaluations"][1], "step": s} for s in (0, 24)]}, "nothing"),
    ],
)
def test_each_way_to_choose_a_step_has_its_own_words(
    tmp_path: Path, keys: dict[str, Any], report: dict[str, Any], why: str
) -> None:
    made, told = trained(tmp_path, **keys)
    assert why in plain(page(made, {**told, **report}))


def test_a_budget_that_no_step_kept_is_not_said_to_be_kept(tmp_path: Path) -> None:
    made, report = trained(tmp_path, kl_budget=0.5)
    made.find("warn", "no_step_within_budget", "no kept step is within kl_budget; step 24 is nearest (KL 0.80)")
    said = plain(page(made, {**report, "chosen_step": 24}))
    assert "No kept step is within the budget of 0.5 nats; this one is nearest" in said
    assert "24 the result, over the budget 0.10 0.80" in said


def test_the_step_that_was_chosen_is_marked_and_so_are_those_over_the_budget(tmp_path: Path) -> None:
    html = page(*trained(tmp_path))
    [chosen] = re.findall(r'<tr class="chosen">.*?</tr>', html)
    assert ">48<" in chosen and "the result" in chosen
    assert [re.findall(r'"row">(\d+)', row)[0] for row in re.findall(r'<tr class="over">.*?</tr>', html)] == [
        "72",
        "96",
    ]
    assert "reward against KL" in html and 'class="limit"' in html


def test_everything_that_an_answer_is_paid_for_and_all_that_it_costs_stand_with_their_weights(tmp_path: Path) -> None:
    html = page(*trained(tmp_path))
    said = plain(html)
    assert "reward model the reward model, in its standard deviations on held-out answers (mean −0.31" in said
    assert "brevity.py:short a function of your own +0.5" in said
    assert "no end of turn an answer that did not end by itself −1" in said
    assert "a nat away from the SFT policy −0.081" in said
    assert "/home/me" not in html, "a page that is mailed does not tell of this machine's folders"


def test_a_figure_that_nobody_could_measure_is_not_called_a_number(tmp_path: Path) -> None:
    said = plain(page(*trained(tmp_path)))
    assert re.search(r"Explained variance of the returns, by the critic not known 0\.\d\d", said)
    assert "nan" not in said.lower()


def test_each_chart_says_how_to_read_it(tmp_path: Path) -> None:
    html = page(*trained(tmp_path))
    figures = re.findall(r"<figure><figcaption><b>(.*?)</b>.*?</figure>", html, re.DOTALL)
    for title in ("reward", "KL coefficient", "explained variance of the critic", "share of tokens held by the clip"):
        assert title in figures
    charts = html[html.index('id="training"') :]
    assert charts.count("<figure>") == charts.count('</svg>\n<p class="fine">')


def test_samples_stand_by_rollout_with_their_score_kl_and_total(tmp_path: Path) -> None:
    made, report = trained(tmp_path)
    html = page(made, report)
    rows = [json.loads(line) for line in (made.dir / "samples.jsonl").read_text().splitlines()]
    assert html.count("<details") == ROLLOUTS and html.count("<details open") == 2
    first = plain(html[html.index("<details") : html.index("</details>")])
    for row in rows[:3]:
        assert row["completion"] in first
        numbers = [f"{row[key]:.2f}".replace("-", "−") for key in ("score", "kl", "total")]
        assert "score {} KL {} total {}".format(*numbers) in first
    assert "brevity.py:short no opinion" in first


def test_the_best_and_the_worst_paid_answers_stand_before_all_others(tmp_path: Path) -> None:
    made, report = trained(tmp_path)
    html = page(made, report)
    rows = [json.loads(line) for line in (made.dir / "samples.jsonl").read_text().splitlines()]
    late = sorted(row["total"] for row in rows if row["step"] >= STEPS / 2)
    said = plain(html[html.index("Paid most") : html.index("Rollout by rollout")])
    most, least = said.split("Paid least")
    assert f"total {late[-1]:.2f}" in most
    assert f"total {late[0]:.2f}".replace("-", "−") in least


def test_of_many_rollouts_some_are_shown_with_the_first_and_the_last_and_the_page_says_so(tmp_path: Path) -> None:
    made, report = trained(tmp_path, rollouts=96)
    html = page(made, report)
    assert html.count("<details") == MOST_ROLLOUTS
    assert "40 of 96 rollouts, evenly spaced; samples.jsonl has all" in html
    assert "Before the first step" in html and "After step 95" in html


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_algorithms_without_a_critic_have_the_same_page_without_what_they_do_not_have(
    tmp_path: Path, algorithm: str
) -> None:
    made = stage(tmp_path, algorithm, beta=0.04)
    metrics = [
        {"step": i, "loss": 0.0, "reward": i / 40, "kl": i / 900, "completions/clipped_ratio": 0.1, "entropy": 2.0}
        | {"frac_reward_zero_std": 0.2 + 0.6 * (i > 20), "clip_ratio/region_mean": 0.01}
        for i in range(1, 41)
    ]
    write_rows(made.dir / "metrics.jsonl", metrics)
    report = {key: value for key, value in REPORT.items() if key != "kl_coef"}
    html = page(made, {**report, "algorithm": algorithm, "rollouts": []})
    said = plain(html)
    assert (
        f"Training by {algorithm.upper()} began at the SFT policy and took 96 steps" in said
        and "a nat away from the SFT policy" in said
    )
    assert "−0.04" in said
    assert "share of prompts whose answers are paid alike" in said and "teach nothing" in said
    assert "share of answers cut at the limit" in said and "a mean over tokens" in said
    for anchor in ("samples", "answers"):
        assert f'id="{anchor}"' not in html and f'href="#{anchor}"' not in html


# ---- Trust ------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_text_of_a_model_becomes_a_part_of_the_page(tmp_path: Path) -> None:
    made, report = trained(tmp_path, HOSTILE)
    html = page(made, {**report, "rewards": {"<b>.py:f": 1.0, "reward_model": 1.0}})
    tags = _Tags()
    tags.feed(html)
    assert not {tag for tag, _ in tags.found} & {"script", "img", "iframe", "object", "b.py:f"}
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not str(attributes.get("href", "")).startswith(("http", "javascript"))
    assert f'content="{wording.report_policy()}"'.replace("'", "&#39;") in html
    assert "{{ 7 * 7 }}" in html.replace("&#39;", "'")


# ---- In a browser -----------------------------------------------------------------------------------------------


browser = pytest.fixture(launched, scope="module")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_a_narrow_and_a_wide_screen_asks_nobody_and_runs_nothing(
    tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    made, report = trained(tmp_path, [*HOSTILE, *ANSWERS])
    page(made, report)
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto((made.dir / "report.html").as_uri())
    for details in opened.query_selector_all("details:not([open])"):
        details.evaluate("element => element.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.title() == "demo: alignment by PPO"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and errors == []
    opened.close()
