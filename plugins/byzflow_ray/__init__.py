"""Workers on a Ray cluster: `ray:`, for those who outgrow one machine and own all of the cluster.

    ActorPoolConfig("ray:", count=8, options={"num_gpus": 0.25})

Ray is imported when the first worker starts, and nothing of workers before one is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzflow.hookspecs import hookimpl

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend


@hookimpl
def byzflow_backends() -> list[type[Backend]]:
    """The backend of `ray:`."""
    from byzflow_ray.backend import RayBackend

    return [RayBackend]
