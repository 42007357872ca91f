"""The align stage: DPO on pairs, or PPO, GRPO and RLOO on sampled answers that are paid (rewards).
Its result is a policy, and for online algorithms the best of the steps that were kept.
"""
