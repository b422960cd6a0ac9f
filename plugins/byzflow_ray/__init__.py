"""Workers on a Ray cluster: `ray:`, for those who outgrow one machine and own all of the cluster.

    ActorPoolConfig("ray:", count=8, options={"num_gpus": 0.25})

Ray is imported when the first worker starts.
"""

from __future__ import annotations

import byzflow
from byzflow.actors.backend import Backend


@byzflow.hookimpl
def byzflow_backends() -> list[type[Backend]]:
    """The backend of `ray:`."""
    from byzflow_ray.backend import RayBackend

    return [RayBackend]
