"""Hub ids before anything is loaded: the commit that each stands for, and its files."""

from __future__ import annotations

from collections.abc import Iterable

from trueup.campaign import Campaign
from trueup.provenance import commits
from trueup.provenance.commits import HubId


def settle(campaign: Campaign, hub_id: HubId, keep: bool) -> tuple[Campaign, str]:
    """The campaign with a hub id at one commit, and a sentence on that commit, if there is something to say.

    keep  the run stays at this commit from now on, so that no two of its stages read two states of a branch
    """
    from trueup.models.sources import hub

    settled = hub.settle(hub_id, campaign.run_dir)
    if keep:
        commits.keep(campaign.run_dir, hub_id, settled.commit)
    return campaign.at(hub_id, settled.commit), f"{hub_id.key}: {settled.note}" if settled.note else ""


def fetch(campaign: Campaign, stages: Iterable[str]) -> None:
    """Fetch what these stages read of a hub, whole, before the first of them begins."""
    for hub_id in campaign.hub_ids(stages):
        from trueup.models.sources import hub

        hub.fetch(hub_id)
