"""The arithmetic of the lens: colour, 8x8 blocks, DCT and the soft quantizer, with their gradients.

Tensors in, tensors out.  Uses torch and nothing of this package.

* :mod:`~djip_ext.ops.dct`: the linear parts of JPEG.
* :mod:`~djip_ext.ops.quantizer`: the soft quantizer of JPEG-DL, with its analytic gradient.
* :mod:`~djip_ext.ops.curves`: one period of the quantizer, tabulated for every table entry.
* :mod:`~djip_ext.ops.fused`: all of it as one operation, with one pointwise kernel.
* :mod:`~djip_ext.ops.exportable`: the same as a plain graph, for torch.export and ONNX.
"""
