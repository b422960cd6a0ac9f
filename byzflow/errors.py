"""Everything byzflow raises on purpose.

    ByzflowError
    ├── SpecError(ValueError)            a spec that does not read: syntax, parameter, range
    │   └── UnknownOperator              no plugin registered that name
    ├── RowsError(ValueError)            rows that cannot be aggregated: kind, shape, dtype, device, empty
    │   └── NonFiniteRows                NaN or Inf where the policy is "raise", or in every row
    ├── NotEnoughSenders(ValueError)     n is below the operator's bound for its f
    ├── ExtraError(TypeError)            an extra argument that is missing, unknown or of the wrong size
    ├── DataError(ValueError)            data that is missing, does not read, or cannot be dealt out
    ├── ModelError(ValueError)           a model, or a vector or state for it, that does not fit
    ├── LimitExceeded(RuntimeError)      an exact search larger than its limit
    ├── PluginError(RuntimeError)        a plugin that does not load, or claims what another one has
    ├── GraphError(ValueError)           a graph that cannot run: names, inputs, outputs
    │   ├── UnknownDependency            a node needs one that is not there
    │   └── GraphCycle                   nodes need each other
    ├── ActorError(RuntimeError)         a worker, an object on one, or a channel that is not there
    │   ├── WorkerDied                   a worker ended before it answered
    │   │   └── WorkerGone               it had ended before it was asked, so the call did not run
    │   ├── WireError                    bytes, or a value, that may not cross to another machine
    │   ├── KeyFault                     keys or certificates that cannot be used
    │   ├── LinkClosed                   a connection ended
    │   └── RemoteError                  an error on another machine whose type is not known here
    ├── MessageTimeout(TimeoutError)     a message did not come in time
    ├── MailboxFull(RuntimeError)        more messages than a mailbox may keep
    └── FederationError(RuntimeError)    a federation that cannot run, or cannot go on
        ├── NotANeighbour(ValueError)    a message to a node that the graph does not join
        ├── QuorumLost                   too few nodes spoke in time
        ├── CheckpointError              a checkpoint that cannot be written, or is torn
        └── Stopped                      the run was stopped while a node waited

    WeakAttack(UserWarning)              a warning: an attack that attacks nobody with these n and f

Each message is one line: what is wrong, the bound, the value, and the next step.
"""

from __future__ import annotations

import builtins
import copy
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

MESSAGE = 4000  # characters of an error's message that travel


class ByzflowError(Exception):
    """Base of every error that byzflow raises on purpose."""


class SpecError(ByzflowError, ValueError):
    """A spec, or a parameter in it, that does not read."""


class UnknownOperator(SpecError):
    """No plugin registered this name."""

    def __init__(self, name: str, known: Iterable[str], what: str = "operator", otherwise: str = "") -> None:
        self.name = name
        super().__init__(f"unknown {what} {name!r}; {did_you_mean(name, known, otherwise)}")


class RowsError(ByzflowError, ValueError):
    """Rows that cannot be aggregated together."""


class NonFiniteRows(RowsError):
    """Rows hold NaN or Inf and the policy does not allow to go on."""


class NotEnoughSenders(ByzflowError, ValueError):
    """Fewer rows than the operator needs for its f."""

    def __init__(self, operator: str, needed: int, given: int, why: str = "") -> None:
        self.operator, self.needed, self.given, self.why = operator, needed, given, why
        super().__init__(f"{operator} needs at least {needed} senders, got {given}{why}")

    def __reduce__(self) -> tuple[type[NotEnoughSenders], tuple[str, int, int, str]]:
        return type(self), (self.operator, self.needed, self.given, self.why)


class ExtraError(ByzflowError, TypeError):
    """An extra argument is missing, not taken by the operator, or of the wrong size."""


class DataError(ByzflowError, ValueError):
    """Data is missing, does not read, or cannot be dealt out."""


class ModelError(ByzflowError, ValueError):
    """A model cannot be trained as one vector, or a vector or a state does not fit it."""


class LimitExceeded(ByzflowError, RuntimeError):
    """An exact search would be larger than its limit."""


class PluginError(ByzflowError, RuntimeError):
    """A plugin does not load, or claims a name that another one has."""


class GraphError(ByzflowError, ValueError):
    """A graph cannot run, or not with these inputs."""


class UnknownDependency(GraphError):
    """A node needs one that is not there."""


class GraphCycle(GraphError):
    """Nodes need each other."""


class ActorError(ByzflowError, RuntimeError):
    """A worker, an object on one, or a channel that is not there."""


class WorkerDied(ActorError):
    """A worker ended before it answered."""


class WorkerGone(WorkerDied):
    """A worker had ended before it was asked: the call did not run, and may be made again."""


class LinkClosed(ActorError):
    """A connection ended."""


class WireError(ActorError):
    """Bytes, or a value, that may not cross to another machine."""


class KeyFault(ActorError):
    """Keys or certificates that cannot be used."""


class RemoteError(ActorError):
    """An error on another machine whose type is not known here."""


class MessageTimeout(ByzflowError, TimeoutError):
    """A message did not come in time."""


class MailboxFull(ByzflowError, RuntimeError):
    """More messages wait than a mailbox may keep."""


class FederationError(ByzflowError, RuntimeError):
    """A federation cannot run, or cannot go on."""


class NotANeighbour(FederationError, ValueError):
    """A message to a node that the graph does not join."""


class QuorumLost(FederationError):
    """Too few nodes spoke in time."""


class CheckpointError(FederationError):
    """A checkpoint cannot be written, or is missing, torn or of something else."""


class Stopped(FederationError):
    """The run was stopped while a node waited."""


class WeakAttack(UserWarning):
    """An attack that, with these n and f, moves no aggregation away from the honest mean."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """'did you mean ...?' with the nearest known names; where nothing is near `otherwise`, or else the whole list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"known: {', '.join(names) or 'none'}"


def told(error: BaseException) -> list[str]:
    """An error as plain data, for another machine: its type's name and its message, of which the end may be cut."""
    try:
        message = str(error)
    except Exception as fault:  # its own __str__ is code of others
        message = f"an error whose message cannot be had ({type(fault).__name__})"
    return [type(error).__name__, message[:MESSAGE]]


def portable(error: Exception) -> Exception | list[str]:
    """The error itself if it can be made again at another place from its arguments, else as plain data.

    In a group, each that cannot is a RemoteError.
    """
    if isinstance(error, ExceptionGroup):
        parts = [portable(each) for each in error.exceptions]
        return error.derive([restored(each) if isinstance(each, list) else each for each in parts])
    try:
        copy.copy(error)
    except Exception:
        return told(error)
    return error


def restored(data: Any) -> Exception:
    """The error that was told: of its own type if that is Python's or byzflow's, else a RemoteError."""
    match data:
        case [str(name), str(message)]:
            name, message = legible(name, 100), legible(message, MESSAGE)
            known = globals().get(name) or getattr(builtins, name, None)
            wrong = (Warning, StopIteration)  # the second cannot be raised to who awaits it
            if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, wrong):
                try:
                    error = known(message)
                except TypeError:  # takes other arguments
                    return RemoteError(f"{name}: {message}")
                return error
            return RemoteError(f"{name}: {message}")
    return RemoteError("an error that cannot be read")


def legible(text: str, most: int) -> str:
    """What another machine says, for a terminal: at most so many characters, and none that moves the cursor back."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text[:most])


def one_line(error: BaseException) -> str:
    """An error of foreign code, which may have several lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())
