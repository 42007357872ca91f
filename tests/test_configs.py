"""Every campaign that ships is whole: it loads, its files are there, and its own header runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueup.campaign import STAGES, load_campaign

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml") if "accelerate" not in p.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_campaign_that_ships_loads_and_says_how_to_run_it(path: Path) -> None:
    campaign = load_campaign(path)
    assert set(campaign.stages) == set(STAGES)
    assert f"trueup run {path.relative_to(REPOSITORY)}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_files_that_a_campaign_reads_are_there(path: Path) -> None:
    wanted = [file for stage in load_campaign(path).stages.values() for file in stage.input_paths()]
    assert wanted
    assert [file for file in wanted if not file.exists()] == []


def test_the_names_of_campaigns_differ_so_that_none_runs_in_the_folder_of_another() -> None:
    names = [load_campaign(path).run_dir for path in CONFIGS]
    assert len(set(names)) == len(names)
