"""Which backbone each task is bound to, and which backbones there are: pure, standard library only.

`situation` has the vocabulary, `loads` what backbones and servers carry, `max_share` the planner, `baselines` what it
is compared with. Nothing here reads a file, a clock or a server.
"""
