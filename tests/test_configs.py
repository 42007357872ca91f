"""Every campaign that ships is whole: it loads, its files are there or explained, and its header says how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.align.config import ALGORITHMS
from trueup.campaign import load_campaign
from trueup.stages import STAGES

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml") if "accelerate" not in p.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_campaign_that_ships_loads_and_its_header_says_how_to_run_it(path: Path) -> None:
    campaign = load_campaign(path)
    assert set(campaign.stages) == set(STAGES)
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert path.parent.name == "recipes" or f"trueup run {path.relative_to(REPOSITORY)}" in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_files_that_a_campaign_reads_ship_with_it_or_its_header_says_where_they_come_from(path: Path) -> None:
    wanted = [file for stage in load_campaign(path).stages.values() for file in stage.input_paths()]
    assert wanted
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    missing = [file for file in wanted if not file.exists()]
    assert [file for file in missing if path.parent.name != "recipes" or file.parent.name not in header] == []


def test_the_names_of_campaigns_differ_so_that_none_runs_in_the_folder_of_another() -> None:
    names = [load_campaign(path).run_dir for path in CONFIGS]
    assert len(set(names)) == len(names)


def test_the_ppo_campaign_keeps_what_the_demo_made_up_to_its_reward_model() -> None:
    demo, ppo = (load_campaign(REPOSITORY / "configs" / f"{name}.yaml").stages for name in ("demo", "ppo"))
    for stage in ("sft", "sample", "label", "reward"):
        assert ppo[stage].identity() == demo[stage].identity(), stage
        assert ppo[stage].input_paths() == demo[stage].input_paths(), stage
        assert ppo[stage].parents() == demo[stage].parents(), stage
    assert ppo["compare"].identity() == demo["compare"].identity(), "else the two verdicts could not be compared"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_word_aligns_the_demo_by_another_algorithm_and_changes_no_other_stage(algorithm: str) -> None:
    path = REPOSITORY / "configs" / "demo.yaml"
    demo, other = load_campaign(path).stages, load_campaign(path, [f"align.algorithm={algorithm}"]).stages
    assert isinstance(other["align"], ALGORITHMS[algorithm])
    assert [stage for stage in STAGES if other[stage].identity() != demo[stage].identity()] in ([], ["align"])
    assert other["align"].identity()["lora"] == demo["sft"].identity()["lora"]
