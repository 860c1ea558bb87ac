"""Sparse initializers: tensors of an ONNX file without their zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST_BYTES = 1024
"""Of a tensor whose zeros are left out: the names in the file take some too."""
INDEX_BYTES = 8
"""Of the place of a weight: ONNX has no narrower one."""


def leave_zeros_out(proto: Any) -> int:
    """Turn the tensors that become smaller by it into sparse initializers, in place.

    Args:
        proto: An `onnx.ModelProto`.

    Returns:
        How many were turned.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    dense = []
    for tensor in graph.initializer:
        array = None
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            array = numpy_helper.to_array(tensor)
        if array is None or not _is_smaller(array):
            dense.append(tensor)
            continue
        places = np.flatnonzero(array)
        graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                numpy_helper.from_array(array.reshape(-1)[places], tensor.name),
                numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places"),
                list(array.shape),
            )
        )
    count = len(graph.initializer) - len(dense)
    if count:
        del graph.initializer[:]
        graph.initializer.extend(dense)
    return count


def _is_smaller(array: np.ndarray) -> bool:
    """Whether the non-zeros and their places take fewer bytes than all entries."""
    kept = int(np.count_nonzero(array))
    return array.nbytes >= LEAST_BYTES and 0 < kept * (array.itemsize + INDEX_BYTES) < array.nbytes
