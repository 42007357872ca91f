"""Four roles on one base: each answers for itself, and gradients reach all of policy and critic and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model

from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo.roles import Roles, SeparateModels, SharedBase
from trueup.config import SplitConfig
from trueup.data.records import Message
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.scoring import score
from trueup.runs import StageRun


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> PPOConfig:
    model = ModelConfig(name=str(bases("plain")), chat_template="plain", device="cpu")
    return PPOConfig(run_dir=tmp_path_factory.mktemp("run"), model=model, split=SplitConfig(), lora={"r": 4})


@pytest.fixture(scope="module")
def made(config: PPOConfig) -> Path:
    """A folder with sft/ and a reward model, whole in reward/ and as an adapter in adapter/."""
    folder = config.run_dir
    loading.save(loading.load_base(config.model), folder / "sft")
    torch.manual_seed(1)
    reward = loading.load_reward_model(folder / "sft", config.model, fresh_head=True)
    lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    adapted = get_peft_model(reward.model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    reward.model = adapted.merge_and_unload()
    loading.save(reward, folder / "reward")
    return folder


@pytest.fixture(params=["one base", "a model each"])
def roles(request: pytest.FixtureRequest, config: PPOConfig, made: Path) -> Roles:
    policy = loading.load_policy(made / "sft", config.model)
    if request.param == "one base":
        return SharedBase(config, policy, made / "adapter")
    return SeparateModels(config, policy, made / "sft", made / "reward")


@pytest.fixture
def shared(config: PPOConfig, made: Path) -> SharedBase:
    return SharedBase(config, loading.load_policy(made / "sft", config.model), made / "adapter")


TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def move(roles: Roles) -> None:
    """Change everything that is trained, as training would."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in roles.trained_weights.values():
            weight.add_(0.05 * torch.randn_like(weight))


def scores(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS, scores=True)


# ---- Who says what ----------------------------------------------------------------------------------------------


def test_at_first_the_policy_is_the_reference_and_the_critic_the_reward_model(roles: Roles) -> None:
    with roles.playing("reference") as reference:
        assert torch.equal(reference(input_ids=TOKENS).logits, roles.model(input_ids=TOKENS).logits)
    with roles.playing("critic") as critic:
        values = scores(critic)
    with roles.playing("reward") as reward:
        torch.testing.assert_close(scores(reward), values, atol=1e-5, rtol=0)


def test_the_reward_model_scores_as_the_one_that_was_saved(roles: Roles, config: PPOConfig, made: Path) -> None:
    whole = loading.load_reward_model(made / "reward", config.model)
    prompts, answers = [[Message(role="user", content="Say red.")]] * 2, [[9, 10, 11], [12, 13]]
    with roles.playing("reward") as model:
        model = model.get_base_model() if isinstance(roles, SharedBase) else model
        found = score(loading.Loaded(model, whole.tokenizer, whole.placement), prompts, answers)
    assert found == pytest.approx(score(whole, prompts, answers), abs=1e-5)


def test_training_moves_policy_and_critic_and_neither_reference_nor_reward_model(roles: Roles) -> None:
    def said() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            found = {"policy": roles.model(input_ids=TOKENS).logits}
            for role in ("reference", "critic", "reward"):
                with roles.playing(role) as model:
                    found[role] = model(input_ids=TOKENS).logits if role == "reference" else scores(model)
        return found

    before, frozen = said(), roles.fingerprint()
    move(roles)
    after = said()
    same = {role: torch.equal(before[role], after[role]) for role in before}
    assert same == {"policy": False, "reference": True, "critic": False, "reward": True}
    assert roles.fingerprint() == frozen


def test_one_changed_bit_of_what_is_frozen_is_seen(roles: Roles) -> None:
    before = roles.fingerprint()
    with torch.no_grad():
        next(iter(roles.frozen_weights())).view(-1)[3] += 1e-6
    assert roles.fingerprint() != before


def test_the_merged_policy_says_what_the_policy_said_and_is_a_plain_model(
    roles: Roles, config: PPOConfig, tmp_path: Path
) -> None:
    move(roles)
    with torch.no_grad():
        before = roles.model(input_ids=TOKENS).logits
    stage = StageRun(config, tmp_path, False, [])
    loading.save(roles.merged(stage, TOKENS.tolist()), tmp_path)
    after = loading.load_policy(tmp_path, config.model).model
    torch.testing.assert_close(after(input_ids=TOKENS).logits, before, atol=1e-4, rtol=1e-4)
    assert not [name for name, _ in after.named_parameters() if "score" in name or "critic" in name]


def test_what_is_trained_comes_back_whole_from_a_file(roles: Roles, tmp_path: Path) -> None:
    move(roles)
    wanted = {name: weight.detach().clone() for name, weight in roles.trained_weights.items()}
    roles.save(tmp_path / "roles.safetensors")
    move(roles)
    roles.load(tmp_path / "roles.safetensors")
    assert all(torch.equal(weight, wanted[name]) for name, weight in roles.trained_weights.items())


# ---- Gradients --------------------------------------------------------------------------------------------------


def gradients(roles: Roles) -> dict[str, torch.Tensor | None]:
    """The gradients of a loss of both, with every role played in between, as an update does."""
    roles.model.train()
    roles.model.zero_grad()
    policy = roles.model(input_ids=TOKENS).logits.square().mean()
    with roles.playing("critic", roles.model) as critic:
        values = scores(critic)
    with torch.no_grad(), roles.playing("reference") as reference:
        reference(input_ids=TOKENS)
    with torch.no_grad(), roles.playing("reward") as reward:
        scores(reward)
    (policy + values.square().mean()).backward()
    return {name: weight.grad for name, weight in roles.model.named_parameters()}


def test_gradients_reach_all_of_policy_and_critic_and_nothing_else(roles: Roles) -> None:
    move(roles)
    found = gradients(roles)
    assert {name for name, grad in found.items() if grad is not None} == set(roles.trained_weights)
    assert all(found[name].abs().max() > 0 for name in roles.trained_weights)  # type: ignore[union-attr]


def test_switching_roles_takes_the_gradients_of_none(shared: SharedBase) -> None:
    for role in ("critic", "reference", "reward", "policy"):
        with shared.playing(role):
            assert all(weight.requires_grad for weight in shared.trained_weights.values()), role
            assert not any(weight.requires_grad for weight in shared.frozen_weights()), role
        assert all(weight.requires_grad for weight in shared.trained_weights.values()), f"after {role}"


def test_without_the_restored_flags_the_critic_would_learn_nothing(
    shared: SharedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(shared)
    monkeypatch.setattr(shared, "_restore_gradients", lambda: None)
    shared.model.set_adapter("default")
    found = gradients(shared)
    assert any(found[name] is None for name in shared.parameters("critic")), (
        "PEFT has changed: is the fix still needed?"
    )


def checkpointed(model: Any) -> None:
    """As TRL and transformers enable it, one after the other."""
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.gradient_checkpointing_disable()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # since transformers 5.2x


def test_gradients_are_the_same_with_and_without_checkpointing(roles: Roles) -> None:
    move(roles)
    plain = {name: grad.clone() for name, grad in gradients(roles).items() if grad is not None}
    checkpointed(roles.policy.model)
    assert roles.policy.model.is_gradient_checkpointing
    again = gradients(roles)
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, atol=1e-7, rtol=1e-5, msg=name)


def test_without_the_recorded_role_checkpointing_would_get_the_critic_wrong(
    config: PPOConfig, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedBase, "_keep_roles_when_checkpointing", lambda self, base: None)
    roles = SharedBase(config, loading.load_policy(made / "sft", config.model), made / "adapter")
    move(roles)
    plain = {name: grad.clone() for name, grad in gradients(roles).items() if grad is not None}
    checkpointed(roles.policy.model)
    again = gradients(roles)
    read = {name: again[name] for name in roles.parameters("critic")}
    wrong = [name for name, grad in read.items() if grad is None or not grad.allclose(plain[name])]
    assert wrong, "transformers or PEFT has changed: is the fix still needed?"


def test_without_a_reward_model_the_critic_is_fresh_and_says_0_also_where_only_the_last_layers_are_adapted(
    config: PPOConfig, made: Path
) -> None:
    last = config.model_copy(update={"lora": config.lora.model_copy(update={"last_layers": 1})})
    roles = SharedBase(last, loading.load_policy(made / "sft", config.model), None)
    with roles.playing("critic") as critic:
        assert not scores(critic).any()
    for role in ("policy", "critic"):
        names = list(roles.parameters(role))
        assert names and all(".layers.1." in name or "score" in name for name in names), role


# ---- What does not fit ------------------------------------------------------------------------------------------


def test_an_adapter_of_another_model_is_an_error_that_names_what_found_no_place(
    config: PPOConfig, made: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    deeper = LlamaConfig.from_pretrained(bases("plain"), num_hidden_layers=3, num_labels=1)
    lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    get_peft_model(LlamaForSequenceClassification(deeper), lora).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"does not fit the policy: no place for .*layers\.2"):
        SharedBase(config, loading.load_policy(made / "sft", config.model), tmp_path)


def test_a_reward_model_that_was_trained_whole_has_no_adapter_and_says_so(config: PPOConfig, made: Path) -> None:
    with pytest.raises(ModelError, match="was trained whole"):
        SharedBase(config, loading.load_policy(made / "sft", config.model), made / "nowhere")


def test_a_checkpoint_of_another_config_is_refused(shared: SharedBase, config: PPOConfig, made: Path) -> None:
    other = SeparateModels(config, loading.load_policy(made / "sft", config.model), made / "sft", None)
    other.save(made / "other.safetensors")
    with pytest.raises(ModelError, match="holds other weights than this config trains"):
        shared.load(made / "other.safetensors")
