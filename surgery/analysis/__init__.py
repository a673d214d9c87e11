"""What fine-tuning did to the weights: spectral comparison of checkpoints, its figures and its report.

matching      which matrices are compared, and what that costs; `matcher` and `attention` find them, headers alone
overlap       principal angles, matching and intruding directions, from the singular vectors of two matrices
spectrum      energy, ranks and changes of singular values
change        the change itself: its size, and how it looks in the base's singular basis
gauge         how much of the change of value and output projections is a rotation of the inner space
measure       all of these for one matrix of several models
run           every matrix of the checkpoints, streamed by worker threads
store         the directory of a comparison, made and read
api           the verb for Python; `cli` is the command
diff          the whole of `surgery diff`, from models to report

comparison    the result: tables and spectra; `cells` are its layers and modules, `measures` its columns in words
advice        what the figures suggest to try; `summary` and `headline` tell the comparison in short
figures       PNG and SVG, with `figures_spectra` and `figures_gauge`
report        one HTML page, with `report_data` and `captions`
"""
