"""A decoder's cache of keys and values, from inputs and outputs of its graph into state that OpenVINO keeps itself.

Source: what OpenVINO's own tools make of a decoder: a ``beam_idx`` input that reorders the cache before each pass, and
an empty cache to begin with, as many rows as the first tokens have.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino
import openvino.opset13 as ops
from openvino.passes import MakeStateful, Manager

BEAM = "beam_idx"


def keep_state(model: openvino.Model, past: Mapping[str, str]) -> None:
    """Change the model in place.

    past: input → the output that is its next value; all (rows, heads, tokens, width), heads and width static.
    """
    beam = ops.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name=BEAM)
    beam.output(0).get_tensor().set_names({BEAM})
    model.add_parameters([beam])
    for name in past:
        port = model.input(name)
        readers = port.get_target_inputs()
        ordered = ops.gather(port, beam, ops.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    manager = Manager()
    manager.register_pass(MakeStateful(dict(past)))
    manager.run_passes(model)
    _begin_empty(model)
    model.validate_nodes_and_infer_types()


def _begin_empty(model: openvino.Model) -> None:
    tokens = ops.shape_of(model.input("input_ids"), "i64")
    rows = ops.gather(tokens, ops.constant(np.array([0], dtype=np.int64)), ops.constant(np.int64(0)))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_attributes()["variable_shape"]
            shape = ops.concat([rows, ops.constant(np.array([heads, 0, width], dtype=np.int64))], 0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
