"""The probe: it finds a preference that hidden states hold, and finds nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reward.hidden import POOLINGS, Place, depths, read_features
from reward.probe import MOST_PROMPTS, fit_directions, fit_probe, learning_curve, pairs_to_read, prompt_weights
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.loading import Loaded
from trueup.training.pairs import EncodedPair


@pytest.fixture
def model(bases: Callable[[str], Path]) -> Loaded:
    return loading.new_reward_model(bases("plain"), ModelConfig(device="cpu"))


def texts(count: int, seed: int = 0) -> list[EncodedPair]:
    """Pairs of random answers of 1 to 12 tokens; two pairs to each prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count // 2):
        prompt = rng.integers(5, 250, size=rng.integers(2, 9)).tolist()
        rows += [
            EncodedPair(prompt, *(rng.integers(5, 250, size=rng.integers(1, 12)).tolist() for _ in range(2)))
            for _ in range(2)
        ]
    return rows


def prompts_of(rows: list[EncodedPair]) -> list[str]:
    return [str(row.prompt_ids) for row in rows]


def planted(pairs: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The pairs in the order in which a direction prefers their answers."""
    swapped = pairs[:, 0] @ direction < pairs[:, 1] @ direction
    return np.where(swapped[:, None, None], pairs[:, ::-1], pairs)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_preference_planted_in_one_layer_is_found_there_and_holds_for_unseen_prompts(
    model: Loaded, pooling: Any
) -> None:
    rows = texts(400)
    features = read_features(model, rows, [1, 2])
    place = Place(1, pooling)
    direction = np.random.default_rng(1).normal(size=32) / features[place].std(axis=(0, 1))
    swap = (features[place][:, 0] - features[place][:, 1]) @ direction < 0
    features = {at: np.where(swap[:, None, None], pairs[:, ::-1], pairs) for at, pairs in features.items()}
    train, heldout = ({at: pairs[part] for at, pairs in features.items()} for part in (slice(300), slice(300, None)))
    probe = fit_probe(train, prompts_of(rows)[:300], seed=0)
    assert probe.place == place
    scores = probe.scores(heldout)
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    assert probe.scores(train).mean() == pytest.approx(0, abs=1e-6), "as a head without an intercept needs"
    assert probe.reason.startswith(f"layer 1 of 2, {pooling}, ridge")


def test_labels_by_chance_are_found_to_be_chance(model: Loaded) -> None:
    rows = texts(400)
    features = read_features(model, rows, [1, 2])
    probe = fit_probe(features, prompts_of(rows), seed=0)
    scores = probe.scores(read_features(model, texts(400, seed=1), [1, 2]))
    assert 0.4 < (scores[:, 0] > scores[:, 1]).mean() < 0.6
    assert 0.45 < float(probe.reason.partition("accuracy ")[2].partition("%")[0]) / 100 < 0.62


def test_swapping_the_answers_of_every_pair_negates_every_margin_exactly(model: Loaded) -> None:
    rows = texts(60)
    features = read_features(model, rows, [1, 2])
    swapped = {place: pairs[:, ::-1] for place, pairs in features.items()}
    for pairs, other in zip(features.values(), swapped.values(), strict=True):
        weights = prompt_weights(prompts_of(rows))
        assert (fit_directions(other, weights, [1.0]) == -fit_directions(pairs, weights, [1.0])).all()
    probe = fit_probe(features, prompts_of(rows), seed=0)
    there, back = probe.scores(features), probe.scores(swapped)
    assert (there[:, 0] - there[:, 1] == -(back[:, 0] - back[:, 1])).all()


def test_a_prompt_weighs_the_same_however_many_pairs_it_has(model: Loaded) -> None:
    rows = texts(40)
    features = next(iter(read_features(model, rows, [1, 2]).values()))
    names = prompts_of(rows)
    often = [0, 0, 0, 1, 1, 1, *range(2, 40)]
    once = fit_directions(features, prompt_weights(names), [1.0])
    again = fit_directions(features[often], prompt_weights([names[i] for i in often]), [1.0])
    # The units of the features are those of the answers that are there, so directions agree in what they say.
    differences = features[:, 0] - features[:, 1]
    assert np.corrcoef(differences @ once[0], differences @ again[0])[0, 1] > 0.99


def test_neither_padding_nor_the_order_of_rows_changes_a_feature(model: Loaded) -> None:
    rows = texts(40)
    features = read_features(model, rows, [1, 2])
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = read_features(model, [rows[i] for i in order], [1, 2], batch_size=3)
    for place, pairs in features.items():
        np.testing.assert_allclose(shuffled[place], pairs[order], atol=1e-5)
    alone = read_features(model, rows[:1], [1, 2])
    for place, pairs in alone.items():
        np.testing.assert_allclose(pairs[0], features[place][0], atol=1e-5)


def test_features_are_what_a_model_of_so_many_layers_gives_its_head(model: Loaded) -> None:
    rows = texts(8)
    features = read_features(model, rows, [1, 2])
    assert depths(model.model) == [1, 2] and len(features) == 4
    row = rows[0]
    with torch.inference_mode():
        hidden = {2: model.model.base_model(torch.tensor([row.prompt_ids + row.chosen_ids])).last_hidden_state[0]}
        model.model.config.num_hidden_layers = 1
        hidden[1] = model.model.base_model(torch.tensor([row.prompt_ids + row.chosen_ids])).last_hidden_state[0]
    for layers, states in hidden.items():
        answer = states[len(row.prompt_ids) :]
        np.testing.assert_allclose(features[Place(layers, "last token")][0, 0], answer[-1], atol=1e-5)
        np.testing.assert_allclose(features[Place(layers, "mean over the answer")][0, 0], answer.mean(0), atol=1e-5)


def test_one_prompt_and_equal_answers_give_a_probe_that_prefers_nothing(model: Loaded) -> None:
    row = EncodedPair([5, 6], [7, 8], [7, 8])
    features = read_features(model, [row], [1, 2])
    probe = fit_probe(features, ["only"], seed=0)
    assert "nothing to choose by" in probe.reason
    assert (probe.scores(features) == 0).all()


def test_a_learning_curve_is_of_probes_that_learn_from_every_part_of_the_prompts_and_rises_with_them(
    model: Loaded,
) -> None:
    rows = texts(400)
    names = prompts_of(rows)
    place = Place(1, "last token")
    features = {place: read_features(model, rows, [1, 2])[place]}
    direction = np.random.default_rng(1).normal(size=32) / features[place].std(axis=(0, 1))
    features = {place: planted(features[place], direction)}
    train, examined = {place: features[place][:300]}, {place: features[place][300:]}
    curve = learning_curve(train, names[:300], examined, place, seed=0)
    assert {share: (point.prompts, np.shape(point.margins)) for share, point in curve.items()} == {
        0.25: (37, (4, 100)),
        0.5: (75, (2, 100)),
        1.0: (150, (1, 100)),
    }
    accuracies = [(np.array(point.margins) > 0).mean() for point in curve.values()]
    assert accuracies[0] < accuracies[1] < accuracies[2] > 0.9
    whole = fit_probe(train, names[:300], seed=0).scores(examined)
    assert curve[1.0].margins[0] == (whole[:, 0] - whole[:, 1]).tolist(), "the last is the probe itself"
    assert list(learning_curve({place: features[place][:8]}, names[:8], examined, place, seed=0)) == [0.5, 1.0]
    assert learning_curve({place: features[place][:2]}, names[:2], examined, place, seed=0) == {}, "one prompt"


def test_reading_leaves_a_layer_whose_forward_somebody_has_replaced_as_it_was(model: Loaded) -> None:
    layer = model.model.base_model.layers[0]
    original, calls = layer.forward, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = watched
    read_features(model, texts(4), depths(model.model))
    assert calls and layer.forward is watched and "forward" not in vars(model.model.base_model.layers[1])


def test_of_many_prompts_it_reads_some_with_all_of_their_pairs() -> None:
    prompts = [str(n // 2) for n in range(2 * 2_500)]
    read = pairs_to_read(prompts, seed=0)
    assert len(read) == 2 * MOST_PROMPTS and read == sorted(read)
    assert len({prompts[i] for i in read}) == MOST_PROMPTS and read == pairs_to_read(prompts, seed=0)
    assert pairs_to_read(prompts[:10], seed=0) == list(range(10))
