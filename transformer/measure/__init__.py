"""How fast, how large, how near to the machine's limit: what `experiments.benchmark` measures.

Each measure prepares once (`Measure`) and is then asked for turns, so that two of them can take
turns in one sitting. One side of a comparison is a process of its own (`worker`), in the
environment that a launch gives its workers; `sides` holds its two ends together. Nothing here
decides a result.
"""
