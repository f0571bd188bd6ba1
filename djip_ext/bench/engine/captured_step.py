"""A training step as a CUDA graph: small networks train as fast as the GPU, not as fast as Python.

A step of such a network is many small kernels, and Python takes longer to start one than the GPU
to run it (docs/performance.md).  A graph starts them all at once.
"""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.errors import DJIPError, first_line
from djip_ext.utils.distributed import say

Step = Callable[[tuple[Tensor, ...], int], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps before the first graph: libraries set themselves up, the optimiser its buffers


def can_capture(cfg: CfgNode) -> bool:
    """Whether ``BENCH.CUDA_GRAPH`` asks for recorded steps and ``BENCH.DEVICE`` is a GPU.

    Raises:
        DJIPError: the optimiser counts its steps on the CPU, where no recording sees it.
    """
    if not cfg.BENCH.CUDA_GRAPH:
        return False
    if cfg.SOLVER.TYPE != "SGD":
        raise DJIPError(
            f"BENCH.CUDA_GRAPH records SGD only, but SOLVER.TYPE is {cfg.SOLVER.TYPE}; leave it "
            "False"
        )
    if torch.device(cfg.BENCH.DEVICE).type == "cuda":
        return True
    say("note: BENCH.CUDA_GRAPH is for a GPU; here every step is taken plainly")
    return False


class CapturedStep:
    """Takes the steps of ``step`` by replaying a recording of it.

    What Python decides in a step (learning rate, weights that depend on the epoch, the view of a
    kept teacher) is frozen in the recording; it is made anew at every epoch, within which nothing
    of that changes.  The first steps of all, and batches that are not full, are taken as they are.

    Args:
        step: maps a batch on the GPU and the epoch to the student's logits (B, C) and the loss,
            and updates what ``trained`` holds.
        trained: all that a step changes: the student and what a method adds to it.
        batch_size: of a full batch.
    """

    def __init__(self, step: Step, trained: nn.Module, batch_size: int) -> None:
        self.step = step
        self.trained = trained
        self.batch_size = batch_size
        self.taken = 0
        self.epoch = 0
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, Tensor] | None = None

    def __call__(self, batch: tuple[Tensor, ...], epoch: int) -> tuple[Tensor, Tensor]:
        """One step; what it returns is overwritten by the next.

        Raises:
            DJIPError: the step waits for the GPU, puts a new tensor in the place of a buffer (CRD),
                or else cannot be recorded.
        """
        if self.taken < WARM_UP or len(batch[0]) != self.batch_size:
            return self._directly(batch, epoch)
        if self.graph is None or self.epoch != epoch:
            self._record(batch, epoch)
        assert self.graph is not None and self.outputs is not None
        for kept, given in zip(self.inputs, batch, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.outputs

    def _directly(self, batch: tuple[Tensor, ...], epoch: int) -> tuple[Tensor, Tensor]:
        self.taken += 1
        # in the stream of the recording, for which the libraries set themselves up
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            logits, loss = self.step(batch, epoch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return logits.detach(), loss.detach()

    def _record(self, batch: tuple[Tensor, ...], epoch: int) -> None:
        self.graph = self.outputs = None  # gives their memory back
        if not self.inputs:
            self.inputs = tuple(torch.empty_like(values) for values in batch)
        graph = torch.cuda.CUDAGraph()
        places = self._places()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                logits, loss = self.step(self.inputs, epoch)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a recording that broke raises once more
            raise DJIPError(
                f"this step cannot be recorded as a CUDA graph ({first_line(cause)}); set "
                "BENCH.CUDA_GRAPH False"
            ) from error
        if self._places() != places:  # replayed, it would read the old tensor for ever
            raise DJIPError(
                "this method puts new tensors in the place of its buffers, which a CUDA graph "
                "cannot follow; set BENCH.CUDA_GRAPH False"
            )
        self.graph, self.epoch = graph, epoch
        self.outputs = logits.detach(), loss.detach()

    def _places(self) -> dict[str, int]:
        """Where in memory each parameter and buffer lies."""
        kept = chain(self.trained.named_parameters(), self.trained.named_buffers())
        return {name: values.data_ptr() for name, values in kept}
