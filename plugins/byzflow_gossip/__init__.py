"""Rules of gossip: a node's own row, moved towards its neighbours'.

    reference        what they share: the own row, the weights, the Byzantine weight
    gossip           plain mixing
    clipped_gossip   differences clipped to the honest neighbours' spread
    cs_plus          differences clipped so that twice the Byzantine weight is
    gts              the farthest neighbours dropped

MoNNA's rule is in byzflow_aggregators: it needs no weights.
"""

from byzflow.hookspecs import hookimpl
from byzflow.operators import Operator
from byzflow_gossip.clipped_gossip import ClippedGossip
from byzflow_gossip.cs_plus import CSPlus
from byzflow_gossip.gossip import Gossip
from byzflow_gossip.gts import GTS


@hookimpl
def byzflow_aggregators() -> list[type[Operator]]:
    """The classes of this package."""
    return [Gossip, ClippedGossip, CSPlus, GTS]
