"""The controller beside a Triton server: what the server has loaded becomes what its model repository holds.

It owns no state. A round observes the repository (`observer`) and the server (`triton`), compares the two (`reconcile`,
pure) and carries the differences out (`execution`). What it remembers from round to round, `Attempt`s and since when
something is as it is, saves work and log lines only: a new process finds the same differences, and to load what is
loaded already changes nothing. So it can be killed at any moment and started again.

A directory is left alone until it is still. What its own files lack is written (a config, a name, a backbone, a tag).
A task is loaded once its backbone, asked before the server is, accepts it; a directory that is not accepted gets an
ERROR.txt and is not tried again until it changes. Backbones are probed through the way that requests take (`probes`,
`health`): one whose process does not answer is unloaded with its tasks, and then is a difference like any other.

Imports no torch. Talks to the server as any client does.
"""
