"""The main job on four small checkpoints that come with the package, and what came out, in words.

`checkpoints` holds the base, Inter-SFT, SFT and RL models of the mini experiment, made by `surgery train` as the
`training.json` of each tells.
"""
