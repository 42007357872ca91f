"""Configuration of alignment: what every algorithm shares (shared), the algorithms on labelled answers (labelled),
best of n and what it shares with all that are paid for sampled answers (paid), and PPO, GRPO and RLOO (online)."""

from rlhf.align.config.labelled import DPOConfig, KTOConfig, SimPOConfig
from rlhf.align.config.online import GRPOConfig, PPOConfig, RLOOConfig
from rlhf.align.config.paid import BestOfNConfig

ALGORITHMS = {
    "dpo": DPOConfig,
    "simpo": SimPOConfig,
    "kto": KTOConfig,
    "best_of_n": BestOfNConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
}
"""`align.algorithm`; the first is the default."""
