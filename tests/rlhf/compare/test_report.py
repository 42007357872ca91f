"""The report page: what it shows of a run on disk, that it trusts no text, and how it opens in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from looking import Page, launched
from manifests import card_of, comparison_of, judge_of, manifest_of, verdict_of

from rlhf.compare import report, report_views
from rlhf.compare.config import CompareConfig
from rlhf.compare.schema import CompareReport, PromptComparison
from trueup import runs
from trueup.artifacts.reports import Estimate, Rate, RewardCard
from trueup.config import SplitConfig
from trueup.data.records import write_rows
from trueup.models.config import ModelConfig
from trueup.pages import wording

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</blockquote></section><svg onload=\"document.title = 'owned'\">",
    "{{ 7 * 7 }}{% raw %}<!-- ",
    "javascript:document.title='owned' &lt;b&gt; \u202e backwards",
    "a" * 400,
]
FIGURES = {"value": 0.68, "ci_low": 0.623, "ci_high": 0.735, "n": 48}
MESSAGE = (
    "The aligned policy learnt this preference: it wins 68.0 % [62.3, 73.5] of comparisons on 24 held-out prompts."
)


PRICES = ["KL is 2.60 nats per sequence, over the budget of 2", "<b>ifeval</b>: 22% right, 31% before"]


def fake_run(folder: Path, texts: list[str], prompts: int = 24, category: str = "question_answering") -> Path:
    """What all stages leave on disk, made up: `texts` are the answers, over and over."""
    draw = random.Random(0)
    run_dir = folder / "fake"
    made_from = {
        "sample": ["sft"],
        "label": ["sample"],
        "reward": ["sft", "label"],
        "align": ["sft", "label"],
        "compare": ["align"],
    }
    for number, (stage, directory) in enumerate(runs.DIRECTORIES.items()):
        parents = [
            {"stage": parent, "manifest_sha256": parent.encode().hex().ljust(64, "0")}
            for parent in made_from.get(stage, [])
        ]
        finding = {"level": "warn", "code": "few_labels", "message": f"a finding of {stage} <b>bold</b>"}
        read = {"path": f"/data/{stage}.jsonl", "sha256": "ab" * 32, "rows": 352, "dropped": {"too long": 3}}
        manifest = manifest_of(
            stage,
            duration_s=61.5 * (number + 1),
            parents=parents,
            inputs=[{**read, "columns_not_read": {}}],
            verdict={"status": "warn", "findings": [finding]},
        )
        if stage in ("sft", "reward", "align"):
            manifest["tokens_per_s"] = 257.5
        (run_dir / directory).mkdir(parents=True)
        (run_dir / directory / "manifest.json").write_text(json.dumps(manifest))
    for stage in ("sft", "reward"):
        rows = [{"step": i, "loss": 2 + math.exp(-i / 20) + draw.gauss(0, 0.2)} for i in range(1, 63)]
        write_rows(run_dir / stage / "metrics.jsonl", [*rows, {"step": 62, "eval_loss": 2.1}])
    steps: list[dict[str, Any]] = []
    for i in range(1, 101):
        margin = i / 40 + draw.gauss(0, 0.3)
        rewards = {"rewards/margins": margin, "rewards/chosen": margin / 3, "rewards/rejected": -2 * margin / 3}
        logps = {"logps/chosen": -60 - i / 10 + draw.gauss(0, 4), "logps/rejected": -62 - i / 4 + draw.gauss(0, 4)}
        loss = math.log1p(math.exp(-margin))
        steps.append({"step": i, "loss": loss, "rewards/accuracies": min(1, 0.5 + i / 150), **rewards, **logps})
    write_rows(run_dir / "align" / "metrics.jsonl", steps)
    accuracy = {"value": 0.79, "ci_low": 0.68, "ci_high": 0.87, "n": 90, "prompts": 40}
    baselines = {"shorter or longer": {**accuracy, "value": 0.52, "ci_low": 0.41, "ci_high": 0.62}}
    (run_dir / "reward" / "report.json").write_text(json.dumps(card_of(accuracy=accuracy, baselines=baselines)))
    write_rows(run_dir / "compare" / "samples.jsonl", fake_rows(texts, prompts, category, draw))
    (run_dir / "compare" / "report.json").write_text(json.dumps(FAKE_REPORT))
    return run_dir


def fake_rows(texts: list[str], prompts: int, category: str, draw: random.Random) -> list[dict[str, Any]]:
    def answer(i: int, mean: float) -> dict[str, Any]:
        scores = {"rubric": draw.random() * 10, "reward_model": draw.gauss(0, 1)}
        tokens = max(1, min(48, round(draw.gauss(mean, 9))))
        return {
            "text": texts[i % len(texts)],
            "finished": i % 4 > 0,
            "num_tokens": tokens,
            "logp": -50.0,
            "scores": scores,
        }

    return [
        {
            "prompt_id": f"{i:016x}",
            "prompt": [{"role": "user", "content": f"Question {i}: {texts[i % len(texts)]}"}],
            "category": category if i % 3 else "advice",
            "sft": [answer(i + k, 32) for k in range(2)],
            "aligned": [answer(i + k + 1, 27) for k in range(2)],
            "others": {"base": [answer(i, 40)], "best_of_n": [answer(i + 1, 30)]},
            "win_share": {"rubric": (1.0, 0.75, 0.5, 0.25)[i % 4], "reward_model": None if i == 5 else 0.5},
        }
        for i in range(prompts)
    ]


def measures(policy: str, **keys: Any) -> dict[str, Any]:
    """What one policy's answers are like; `keys` replace some."""
    column = ("sft", "aligned").index(policy) if policy in ("sft", "aligned") else 0
    told = {key: both[column] for key, both in MEASURED.items()}
    return {**told, "self_similarity": None, "kl_nats": None, **keys}


def estimate(value: float, low: float | None = None, high: float | None = None, n: int = 24) -> dict[str, Any]:
    return {"value": value, "ci_low": low, "ci_high": high, "n": n}


MEASURED: dict[str, tuple[float, float | None]] = {
    "length_tokens": (31.8, 27.2),
    "eos_rate": (0.795, 0.97),
    "distinct_2": (0.612, 0.588),
    "repetition": (0.09, 0.03),
    "heldout_loss": (2.879, None),
}


COUNTED = {"wins": 31, "ties": 4, "losses": 13, "prompts": 24}
KL = estimate(2.03, 1.6, 2.5)
CONTROLLED = {**FIGURES, "value": 0.7, "slope": 0.2, "note": "length decides <nearly> all"}
FAKE_REPORT: dict[str, Any] = {
    **comparison_of(
        judges={
            "rubric": judge_of(
                description="rubric says-why, simulated",
                win_rate={**FIGURES, **COUNTED},
                length_controlled_win_rate={**FIGURES, "value": 0.66, "slope": -0.1, "note": None},
                minimum_detectable_effect=0.081,
            ),
            "reward_model": judge_of(
                description="the reward model, learnt from the same labels",
                win_rate={"value": 0.71, "ci_low": 0.64, "ci_high": 0.77, **COUNTED, "n": 48},
                length_controlled_win_rate=CONTROLLED,
            ),
        },
        verdict=verdict_of(status="pass", message=MESSAGE),
    ),
    "prompts": 24,
    "samples_per_prompt": 2,
    "sources": {"simulated": 271},
    "policies_compared": {
        "policies": ["sft", "aligned"],
        "best_of": None,
        "pairs": [],
        "strengths": {},
        "notes": {},
        "measures": {"sft": measures("sft"), "aligned": measures("aligned", kl_nats=KL)},
    },
    "greedy": None,
    "kl_nats": {**KL, "samples_per_prompt": 1},
    "kl_nats_per_token": estimate(0.074, 0.06, 0.09),
    "kl_budget": None,
    "checkpoints": [],
    "chosen_by_budget": None,
    "identical_completions": 0.031,
    "checks": {},
}


def full_report() -> dict[str, Any]:
    """The report of a comparison in which everything was asked for."""
    rate = {**FIGURES, **COUNTED}
    floor = {**rate, "value": 0.493, "ci_low": 0.44, "ci_high": 0.546}
    rubric, reward_model = (FAKE_REPORT["judges"][name] for name in ("rubric", "reward_model"))
    categories = {"advice": rate, "question_answering": {**rate, "value": 0.5, "ci_low": 0.3, "ci_high": 0.7}}
    names = ["base", "sft", "aligned", "best_of_n"]
    share = {"value": 0.31, "ci_low": 0.25, "ci_high": 0.38, "n": 96}

    def step(number: int, kl: float, score: float) -> dict[str, Any]:
        mean = {"value": score, "ci_low": score - 0.1, "ci_high": score + 0.1, "n": 24}
        return {"step": number, "kl_nats": {**mean, "value": kl}, "scores": {"rubric": mean, "reward_model": mean}}

    path = [step(0, 0.0, 5.0), step(15, 0.9, 6.1), step(30, 1.9, 6.4), step(60, 2.6, 6.3)]
    asked = {
        **rubric,
        "description": "some-model behind an endpoint",
        "made_the_labels": False,
        "independent": True,
        "position_bias": {"value": 0.61, "ci_low": 0.55, "ci_high": 0.67, "n": 96},
        "refused": 2,
        "malformed": 5,
        "contradictions": 12,
        "failed": {"timeout": 3},
    }
    return {
        **FAKE_REPORT,
        "judges": {
            "rubric": {**rubric, "by_category": categories},
            "reward_model": {**reward_model, "by_category": {"advice": rate}},
            "endpoint": asked,
        },
        "noise_floor": {"rubric": floor},
        "greedy": {"rubric": {**rate, "value": 0.74}},
        "policies_compared": {
            "policies": names,
            "best_of": 3,
            "pairs": [
                {"a": a, "b": b, "judge": "rubric", "win_rate": {**rate, "value": 0.6, "ci_low": 0.52, "ci_high": 0.71}}
                for i, a in enumerate(names)
                for b in names[i + 1 :]
            ],
            "measures": {
                "base": measures("base", length_tokens=40.4, heldout_loss=3.31, kl_nats=estimate(9.2)),
                "sft": measures("sft"),
                "aligned": measures("aligned", heldout_loss=2.913, kl_nats=KL),
                "best_of_n": measures("best_of_n", length_tokens=30.0, heldout_loss=None, kl_nats=estimate(0.432)),
            },
            "strengths": {
                "rubric": {
                    name: {**estimate(k - 1.0, k - 1.2, k - 0.8), "elo": 174.0 * (k - 1)}
                    for k, name in enumerate(names)
                }
            },
            "notes": {},
        },
        "kl_budget": 2.0,
        "checkpoints": path,
        "chosen_by_budget": path[2],
        "checks": {
            "ifeval": {
                "sft": share,
                "aligned": {**share, "value": 0.22},
                "mcnemar": {"p_value": 0.021, "both": 19, "only_sft": 11, "only_aligned": 2, "neither": 64},
                "unverified": 4,
                "unsupported": {"language:response_language": 4},
                "prompts": "100 of 541 prompts of ifeval.jsonl, drawn with seed 0",
                "left_out": 3,
                "verifier": "lm-eval 0.4",
            }
        },
        "verdict": verdict_of(
            outcome="improved_at_a_price",
            code="learnt_at_a_price",
            message=f"{MESSAGE} The price: {'; '.join(PRICES)}.",
            prices=PRICES,
        ),
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    run_dir = fake_run(tmp_path, HOSTILE)
    report.write_report(run_dir)
    return run_dir / "compare" / "report.html"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """The page of a comparison with everything that there can be."""
    run_dir = fake_run(tmp_path, HOSTILE)
    (run_dir / "compare" / "report.json").write_text(json.dumps(full_report()))
    report.write_report(run_dir)
    return run_dir / "compare" / "report.html"


def test_the_verdict_stands_before_everything_else(page: Path) -> None:
    text = Page(page.read_text()).text
    assert MESSAGE in text
    assert text.index(MESSAGE) < text.index("Who labelled") < text.index("Cost")


def test_simulated_labels_are_called_so_and_no_person_is_counted(page: Path) -> None:
    text = Page(page.read_text()).text
    assert "simulated a written rubric; no person gave these labels 271" in text
    assert "human people, in the browser 0" in text


def test_every_figure_of_the_judges_is_there(page: Path) -> None:
    text = Page(page.read_text()).text
    for shown in (
        "68.0 % [62.3, 73.5]",
        "71.0 % [64.0, 77.0]",
        "66.0 %",
        "31 won, 4 tied, 13 lost",
        "Could detect 8.1 points",
    ):
        assert shown in text


@pytest.mark.parametrize("which", ["page", "full"])
def test_the_reward_model_is_never_shown_as_independent_evidence(which: str, request: pytest.FixtureRequest) -> None:
    text = Page(request.getfixturevalue(which).read_text()).text
    assert "The reward model learnt from the same labels: no independent evidence." in text
    assert "reward model not independent" in text and "rubric not independent" in text
    assert ("endpoint independent of the training" in text) == (which == "full")


def test_baselines_stand_beside_the_reward_model(page: Path) -> None:
    text = Page(page.read_text()).text
    assert "reward model 79.0 % [68.0, 87.0] shorter or longer 52.0 % [41.0, 62.0]" in text


def test_measures_that_were_not_taken_are_said_not_to_be(page: Path) -> None:
    assert "2.879 not measured" in Page(page.read_text()).text


def test_findings_cost_and_lineage_of_every_stage_are_there(page: Path) -> None:
    text = Page(page.read_text()).text
    for stage in runs.DIRECTORIES:
        assert f"a finding of {stage} <b>bold</b>" in text
    assert "all stages 21 min 32 s" in text  # 61.5 s times 1 + 2 + ... + 6
    assert "258 cpu, float32" in text
    assert "sft.jsonl abababababab , 352 rows used; dropped: 3 too long" in text


def test_training_curves_are_drawn_for_what_was_logged(page: Path) -> None:
    labels = [
        attributes["aria-label"]
        for tag, attributes in Page(page.read_text()).tags
        if tag == "svg" and "aria-label" in attributes
    ]
    assert labels == [
        "histogram of tokens: SFT, aligned",
        "loss over step: training",
        "loss over step: training",
        "loss over step: training",
        "implicit rewards over step: chosen, rejected",
        "reward margin over step: margin",
        "share of pairs ordered rightly over step: accuracy",
        "log-probability, nats over step: chosen, rejected",
    ]


def test_no_text_of_a_model_becomes_markup(full: Path) -> None:
    parsed = Page(full.read_text())
    assert {tag for tag, _ in parsed.tags} & {"img", "iframe", "object", "form", "base"} == set()
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all((attributes["href"] or "").startswith("#") for tag, attributes in parsed.tags if tag == "a")
    for text in HOSTILE:
        assert " ".join(text.replace("\u202e", "RLO").split()) in parsed.text, "what would turn the text is a mark"
    assert "\u202e" not in full.read_text()


def test_the_only_script_is_the_one_that_ships_and_the_policy_knows_it_by_its_hash(full: Path) -> None:
    html = full.read_text()
    parsed = Page(html)
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [{}]
    assert "</script" not in wording.report_script()
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [
        attributes["content"] for tag, attributes in parsed.tags if tag == "meta" and "http-equiv" in attributes
    ]
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:")


def test_a_hostile_category_or_judge_is_text_too(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["fine"], category=HOSTILE[0])
    report.write_report(run_dir)
    tags = [tag for tag, _ in Page((run_dir / "compare" / "report.html").read_text()).tags]
    assert tags.count("script") == 1


def test_the_page_asks_nobody_for_anything(full: Path) -> None:
    html = full.read_text()
    assert not re.search(r"https?://|//cdn|@import|url\(", html)


def test_a_run_that_is_only_half_there_still_has_a_page(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["An answer."])
    for folder in ("reward", "labels"):
        shutil.rmtree(run_dir / folder)
    for folder in ("sft", "align"):
        (run_dir / folder / "metrics.jsonl").unlink()
    bare = {**FAKE_REPORT, "sources": {}, "judges": {"rubric": FAKE_REPORT["judges"]["rubric"]}}
    (run_dir / "compare" / "report.json").write_text(json.dumps(bare))
    report.write_report(run_dir)
    text = Page((run_dir / "compare" / "report.html").read_text()).text
    assert "it has no label report" in text
    for absent in (
        "better than simple rules",
        "All policies",
        "Did anything break",
        "Reward against KL",
        "against itself",
    ):
        assert absent not in text


# ---- What a full comparison adds --------------------------------------------------------------------------------


def test_the_verdict_names_its_numbers_and_every_price(full: Path) -> None:
    text = Page(full.read_text()).text
    verdict = text[: text.index("Who labelled")]
    for said in (
        "Improved, at a price",
        f"{MESSAGE} At this price {' '.join(PRICES)}",
        "Win rate 68.0 % [62.3, 73.5] by rubric: 31 won, 4 tied, 13 lost",
        "At equal length 66.0 %",
        "SFT against itself 49.3 % [44.0, 54.6] the noise floor: other seeds, holds 50 %, as it should",
        "Could detect 8.1",
    ):
        assert said in verdict


def test_a_noise_floor_that_misses_one_half_is_called_out() -> None:
    assert "does NOT hold 50 %" in report_views.holds_half(Estimate(value=0.6, ci_low=0.55, ci_high=0.65, n=24))


@pytest.mark.parametrize("outcome", ["improved", "no_detectable_change", "worse", "no_verdict"])
def test_every_outcome_has_its_words(tmp_path: Path, outcome: str) -> None:
    run_dir = fake_run(tmp_path, ["An answer."])
    made = full_report()
    made["verdict"] |= {"outcome": outcome, "prices": []}
    (run_dir / "compare" / "report.json").write_text(json.dumps(made))
    report.write_report(run_dir)
    text = Page((run_dir / "compare" / "report.html").read_text()).text
    assert wording.OUTCOMES[outcome][0] in text[: text.index("Who labelled")]
    assert "At this price" not in text


def test_the_figures_of_the_verdict_are_those_of_the_judge_who_decided() -> None:
    made = full_report()
    made["verdict"]["judge"] = "reward_model"
    report = CompareReport.model_validate(made)
    (what, figures, note), *_ = report_views.verdict_view(report).shares
    assert (what, figures) == ("Win rate", report.judges["reward_model"].win_rate)
    assert note.startswith("by reward model")


def test_the_report_card_says_how_far_the_model_is_ahead_of_the_best_rule() -> None:
    share = {**FIGURES, "prompts": 24}
    best = {"name": "longer", "difference": {"value": -0.011, "ci_low": -0.109, "ci_high": 0.092, "n": 90}}
    card = RewardCard.model_validate(card_of(accuracy=share, baselines={"longer": share}, best_baseline=best))
    assert report_views.accuracies(card)[0].note == (
        "ahead of the best rule in training, longer, by \u22121.1 [\u221210.9, 9.2] points"
    )


def test_a_judge_is_shown_with_what_it_could_not_judge(full: Path) -> None:
    text = Page(full.read_text()).text
    assert "Another verdict in the other order 12 Prefers the first place 61.0 % [55.0, 67.0] Refused 2" in text
    assert "Malformed verdicts 5 Without a reply timeout 3" in text
    assert "likeliest answers 74.0 %" in text


def test_categories_that_a_judge_did_not_see_have_no_figures(full: Path) -> None:
    text = Page(full.read_text()).text
    assert "advice 24 68.0 % [62.3, 73.5] 68.0 % [62.3, 73.5]" in text
    assert "question answering 24 50.0 % [30.0, 70.0] –" in text


def test_every_pair_of_policies_is_there_from_both_sides(full: Path) -> None:
    text = Page(full.read_text()).text
    # b wins 60 % over a: SFT over base, and so base over SFT 40 %.
    assert "Base – 40.0 % [29.0, 48.0]" in text
    assert "SFT 60.0 % [52.0, 71.0] – 40.0 % [29.0, 48.0]" in text
    assert "one of 3 SFT answers that the reward model scores highest" in text
    strengths = text[text.index("Strength, by rubric") : text.index("Bradley-Terry")]
    assert strengths.index("Best of n") < strengths.index("Aligned") < strengths.index("SFT") < strengths.index("Base")


def test_a_pair_seen_from_the_other_side_is_its_complement() -> None:
    rate = Rate(value=0.7, ci_low=0.6, ci_high=0.9, n=4, wins=3, ties=0, losses=1, prompts=4)
    opposite = report_views.opposite(rate)
    assert (opposite.value, opposite.ci_low, opposite.ci_high) == pytest.approx((0.3, 0.1, 0.4))
    assert report_views.opposite(opposite).plain() == pytest.approx(rate.plain())
    assert report_views.opposite(rate.model_copy(update={"ci_low": None, "ci_high": None})).ci_high is None


def test_regression_checks_have_both_sides_and_their_test(full: Path) -> None:
    text = Page(full.read_text()).text
    assert "31.0 % [25.0, 38.0] 22.0 % [25.0, 38.0] 11 2 0.021" in text
    assert "3 left out, since a stage trained on them" in text
    assert "not supported by the verifier: language:response_language 4; leaves 96; verified by lm-eval 0.4" in text


def test_the_way_of_the_alignment_is_drawn_and_the_budgets_choice_is_named(full: Path) -> None:
    parsed = Page(full.read_text())
    assert "A budget of 2.0 nats would choose step 30" in parsed.text
    labels = [attributes.get("aria-label") for tag, attributes in parsed.tags if tag == "svg"]
    assert "mean score by rubric over KL to the SFT policy, nats per answer: 0, 15, 30, 60" in labels
    assert "mean score by reward model over KL to the SFT policy, nats per answer: 0, 15, 30, 60" in labels


def test_kl_stands_there_per_answer_and_per_token(full: Path) -> None:
    text = Page(full.read_text()).text
    assert "2.03 [1.60, 2.50]" in text
    assert "nats per token 0 0.074 [0.060, 0.090]" in text


def test_each_policy_is_measured_beside_the_two(full: Path) -> None:
    text = Page(full.read_text()).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Measure SFT Aligned Base Best of n" in text
    for row in (
        "with the end-of-turn token 31.8 27.2 40.4 30.0",
        "what SFT taught, before and after 2.879 2.913 3.310 not measured",
        "budget 2.0 0 2.03 [1.60, 2.50] 9.20 ≤ 0.43",
    ):
        assert row in text


def test_the_noise_floor_is_that_of_the_first_judge_that_has_one(tmp_path: Path) -> None:
    made = full_report()
    judges = {name: made["judges"][name] for name in ("endpoint", "rubric")}
    report = CompareReport.model_validate({**made, "judges": judges, "verdict": verdict_of(judge="endpoint")})
    decided = report_views.verdict_view(report).shares
    assert ("SFT against itself", report.noise_floor["rubric"]) in [(what, figures) for what, figures, _ in decided]
    assert any("by rubric" in note for _, _, note in decided)


def test_first_answers_show_what_differs_and_all_policies_are_there(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["It is cold since the sun has set.", "It is cold because the sun has set <b>.</b>"])
    report.write_report(run_dir)
    html = (run_dir / "compare" / "report.html").read_text()
    assert "It is cold <del>since</del> the sun has <del>set.</del>" in html
    assert "It is cold <ins>because</ins> the sun has <ins>set &lt;b&gt;.&lt;/b&gt;</ins>" in html
    assert html.count('<p class="who">Best of n</p>') == 24


def test_many_prompts_make_a_page_that_a_browser_can_take(tmp_path: Path) -> None:
    words = ["word" + str(i) for i in range(40)]
    run_dir = fake_run(tmp_path, [" ".join(random.Random(i).choices(words, k=60)) for i in range(20)], prompts=600)
    report.write_report(run_dir)
    page = run_dir / "compare" / "report.html"
    assert "600 prompts" in page.read_text() and "This page has the first 500" in page.read_text()
    said = (run_dir / "compare" / "samples.jsonl").stat().st_size
    assert page.stat().st_size < 1.5 * said + 200_000


def test_the_stage_at_work_is_shown_with_what_it_has_found_so_far(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["An answer."])
    (run_dir / "compare" / "manifest.json").unlink()
    config = CompareConfig(run_dir=run_dir, model=ModelConfig(), split=SplitConfig(), judges=["rubric"])
    parents = [runs.open_stage(run_dir, stage) for stage in config.parents()]
    stage = runs.StageRun(config, run_dir / "compare", False, parents)
    stage.find("warn", "longer", "answers are 1.7 times as long")
    stage.facts.update(device="cpu", dtype="float32")
    report.write_report(run_dir, stage)
    text = Page((run_dir / "compare" / "report.html").read_text()).text
    assert "answers are 1.7 times as long" in text
    assert "written after this page" in text


# ---- Examples ---------------------------------------------------------------------------------------------------


def rows_with(shares: list[float]) -> list[PromptComparison]:
    rows = fake_rows(["an answer"], len(shares), "advice", random.Random(0))
    read = [PromptComparison.model_validate(row) for row in rows]
    return [row.model_copy(update={"win_share": {"rubric": share}}) for row, share in zip(read, shares, strict=True)]


def test_examples_are_four_of_each_kind_and_drawn_by_the_seed() -> None:
    rows = rows_with([1.0] * 20 + [0.0] * 20 + [0.5] * 20)
    picked = report.pick_examples(rows, "rubric", 3)
    assert [len(chosen) for _, chosen in picked] == [4, 4, 4]
    assert [{row.win_share["rubric"] for row in chosen} for _, chosen in picked] == [{1.0}, {0.0}, {0.5}]
    assert picked == report.pick_examples(rows, "rubric", 3)
    assert picked != report.pick_examples(rows, "rubric", 4)


def test_where_there_are_few_ties_others_fill_up_and_nothing_is_shown_twice() -> None:
    picked = report.pick_examples(rows_with([1.0] * 9 + [0.25] * 3 + [0.5]), "rubric", 0)
    assert [len(chosen) for _, chosen in picked] == [4, 3, 1, 3]
    shown = [row.prompt_id for _, chosen in picked for row in chosen]
    assert len(shown) == len(set(shown))


def test_kinds_that_do_not_occur_have_no_heading() -> None:
    assert [kind for kind, _ in report.pick_examples(rows_with([0.5] * 3), "rubric", 0)] == ["Neither wins more"]


# ---- In a browser -----------------------------------------------------------------------------------------------


browser = pytest.fixture(launched, scope="module")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1400])
def test_it_opens_at_any_width_without_a_request_an_error_or_a_sideways_scroll(
    full: Path, browser: Any, width: int, scheme: str
) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(full.as_uri())
    opened.locator("summary").first.click()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.title() == "fake: SFT and aligned policy compared"
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(full: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe is a script, which the page forbids
    opened = context.new_page()
    opened.goto(full.as_uri())
    for summary in opened.locator("summary").all()[:2]:
        summary.click()
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture
def listed(full: Path, browser: Any) -> Any:
    """The full page, open; 24 prompts: rubric shares 1, .75, .5, .25 in turn, each third prompt asks for advice."""
    opened = browser.new_page()
    opened.goto(full.as_uri())
    return opened


def shown(opened: Any) -> list[int]:
    """Numbers of the prompts that are seen, in their order on the page."""
    asked = opened.locator("ol.prompts > li:not([hidden]) .asked").all_text_contents()
    return [int(re.match(r"Question (\d+)", text)[1]) for text in asked]  # type: ignore[index]


@pytest.mark.browser
def test_prompts_are_filtered_by_category_by_preference_and_by_words(listed: Any) -> None:
    status = listed.get_by_role("status")
    assert (status.inner_text(), shown(listed)) == ("All 24 prompts", list(range(24)))
    listed.get_by_label("Category", exact=True).select_option(label="advice")
    assert shown(listed) == list(range(0, 24, 3))
    listed.get_by_label("Preferred answers").select_option("aligned")
    assert shown(listed) == [i for i in range(0, 24, 3) if i % 4 in (0, 1)]
    assert status.inner_text() == "4 of 24 prompts"
    listed.get_by_label("Preferred answers").select_option("reference")
    assert shown(listed) == [3, 15]
    listed.get_by_role("button", name="Show all again").click()
    assert shown(listed) == list(range(24))
    listed.get_by_label("Text in prompt").fill("  question 1")
    assert shown(listed) == [1, *range(10, 20)]
    listed.get_by_label("Text in prompt").fill("JAVASCRIPT:document")
    assert shown(listed) and "javascript:document" in listed.locator("ol.prompts > li:not([hidden])").first.inner_html()
    listed.get_by_label("Text in prompt").fill("no such words")
    assert (status.inner_text(), shown(listed)) == ("0 of 24 prompts", [])


@pytest.mark.browser
def test_who_wins_is_asked_of_the_chosen_judge_and_what_it_did_not_judge_is_nobodys(listed: Any) -> None:
    listed.get_by_label("By which judge").select_option("reward_model")
    listed.get_by_label("Preferred answers").select_option("neither")
    assert shown(listed) == [i for i in range(24) if i != 5]
    assert "not judged" in listed.locator("ol.prompts > li").nth(5).inner_text()


@pytest.mark.browser
def test_prompts_are_sorted_by_win_share_and_back(listed: Any) -> None:
    order = listed.get_by_label("Order", exact=True)
    order.select_option("reference")
    assert [i % 4 for i in shown(listed)] == [3] * 6 + [2] * 6 + [1] * 6 + [0] * 6
    order.select_option("disagree")
    # The reward model says one half of all but prompt 5, which it did not judge.
    assert [i % 4 for i in shown(listed)[:6]] == [0] * 6 and shown(listed)[-1] == 22
    order.select_option("sampled")
    assert shown(listed) == list(range(24))


@pytest.mark.browser
def test_the_list_is_worked_with_the_keyboard_alone(listed: Any) -> None:
    listed.get_by_label("Text in prompt").focus()
    listed.keyboard.type("Question 7")
    assert shown(listed) == [7]
    for _ in range(6):  # four lists and a button, then the last one
        listed.keyboard.press("Tab")
    assert listed.evaluate("document.activeElement.dataset.field") == "clear"
    listed.keyboard.press("Tab")
    listed.keyboard.press("Enter")
    listed.get_by_role("button", name="Close all shown").wait_for()
    assert listed.locator("ol.prompts details[open]").count() == 1


@pytest.mark.browser
def test_without_script_every_prompt_is_there_and_no_control_that_does_nothing(full: Path, browser: Any) -> None:
    opened = browser.new_context(java_script_enabled=False).new_page()
    opened.goto(full.as_uri())
    assert shown(opened) == list(range(24))
    assert not opened.get_by_label("Category", exact=True).is_visible()
    opened.locator("ol.prompts summary").first.click()
    assert opened.locator("ol.prompts .side").first.is_visible()
