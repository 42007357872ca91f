"""Configuration of alignment: what every algorithm shares (shared), the algorithms on labelled answers (labelled) and
those that are paid for the answers that they sample (online)."""

from rlhf.align.config.labelled import DPOConfig, KTOConfig
from rlhf.align.config.online import GRPOConfig, PPOConfig, RLOOConfig

ALGORITHMS = {"dpo": DPOConfig, "kto": KTOConfig, "ppo": PPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}
"""`align.algorithm`; the first is the default."""
