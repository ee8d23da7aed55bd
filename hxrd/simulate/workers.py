"""Work done ahead of its use, by threads or processes, and handed over in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from hxrd.errors import HxrdError

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = TypeVar("Shared")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], pool: Executor, ahead: int
) -> Iterator[Result]:
    """Yield the result of `work` for each item, in order, however many there are.

    Parameters
    ----------
    work : callable
    items : iterable
        May be endless: an item is taken only when its work can begin.
    pool : Executor
        Shut down by the caller.
    ahead : int
        Results begun, or waiting to be taken, beyond the one that is asked for.

    Raises
    ------
    HxrdError
        A worker process ended.
    Exception
        Whatever `work` raised, once its turn comes.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise HxrdError(
            "a worker process ended before its work was done: it was killed, or ran out of memory (use fewer "
            "workers), or the script that started it lacks `if __name__ == '__main__':` around its main part"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def process_pool(n_workers: int, set_up: Callable[[Shared], None], shared: Shared) -> ProcessPoolExecutor:
    """Return freshly started processes that leave Ctrl-C to their parent and end with it.

    Parameters
    ----------
    n_workers : int
    set_up : callable
        Called with `shared` once in each; an error in it would be told without its message.
    shared : object
        Sent to each process once.
    """
    return ProcessPoolExecutor(
        n_workers, get_context("spawn"), initializer=_begin_worker, initargs=(set_up, shared)
    )


def _begin_worker(set_up: Callable[[Shared], None], shared: Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up(shared)


def _end_with_parent() -> None:
    """End this worker when its parent was killed: nobody else would."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
