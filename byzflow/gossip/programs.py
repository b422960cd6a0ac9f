"""The programs that nodes run: what a round is, seen from one of them."""

from __future__ import annotations

from byzflow.gossip.door import Door


async def peer(door: Door) -> None:
    """Gossip: a half step on the own data, an exchange with the neighbours, and the mixed model to go on from."""
    while (t := await door.turn()) is not None:
        own = await door.train(t) if door.contributes else None
        if door.contributes:
            await door.send(door.listeners(t), "half", own, t)
        heard = await door.recv("half", t, door.speakers(t))
        await door.adopt(await door.aggregate(t, heard, own), t)


async def server(door: Door) -> None:
    """The centre of a star: aggregate what the workers send, and give all the same step."""
    while (t := await door.turn()) is not None:
        heard = await door.recv("update", t, door.speakers(t))
        step = await door.aggregate(t, heard)
        await door.apply(step, t)
        await door.send(door.listeners(t), "step", step, t)


async def worker(door: Door) -> None:
    """A leaf of a star: send the local step, and take the one that the centre makes of all."""
    while (t := await door.turn()) is not None:
        if door.contributes and door.sampled(t):
            await door.send([door.centre], "update", await door.train(t), t)
        heard = await door.recv("step", t, [door.centre], quorum=1)
        await door.apply(heard.values.get(door.centre), t)
