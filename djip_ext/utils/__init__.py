"""What every layer needs and no idea of this project is in: files, processes, networks' outputs.

* :mod:`~djip_ext.utils.files`: atomic writes and locks.
* :mod:`~djip_ext.utils.distributed`: sums over processes; without a process group, the identity.
* :mod:`~djip_ext.utils.networks`: device, precision and logits of a network.
"""
