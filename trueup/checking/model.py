"""The base model before anything is loaded: the commit that a hub id stands for, and its files."""

from __future__ import annotations

from collections.abc import Iterable

from trueup.campaign import Campaign
from trueup.provenance import commits


def settle_base(campaign: Campaign, keep: bool) -> tuple[Campaign, str]:
    """The campaign with its hub id at one commit, and a sentence on that commit, if there is something to say.

    keep  the run stays at this commit from now on, so that no two of its stages read two states of a branch
    """
    model = campaign.config.model
    if not model.is_on_hub:
        return campaign, ""
    from trueup.models.sources import hub
    from trueup.models.sources.refusals import HubId

    asked = campaign.values["model"].get("revision")
    settled = hub.settle(HubId(model.name, asked, beside=campaign.source.parent), campaign.run_dir)
    if keep:
        commits.keep(campaign.run_dir, model.name, asked, settled.commit)
    return campaign.at(settled.commit), settled.note


def reads_base(campaign: Campaign, stages: Iterable[str]) -> bool:
    """Whether one of the stages reads the base model, and that is a hub id."""
    return campaign.config.model.is_on_hub and any("model.name" in campaign.stages[name].contents() for name in stages)


def fetch_base(campaign: Campaign, stages: Iterable[str]) -> None:
    """Fetch the base model whole before the first of the stages begins, if one of them reads it."""
    if reads_base(campaign, stages):
        from trueup.models.sources import hub

        hub.fetch(hub.of_base(campaign.config.model, campaign.source.parent))
