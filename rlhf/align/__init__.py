"""The align stage: DPO, SimPO and KTO on labels, or PPO, GRPO, RLOO and best of n on sampled answers that are paid
(rewards). Its result is a policy, and where answers are paid the best of the steps that were kept.
"""
