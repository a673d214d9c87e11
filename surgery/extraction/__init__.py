"""`surgery extract-lora`: the difference of two models as a low-rank adapter.

fit       whether the models belong together: layers, tokens
choice    which tensors become factors, are stored whole or are left out, and what that costs; from headers
report    what was kept of the change, tensor by tensor and in all
factors   the leading triplets of a difference as B and A
run       the crew's work: difference by difference
output    the adapter's directory: parts while it is made, one file once it is complete
extract   the whole verb
console   what a person sees of it
api       the verb for Python
cli       the command
"""
