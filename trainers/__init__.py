"""Makes checkpoints: supervised fine-tuning, PPO and GRPO on the tasks of `evalkit`."""
