"""One engine for long jobs: shards that survive being killed, in this process or on Ray.

A job knows its shards, how one is computed and how it is written (`Job`); an engine knows neither
models nor data and does those that are undone. Extraction and evaluation are such jobs.
"""

from lvlm_interp.jobs.here import here
from lvlm_interp.jobs.job import Engine, Job
from lvlm_interp.jobs.markers import is_whole, read_marker, sweep_up, write_marker
from lvlm_interp.jobs.on_ray import on_ray

__all__ = ["Engine", "Job", "here", "is_whole", "on_ray", "read_marker", "sweep_up", "write_marker"]
