"""Shared memory of the simulator that knows who touched what since the last barrier, and refuses races.

The simulator's threads take turns, so that a barrier that is missing hardly ever shows in its results. Here two threads
that touch the same number between two barriers, one of them writing, are an error, whoever came first.
"""

import threading

import simulated_blocks
from numba.cuda.simulator import kernelapi


class Watched:
    """An array whose numbers remember the threads that read and wrote them since the last barrier."""

    def __init__(self, array):
        self.array, self.size, self.dtype = array, array.size, array.dtype
        self._lock, self._touched = threading.Lock(), {}

    def _touch(self, place, writes):
        thread = threading.current_thread()
        me, epoch = thread.thread_id, (thread._manager, thread.epoch)  # blocks have the same memory in turn
        with self._lock:
            when, readers, writers = self._touched.get(place, (epoch, set(), set()))
            if when != epoch:
                readers, writers = set(), set()
            others = (readers | writers if writes else writers) - {me}
            if others:
                verb = "writes" if writes else "reads"
                raise AssertionError(f"thread {me} {verb} number {place} of shared memory, which {others} touched too")
            (writers if writes else readers).add(me)
            self._touched[place] = epoch, readers, writers

    def __getitem__(self, place):
        self._touch(place, False)
        return self.array[place]

    def __setitem__(self, place, value):
        self._touch(place, True)
        self.array[place] = value


def watch(monkeypatch) -> None:
    """Let all shared memory be watched while a test lasts."""
    array, syncthreads = kernelapi.FakeCUDAShared.array, simulated_blocks.BlockThread.syncthreads
    lock = threading.Lock()

    def watched(self, shape, dtype, **settings):
        with lock:
            if not hasattr(self, "watched"):
                self.watched = {}
            found = array(self, shape, dtype, **settings)
            key = found.__array_interface__["data"][0]
            return self.watched.setdefault(key, Watched(found))

    def counted(self):
        syncthreads(self)
        self.epoch += 1

    monkeypatch.setattr(kernelapi.FakeCUDAShared, "array", watched)
    monkeypatch.setattr(simulated_blocks.BlockThread, "epoch", 0, raising=False)
    monkeypatch.setattr(simulated_blocks.BlockThread, "syncthreads", counted)
