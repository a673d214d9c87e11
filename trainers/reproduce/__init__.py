"""Redoes the experiment of arXiv 2509.12235: a pipeline of ordinary commands, and one report of what came of it."""
