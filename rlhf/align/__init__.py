"""The align stage: DPO and KTO on labels, or PPO, GRPO and RLOO on sampled answers that are paid (rewards).
Its result is a policy, and for online algorithms the best of the steps that were kept.
"""
