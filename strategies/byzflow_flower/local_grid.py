"""A Flower grid inside one process: real ClientApps, real messages, no SuperLink, no Ray."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from byzflow_flower import compat

CLIENT_APP_RAISED_EXCEPTION = 2  # Flower's own code for it


class LocalGrid(Grid):
    """Runs the ClientApp of each node in this process, one after the other, when a message is sent to it.

    For tests and for small studies: a round of ten small clients takes milliseconds. As in Flower, each node
    keeps its `Context.state` between messages, sees a copy of what was sent, and answers with an error reply
    when its app raises (its state is then as before the message). Clients are taken to work side by side: a reply that
    took its client longer than the timeout does not arrive. The client is not interrupted, though, and is waited for.

    Parameters
    ----------
    apps : the ClientApp of each node, by node id. The same app may serve many nodes.
    run_config : what `context.run_config` holds, the same for every node.
    node_configs : what `context.node_config` holds, by node id; a node that is not in it gets `partition-id`
        (its place among the sorted node ids, from 0) and `num-partitions` (the number of nodes).

    Raises
    ------
    ValueError : a message is for a node that is not in `apps`.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        *,
        run_config: Mapping[str, UserConfigValue] | None = None,
        node_configs: Mapping[int, Mapping[str, UserConfigValue]] | None = None,
    ) -> None:
        compat.become_server()
        self._apps = dict(apps)
        self._run: Any = compat.empty_run(compat.RUN_ID)
        self._replies: dict[str, Message] = {}
        self._message_ids = (f"local-{number}" for number in itertools.count())
        self.contexts = {
            node: Context(
                run_id=compat.RUN_ID,
                node_id=node,
                node_config=dict((node_configs or {}).get(node, {"partition-id": place, "num-partitions": len(apps)})),
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for place, node in enumerate(sorted(apps))
        }

    def set_run(self, run: Any) -> None:
        """Set the run that `run` returns."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run set by `set_run`, else an empty one."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the server to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes, in the order in which they were given."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run each message's client and keep its reply; return the ids under which to pull the replies."""
        return self._push(messages, None)

    def _push(self, messages: Iterable[Message], timeout: float | None) -> list[str]:
        sent = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._apps:
                raise ValueError(f"no node {node} in this grid; it has {sorted(self._apps)}")
            message_id = next(self._message_ids)
            compat.address(message, message_id)
            started = time.monotonic()
            reply = self._answer(node, message)
            if timeout is None or time.monotonic() - started <= timeout:
                self._replies[message_id] = reply
            sent.append(message_id)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies to these messages; each can be taken once."""
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send the messages and return the replies that are in time, in the order of the messages."""
        return self.pull_messages(self._push(messages, timeout))

    def _answer(self, node: int, message: Message) -> Message:
        context = copy.copy(self.contexts[node])
        context.state = _own_copy(context.state)
        try:
            reply = self._apps[node](_delivered(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"a ClientApp must return a Message, not {type(reply).__name__}")
        except Exception as problem:  # whatever a client does wrong is the client's, as in Flower
            reason = f"{type(problem).__name__}: {problem}"
            return Message(Error(CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self.contexts[node] = context
        return _delivered(reply)


def _delivered(message: Message) -> Message:
    """The message as the other side gets it: nothing that either side changes later shows on the other."""
    arrived = copy.copy(message)
    if arrived.has_content():
        arrived.content = _own_copy(arrived.content)
    return arrived


def _own_copy(content: RecordDict) -> RecordDict:
    # An array's bytes cannot change, so only what holds them is copied.
    return RecordDict(
        {
            name: ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else copy.deepcopy(record)
            for name, record in content.items()
        }
    )
