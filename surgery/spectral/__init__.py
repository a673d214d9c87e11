"""Singular value decompositions of weights, as much of them as an edit needs, and the edits built from them.

gram          W^T W in blocks
lanczos       the leading eigenpairs of a large symmetric matrix
triplets      the outer singular triplets of a matrix; the choice between float32, float64 and a full SVD
decomposer    whom edits and comparisons ask for triplets and values
restore       W' from the triplets of two matrices; singular values exchanged; rank truncated
rotation      W' with the factors kept orthonormal by direct rotations
polar         W' with the factors replaced by their nearest orthonormal matrices
rank          which triplets mean something
decorrelated  triplets of several matrices side by side, made orthonormal again
noise         where the singular values of noise end
intruders     singular vectors that no earlier one resembles
cost          memory and arithmetic of all these, without torch
"""
