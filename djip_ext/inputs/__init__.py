"""What people bring: batches, images, checkpoints, and teachers that are wrapped, closed or halved.

Everything is either read as its library means it or refused in one line.  Uses
:mod:`djip_ext.utils`; knows nothing of lenses.

* :mod:`~djip_ext.inputs.batches`: any batch as (image, label, index).
* :mod:`~djip_ext.inputs.pixel_modes`: 16-bit, grey, RGBA and other images as 8-bit RGB.
* :mod:`~djip_ext.inputs.checkpoints`: any usual layout of a checkpoint as a state dict.
* :mod:`~djip_ext.inputs.wrappers`: a network seen through torch.compile, DataParallel and averages.
* :mod:`~djip_ext.inputs.closed_teacher`: a callable without gradients as a teacher.
* :mod:`~djip_ext.inputs.pieces`: images that enter a teacher piece by piece, past its lens.
* :mod:`~djip_ext.inputs.first_batch`: what the first batch shows, once.
"""
