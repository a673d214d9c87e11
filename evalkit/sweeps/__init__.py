r"""Many variants of a model: made in one pass, scored in one engine, one of them chosen on half of the examples.

spec -> loading -> grid (candidates) -> bound (planned) -> making (checkpoints) -> scoring -> choice -> result -> report
                                                              \________ run ________/
"""
