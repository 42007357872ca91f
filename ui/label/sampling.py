"""Sampling beside the labelling page: `trueup label` on a campaign whose prompts are not answered yet.

The stages up to `sample` run in the background, as `trueup run --until sample` would run them, and each prompt's pairs
join the queue when it is answered. The queue does not depend on how quick the sampler is: the seed and the
prompt alone choose a prompt's pairs, the prompts are answered in a random order, and when all are answered the queue is
made over all of them (`ui.label.run.prepare`), in which every label stays. A draw over all pairs
(`selection: uncertainty`) waits for the last answer. In a further round the page itself does.
"""

from __future__ import annotations

import threading
import traceback
from types import TracebackType

from trueup import runs
from trueup.campaign import Campaign
from trueup.commandline.running import run_to
from trueup.console import Event, say
from trueup.data.containers.appended import Growing
from trueup.data.records import CandidateSet
from trueup.errors import StageCrashed, TrueupError, of_the_machine
from trueup.runner import Follower
from trueup.stages import address, command
from ui.label.run import ask_known, prepare
from ui.labels.config import LabelConfig
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.sources import material


def needs_sampling(config: LabelConfig) -> bool:
    """Whether people are to label answers that are not sampled yet, or not to the end."""
    asks_people = "human" in config.sources and "sample" in config.parents()
    return asks_people and runs.find_stage(config.run_dir, "sample") is None


def sampling_for(campaign: Campaign, config: LabelConfig) -> Sampling | None:
    """The sampling of the answers that people are to label; None where all are there. Those of a further round are
    sampled here and now: the stage writes them when the last reward model has scored them all, and not before."""
    if not needs_sampling(config):
        return None
    if config.round == 1:
        return Sampling(campaign, config)
    say(f"{'answers':<12} of round {config.round}: the page opens when all are sampled and scored")
    run_to(campaign, address(config.round, "sample"))
    return None


class Sampling:
    """The stages up to `sample` at work, from `with` until they are done or the block ends."""

    def __init__(self, campaign: Campaign, config: LabelConfig):
        self.campaign, self.config = campaign, config
        self.store = Store(config.store_url)
        self.answered = self.prompts = 0
        self._rows = Growing(runs.stage_dir(config.run_dir, "sample") / runs.ANSWERED, CandidateSet)
        self._begun = False
        self._first = threading.Event()
        self._done = False
        self._failure: Exception | None = None
        self._service: LabelService | None = None
        self._follower = Follower(self._on_event)
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def __enter__(self) -> Sampling:
        ask_known(self.config, self.store)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._follower.stop()
        self._thread.join()
        self._rows.close()
        self.store.close()
        if kind is None and not self._done:
            say(f"{self._progress()}; the same command continues")

    def serve(self, service: LabelService) -> None:
        """Tell the page's service when the queue is whole."""
        self._service = service
        service.grows = True
        if self._done:
            service.complete()

    def wait_for_first(self) -> None:
        """Wait until there is something to label; raises the error that kept the sampler from it."""
        self._first.wait()
        if self._failure is not None and not self._begun:
            raise self._failure

    def news(self) -> str | None:
        """A message for admins; None: all prompts are answered."""
        if self._done:
            return None
        if self._failure is not None:
            again = command(self.config.run_dir, "label")
            return f"{self._progress()}. {_sentence(self._failure)} Labels are kept; start `{again}` again."
        if self.config.selection == "random":
            return f"{self._progress()}; further pairs come as further prompts are answered."
        why = "The pairs are drawn over all prompts (label.selection: uncertainty), so labelling begins"
        return f"{self._progress()}. {why} when all are answered."

    def _progress(self) -> str:
        return f"{self.answered} of {self.prompts} prompts are answered so far"

    # ---- In the thread

    def _run(self) -> None:
        try:
            run_to(self.campaign, address(self.config.round, "sample"), follower=self._follower)
            prepare(self.config, self.store)
            self._done = True
            if self._service is not None:
                self._service.complete()
        except KeyboardInterrupt:
            pass
        except Exception as error:
            self._failure = error
            if self._begun:  # else `wait_for_first` raises it
                say(f"{self.news()}")
        finally:
            self._first.set()

    def _on_event(self, stage: str, event: Event) -> None:
        if stage != address(self.config.round, "sample") or "progress" not in event:
            return
        self.answered, self.prompts = event["progress"]
        if not (rows := self._rows.more()):
            return
        pairs = material.ask_meanwhile(self.config, self.store, rows, self.prompts, begins=not self._begun)
        self._begun = True
        if pairs or self.config.selection != "random":
            self._first.set()


def _sentence(error: Exception) -> str:
    """A failure in a sentence. If it is a bug of this process, its traceback is printed."""
    if isinstance(error, StageCrashed):
        return error.sentence
    if isinstance(error, TrueupError):
        return f"{str(error).rstrip('.')}."
    if (sentence := of_the_machine(error)) is None:
        traceback.print_exception(error)
    return f"{sentence or repr(error)}."
