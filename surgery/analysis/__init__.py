"""What fine-tuning did to the weights: spectral comparison of checkpoints, its figures and its report.

matching      which matrices are compared, and what that costs; headers alone
overlap       principal angles, matching and intruding directions, from the singular vectors of two matrices
spectrum      energy, ranks and changes of singular values
change        the change itself: its size, its rank, and how it looks in the base's singular basis
gauge         how much of the change of value and output projections is a rotation of the inner space
measure       all of these for one matrix of several models
run           every matrix of the checkpoints, streamed by worker threads; resumable
store         the directory of a comparison
comparison    the result: tables and spectra
advice        what the figures suggest to try
figures       PNG and SVG
report        one HTML page
"""
